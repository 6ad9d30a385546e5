//! What the memory of a plain job is worth that took effect without a ledger entry.
//!
//! A worker that was stopped and overtaken does not know it. What it applied, its successor does anew, in the order of the
//! queue and with entries; the verdicts that the first one leaves in Redis come late. "It was applied" is true then, and
//! still no reason to pass a job over: the one before it may have been done again since, and its older value would stay.
//! So a job is remembered with its *place*, and passed over only while the job that it followed has not been done again.
//! That one follows another, so whatever is done again, all that came after it is.

use std::fmt;
use std::str::FromStr;

use super::ledger::{Ledger, Mark};
use crate::job::Version;

/// Where in the life of a conversation a job took effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The version that its PATCH was built on; `None`: it found everything as it wants it, nobody knows since when.
    pub base: Option<Version>,
    /// The job before it that the same worker applied without an entry; `None`: the ledger names all before it.
    pub follows: Option<Mark>,
}

impl Place {
    /// Whether the job that it followed has been done again since: then this one must be, too.
    #[must_use]
    pub fn is_overtaken(&self, ledger: &Ledger) -> bool {
        self.follows.as_ref().is_some_and(|before| ledger.applied_since(self.base.as_ref()).any(|mark| mark == before))
    }
}

/// A place as Redis keeps it: `<mark>:<version>`, either of them empty where there is none.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mark, base) =
            (self.follows.as_ref().map_or("", Mark::as_str), self.base.as_ref().map_or("", Version::as_str));
        write!(f, "{mark}:{base}")
    }
}

/// Not a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (mark, base) = text.split_once(':').ok_or(NoPlace)?;
        let follows = (!mark.is_empty()).then(|| Mark::from_text(mark.to_owned()));
        Ok(Self { base: (!base.is_empty()).then(|| Version::new(base)), follows })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn mark(name: &str) -> Mark {
        Mark::from_text(format!("{name:0>12}"))
    }

    fn place(base: &str, follows: Option<&str>) -> Place {
        Place { base: (!base.is_empty()).then(|| Version::new(base)), follows: follows.map(mark) }
    }

    #[test]
    fn a_place_is_read_as_it_is_written() {
        for place in [place("41", Some("a")), place("W/\"a:b\"", None), place("", None)] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert_eq!("41".parse::<Place>(), Err(NoPlace));
    }

    #[test]
    fn a_memory_ends_when_the_job_before_was_written_later() {
        let ledger = |name: &str, base: &str| {
            let mut ledger = Ledger::default();
            ledger.add_applied(mark(name), &Version::new(base), Timestamp::UNIX_EPOCH);
            ledger
        };
        let followed = place("41", Some("a"));
        assert!(followed.is_overtaken(&ledger("a", "42")));
        assert!(!followed.is_overtaken(&ledger("a", "41")), "written in the same PATCH");
        assert!(!followed.is_overtaken(&ledger("a", "9")), "written before");
        assert!(!followed.is_overtaken(&ledger("z", "42")), "another job");
        assert!(place("", Some("a")).is_overtaken(&ledger("a", "1")), "since when, nobody knows");
        assert!(!place("41", None).is_overtaken(&ledger("a", "42")));
        assert!(place("\"x\"", Some("a")).is_overtaken(&ledger("a", "\"y\"")), "which was first, nobody can tell");
    }
}
