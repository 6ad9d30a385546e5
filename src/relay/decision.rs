//! What becomes of a delivery after a try: a pure function of how the try ended.
//!
//! Rules: the failure that opens the breaker is an attempt, a failed probe is not; an address that our own rules
//! refuse is never an attempt (DNS may change back, and the setting may be made). A receiver that refuses this very
//! event is well. Where the endpoint is ordered, an event that failed keeps its place and holds the later ones; it is
//! given up only if the receiver refuses it for good, since going on without it would break the order.

use std::time::Duration;

use super::answer::{Reaction, explain, react};
use super::breaker::Health;
use super::delivery::{Ending, Failure};
use super::schedule::{Next, Schedule};

/// What happens to the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The receiver has it.
    Delivered,
    /// It waits on a rung for its next try.
    Later(Duration),
    /// It keeps its place at the head of its queue, which waits so long.
    Held(Duration),
    /// It goes back to its queue untouched: no attempt was made, or it says nothing.
    Parked,
    /// It goes back to its queue, and the endpoint is disabled.
    Disable,
    /// It is given up.
    Dead(Reason),
}

/// Why an event was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The receiver refused it with a status that no repetition changes.
    RefusedByReceiver,
    /// The schedule is used up.
    AttemptsExhausted,
    /// The message is no event.
    NotAnEvent,
}

impl Reason {
    /// The code in the dead letter's `x-reason`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::RefusedByReceiver => "refused_by_receiver",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::NotAnEvent => "not_an_event",
        }
    }
}

/// A try, as far as the decision needs it.
#[derive(Debug, Clone, Copy)]
pub struct Try<'a> {
    /// How it ended.
    pub ending: &'a Ending,
    /// Its number, the first is 1.
    pub number: u32,
    /// Whether it was a probe.
    pub probe: bool,
}

/// What the endpoint's settings say about failures.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// When the next try is due.
    pub schedule: &'a Schedule,
    /// Whether the 4xx that say nothing about time are retried.
    pub retry_client_errors: bool,
    /// Whether no event may overtake one that failed.
    pub ordered: bool,
}

/// Decides. `jitter` is uniform in 0..1.
#[must_use]
pub fn decide(tried: Try<'_>, policy: Policy<'_>, jitter: f64) -> (Health, Fate) {
    let retry_after = match tried.ending {
        Ending::Failed(Failure::Refused(_)) => return (Health::Refused, Fate::Parked),
        Ending::Failed(_) => None,
        Ending::Answered { status, retry_after } => match react(*status, policy.retry_client_errors) {
            Reaction::Delivered => return (Health::Well, Fate::Delivered),
            Reaction::Disable => return (Health::Well, Fate::Disable),
            Reaction::GiveUp => return (Health::Well, Fate::Dead(Reason::RefusedByReceiver)),
            Reaction::Retry => *retry_after,
        },
    };
    let fate = match policy.schedule.next(tried.number, retry_after, jitter) {
        _ if tried.probe => Fate::Parked,
        _ if policy.ordered => Fate::Held(policy.schedule.hold(tried.number, retry_after, jitter)),
        Next::Wait(wait) => Fate::Later(wait),
        Next::Exhausted => Fate::Dead(Reason::AttemptsExhausted),
    };
    (Health::Ill { retry_after }, fate)
}

/// How a try ended, in a sentence for people.
#[must_use]
pub fn explain_ending(ending: &Ending) -> String {
    match ending {
        Ending::Answered { status, .. } => explain(*status),
        Ending::Failed(failure) => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn decided(ending: Ending, number: u32, probe: bool) -> (Health, Fate) {
        decided_by(ending, number, probe, false)
    }

    fn decided_by(ending: Ending, number: u32, probe: bool, ordered: bool) -> (Health, Fate) {
        let schedule = Schedule::new(&[5 * SECOND, 60 * SECOND]);
        let policy = Policy { schedule: &schedule, retry_client_errors: false, ordered };
        decide(Try { ending: &ending, number, probe }, policy, 0.5)
    }

    fn answered(status: u16) -> Ending {
        Ending::Answered { status, retry_after: None }
    }

    fn timed_out() -> Ending {
        Ending::Failed(Failure::TimedOut { host: "https://example.com".into(), limit: SECOND })
    }

    #[test]
    fn failures_climb_the_ladder_and_fall_off_its_end() {
        let ill = Health::Ill { retry_after: None };
        for ending in [|| answered(500), || answered(302), timed_out] {
            assert_eq!(decided(ending(), 1, false), (ill, Fate::Later(5 * SECOND)));
            assert_eq!(decided(ending(), 2, false), (ill, Fate::Later(60 * SECOND)));
            assert_eq!(decided(ending(), 3, false), (ill, Fate::Dead(Reason::AttemptsExhausted)));
        }
    }

    #[test]
    fn a_failed_probe_burns_no_attempt_not_even_the_last() {
        for number in 1..5 {
            assert_eq!(decided(timed_out(), number, true).1, Fate::Parked);
            assert_eq!(decided(answered(204), number, true), (Health::Well, Fate::Delivered));
        }
    }

    #[test]
    fn where_order_counts_a_failure_keeps_its_place_and_never_runs_out_of_tries() {
        let fate = |ending, number, probe| decided_by(ending, number, probe, true).1;
        assert_eq!(fate(answered(500), 1, false), Fate::Held(5 * SECOND));
        for number in [2, 3, 1_000] {
            assert_eq!(fate(timed_out(), number, false), Fate::Held(60 * SECOND), "try {number}");
        }
        assert_eq!(fate(timed_out(), 3, true), Fate::Parked, "the breaker paces its probes");
        assert_eq!(fate(answered(204), 3, false), Fate::Delivered);
        assert_eq!(fate(answered(422), 3, false), Fate::Dead(Reason::RefusedByReceiver));
        assert_eq!(fate(answered(410), 3, false), Fate::Disable);
    }

    #[test]
    fn a_refused_address_is_never_an_attempt() {
        for number in 1..5 {
            let refused = Ending::Failed(Failure::Refused("10.0.0.1".into()));
            assert_eq!(decided(refused, number, false), (Health::Refused, Fate::Parked));
        }
    }

    #[test]
    fn final_answers_are_final_at_any_attempt_and_leave_the_breaker_alone() {
        for probe in [false, true] {
            assert_eq!(decided(answered(410), 1, probe), (Health::Well, Fate::Disable));
            assert_eq!(decided(answered(400), 1, probe), (Health::Well, Fate::Dead(Reason::RefusedByReceiver)));
        }
    }

    #[test]
    fn retry_after_reaches_both_the_ladder_and_the_breaker() {
        let ending = Ending::Answered { status: 429, retry_after: Some(30 * SECOND) };
        let expected = (Health::Ill { retry_after: Some(30 * SECOND) }, Fate::Later(60 * SECOND));
        assert_eq!(decided(ending, 1, false), expected);
    }
}
