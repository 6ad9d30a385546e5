//! The climb of a job as its message tells it: `<since>:<rung>:<order>`.

use std::fmt;
use std::str::FromStr;

/// From here on a double, which is what Redis orders by, is not exact.
const MAX_EXACT: u64 = 1 << 53;

/// What a job on the ladder brings along in its message: when it went onto the rung, which one that is, and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Climb {
    /// Milliseconds since 1970.
    pub(super) since: u64,
    pub(super) rung: usize,
    /// Microseconds since 1970.
    pub(super) order: u64,
}

impl fmt::Display for Climb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.since, self.rung, self.order)
    }
}

/// Not a climb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoClimb;

impl FromStr for Climb {
    type Err = NoClimb;

    fn from_str(text: &str) -> Result<Self, NoClimb> {
        let mut parts = text.split(':').map(|part| part.parse::<u64>().ok().filter(|number| *number < MAX_EXACT));
        let mut next = || parts.next().flatten().ok_or(NoClimb);
        let (since, rung, order) = (next()?, next()?, next()?);
        match usize::try_from(rung) {
            Ok(rung) if order > 0 && parts.next().is_none() => Ok(Self { since, rung, order }),
            _ => Err(NoClimb),
        }
    }
}
