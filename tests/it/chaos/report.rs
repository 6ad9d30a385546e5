//! What a run found, as a table for people and as files for whoever looks for the cause.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checker::{Evidence, Judgement, Violation};
use super::plan::{Fault, Plan};
use super::recovery::Struck;

/// Sentences of one violation that are shown; the files have all.
const SHOWN: usize = 8;

/// Everything that a run has to tell.
pub struct Report<'a> {
    pub plan: &'a Plan,
    pub messages: usize,
    pub evidence: &'a Evidence,
    pub judgement: &'a Judgement,
    pub struck: &'a [Struck],
    pub recovery: &'a BTreeMap<Fault, Vec<Duration>>,
    pub silences: &'a BTreeMap<Fault, Vec<Duration>>,
    /// What else is not as it should be.
    pub complaints: &'a [String],
    pub took: Duration,
}

impl Report<'_> {
    /// The table.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let Plan { seed, scale, .. } = self.plan;
        let foreign = self.evidence.history.iter().filter(|write| write.foreign).count();
        let _ = writeln!(out, "chaos: seed {seed}, scale {scale} %, {:.0} s", self.took.as_secs_f64());
        let _ = writeln!(
            out,
            "{} jobs in {} messages, {} writes of workers, {foreign} of somebody else",
            self.evidence.jobs.len(),
            self.messages,
            self.evidence.history.len() - foreign,
        );
        let _ = writeln!(out, "verdicts: {:?}; reasons: {:?}", self.judgement.verdicts, self.judgement.reasons);
        for violation in Violation::ALL {
            let count = self.judgement.violations.get(&violation).map_or(0, Vec::len);
            let _ = writeln!(out, "{:>24} {count}", format!("{violation:?}"));
        }
        for (name, count) in [
            ("repeated events", self.judgement.repeated_events),
            ("unknown", self.judgement.unknown),
            ("late repeats", self.judgement.late_repeats),
            ("overtaken, forgotten", self.judgement.overtaken),
            ("plain sets done again", self.judgement.set_again),
        ] {
            let _ = writeln!(out, "{name:>24} {count}");
        }
        let _ =
            writeln!(out, "from the end of a fault to the next outcome; longest time without one meanwhile; in ms:");
        let mut kinds: BTreeMap<Fault, usize> = BTreeMap::new();
        self.struck.iter().for_each(|struck| *kinds.entry(struck.fault).or_default() += 1);
        for (fault, count) in kinds {
            let (next, silent) = (median_and_longest(self.recovery, fault), median_and_longest(self.silences, fault));
            let _ = writeln!(out, "{:>24} × {count:<4} {next}   without {silent}", format!("{fault:?}"));
        }
        for (violation, sentences) in &self.judgement.violations {
            for sentence in sentences.iter().take(SHOWN) {
                let _ = writeln!(out, "{violation:?}: {sentence}");
            }
        }
        for complaint in self.complaints {
            let _ = writeln!(out, "{complaint}");
        }
        out
    }

    /// Whether everything is as promised.
    pub fn is_good(&self) -> bool {
        self.judgement.violations.is_empty() && self.complaints.is_empty()
    }

    /// Leaves table and evidence in a directory.
    pub fn keep(&self, directory: &Path) {
        let lines = |items: &mut dyn Iterator<Item = String>| items.map(|line| line + "\n").collect::<String>();
        let violations = self.judgement.violations.iter();
        let violations = violations.flat_map(|(kind, all)| all.iter().map(move |text| format!("{kind:?}: {text}")));
        for (name, text) in [
            ("report.txt", self.text()),
            ("violations.txt", lines(&mut { violations })),
            ("outcomes.txt", lines(&mut self.evidence.told.iter().map(|told| format!("{told:?}")))),
            ("history.txt", lines(&mut self.evidence.history.iter().map(|write| format!("{write:?}")))),
            ("jobs.txt", lines(&mut self.evidence.jobs.iter().map(|job| format!("{job:?}")))),
        ] {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }
}

fn median_and_longest(times: &BTreeMap<Fault, Vec<Duration>>, fault: Fault) -> String {
    let times = times.get(&fault).map_or(&[][..], Vec::as_slice);
    let show = |time: Option<&Duration>| time.map_or("-".to_owned(), |time| time.as_millis().to_string());
    let (middle, most) = (show(times.get(times.len() / 2)), show(times.last()));
    format!("p50 {middle:>6}  max {most:>6}")
}

/// Where the evidence of a run stays.
pub fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
