//! How long it takes from the end of a fault to the next outcome. Pure: instants in, durations out.
//!
//! Faults overlap here, so a wait that another outage falls into is counted from the end of that one: while the
//! broker is away nobody could have told anything.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Fault;

/// A fault that struck.
#[derive(Debug, Clone, Copy)]
pub struct Struck {
    pub fault: Fault,
    pub from: Instant,
    pub until: Instant,
    /// The same as `until`, in milliseconds since 1970.
    pub ended: u64,
}

impl Struck {
    /// Whether Redis forgot everything.
    pub fn wipes(&self) -> bool {
        matches!(self.fault, Fault::RedisWiped | Fault::RedisAway)
    }

    /// Whether a worker lost its queue, and with it what it knew of those who wait.
    pub fn cuts_off(&self) -> bool {
        use Fault::*;
        matches!(
            self.fault,
            WorkerKilled
                | WorkerTerminated
                | WorkerPaused
                | WorkerSuspended
                | BrokerKilled
                | BrokerAway
                | OneFromBroker
                | AllFromBroker
                | NodeBriefly
                | NodeInMinority
        )
    }

    /// Whether nothing can be told while it lasts, whoever works.
    fn is_outage(&self) -> bool {
        use Fault::*;
        matches!(self.fault, BrokerKilled | BrokerAway | Throttled | AllFromBroker | AllFromApi)
    }
}

/// By kind of fault, the longest time without a new outcome from its start to the first one after its end, shortest
/// first: how long nobody got anything, whoever went on working.
pub fn silences(struck: &[Struck], outcomes: &[Instant]) -> BTreeMap<Fault, Vec<Duration>> {
    let mut silences: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    for fault in struck {
        let (first, last) =
            (outcomes.partition_point(|at| *at <= fault.from), outcomes.partition_point(|at| *at <= fault.until));
        // Behind the last outcome nothing was left to do.
        let Some(told) = outcomes.get(first..=last) else { continue };
        let before = std::iter::once(&fault.from).chain(told);
        let longest = before.zip(told).map(|(before, after)| *after - *before).max().unwrap_or_default();
        silences.entry(fault.fault).or_default().push(longest);
    }
    for all in silences.values_mut() {
        all.sort();
    }
    silences
}

/// The times by kind of fault, shortest first. `outcomes` are the instants of new outcomes, in order.
pub fn times(struck: &[Struck], outcomes: &[Instant]) -> BTreeMap<Fault, Vec<Duration>> {
    let mut times: BTreeMap<Fault, Vec<Duration>> = BTreeMap::new();
    for fault in struck {
        // Behind the last outcome nothing was left to do.
        if let Some(time) = recovery(fault.until, struck, outcomes) {
            times.entry(fault.fault).or_default().push(time);
        }
    }
    for all in times.values_mut() {
        all.sort();
    }
    times
}

fn recovery(mut since: Instant, struck: &[Struck], outcomes: &[Instant]) -> Option<Duration> {
    loop {
        let next = *outcomes.get(outcomes.partition_point(|at| *at <= since))?;
        let within = |outage: &&Struck| outage.is_outage() && outage.from <= next && outage.until > since;
        match struck.iter().filter(within).map(|outage| outage.until).filter(|until| *until <= next).max() {
            Some(later) => since = later,
            None => return Some(next - since),
        }
    }
}

#[test]
fn an_outage_that_falls_into_the_wait_does_not_count() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let struck = |fault, from, until| Struck { fault, from: at(from), until: at(until), ended: 0 };
    let kill = struck(Fault::WorkerKilled, 10, 10);
    let of = |struck: &[Struck], outcomes: &[Instant]| {
        times(struck, outcomes).remove(&Fault::WorkerKilled).unwrap_or_default()
    };
    assert_eq!(of(&[kill], &[at(1), at(12), at(13)]), [Duration::from_secs(2)]);
    let away = struck(Fault::BrokerAway, 11, 20);
    assert_eq!(of(&[kill, away], &[at(1), at(21)]), [Duration::from_secs(1)]);
    let redis = struck(Fault::RedisAway, 11, 20);
    assert_eq!(of(&[kill, redis], &[at(1), at(21)]), [Duration::from_secs(11)]);
    assert!(of(&[kill], &[at(1)]).is_empty());
}

#[test]
fn a_silence_is_counted_from_the_start_of_a_fault_to_the_first_outcome_after_its_end() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let cut = Struck { fault: Fault::OneFromBroker, from: at(10), until: at(20), ended: 0 };
    let of = |outcomes: &[Instant]| silences(&[cut], outcomes).remove(&Fault::OneFromBroker).unwrap_or_default();
    assert_eq!(of(&[at(9), at(12), at(19), at(21), at(40)]), [Duration::from_secs(7)]);
    assert_eq!(of(&[at(1), at(30), at(31)]), [Duration::from_secs(20)]);
    assert!(of(&[at(1), at(12)]).is_empty());
}
