//! The protective parts, each left out by changing the world around the production code, never the code: if a
//! part can be left out without the checker's noticing, either the part or the check is idle.

use std::fmt;

use context_injector::target::Change;

/// A part that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    DeduplicationOnlyInRedis,
    NoPrecondition,
    NoLowWaterMark,
    NoTombstone,
    AckBeforePublish,
    VersionRestarts,
    FreshVersionUnderOldPlan,
    FailedJobIgnored,
    NoEntryForSuspects,
    VerdictsWithoutPlace,
}

impl Mutant {
    pub const ALL: [Self; 10] = [
        Self::DeduplicationOnlyInRedis,
        Self::NoPrecondition,
        Self::NoLowWaterMark,
        Self::NoTombstone,
        Self::AckBeforePublish,
        Self::VersionRestarts,
        Self::FreshVersionUnderOldPlan,
        Self::FailedJobIgnored,
        Self::NoEntryForSuspects,
        Self::VerdictsWithoutPlace,
    ];

    /// Whether a request of an old version may get through after all.
    pub fn lets_old_requests_through(self) -> bool {
        matches!(self, Self::NoPrecondition | Self::VersionRestarts)
    }

    /// What of a write reaches the platform.
    pub fn mutilate(self, changes: &mut Vec<Change>, ledger_key: &str) {
        if self == Self::DeduplicationOnlyInRedis {
            changes.retain(|change| change.name.key != ledger_key);
        }
        let ledgers = changes.iter_mut().filter(|change| change.name.key == ledger_key);
        for ledger in ledgers.filter_map(|change| change.value.as_mut()?.as_object_mut()) {
            match self {
                Self::NoLowWaterMark => drop(ledger.remove("low")),
                Self::NoTombstone => drop(ledger.remove("t")),
                _ => {}
            }
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeduplicationOnlyInRedis => "de-duplication only in Redis",
            Self::NoPrecondition => "ledger without If-Match",
            Self::NoLowWaterMark => "no low-water mark",
            Self::NoTombstone => "no tombstone",
            Self::AckBeforePublish => "ack before publish",
            Self::VersionRestarts => "a version counter that restarts",
            Self::FreshVersionUnderOldPlan => "a fresh version under an old plan",
            Self::FailedJobIgnored => "a fold that ignores a failed job",
            Self::NoEntryForSuspects => "no entry for plain jobs that may be under way elsewhere",
            Self::VerdictsWithoutPlace => "late verdicts of plain jobs that are believed whatever came since",
        })
    }
}
