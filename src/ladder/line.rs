//! One conversation's line as a worker remembers it. Pure: the time is a parameter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::SLACK;
use super::climb::Climb;
use crate::job::JobId;

/// Jobs of a batch and the rung that they must go to; `None`: they may be worked on.
pub(super) type Judged = HashMap<JobId, Option<usize>>;

/// One conversation's line as this worker remembers it. Times in microseconds since 1970, those of climbs in
/// milliseconds.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub places: BTreeMap<JobId, Place>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub order: u64,
    pub rung: usize,
    pub ends: u64,
    pub since: u64,
    /// Whether Redis has it too.
    pub shared: bool,
}

impl Line {
    pub fn is_used(&self, now: u64) -> bool {
        self.places.values().any(|place| now < place.ends)
    }

    pub fn forget_expired(&mut self, now: u64) {
        self.places.retain(|_, place| now < place.ends);
    }

    pub fn order(&self, job: &JobId) -> Option<u64> {
        self.places.get(job).map(|place| place.order)
    }

    /// A job that comes from a rung has the place that its message tells, whoever gave it.
    pub fn learn(&mut self, job: &JobId, climb: Climb, now: u64, shared: bool) {
        let Climb { since, rung, order } = climb;
        let ends = now.saturating_add(micros_of(SLACK));
        let place = self.places.entry(job.clone()).or_insert(Place { order, rung, ends, since, shared });
        place.order = place.order.min(order);
    }

    /// Redis has the place of that climb now.
    pub fn is_shared(&mut self, job: &JobId, since: u64) {
        if let Some(place) = self.places.get_mut(job).filter(|place| place.since == since) {
            place.shared = true;
        }
    }

    /// Order and rung of the one right before a job, except those of the batch that may go themselves; those that may
    /// not are about to climb. The job's own order may be known better elsewhere.
    pub fn before(&self, job: &JobId, own: Option<u64>, judged: &Judged, unshared_only: bool) -> Option<(u64, usize)> {
        let own = own.or_else(|| self.order(job)).unwrap_or(u64::MAX);
        let others = self.places.iter().filter(|(other, _)| *other != job);
        let before = others.filter(|(_, place)| place.order < own && !(unshared_only && place.shared));
        let rung = |(other, place): (&JobId, &Place)| match judged.get(other) {
            None => Some((place.order, place.rung)),
            Some(stays) => stays.map(|rung| (place.order, rung)),
        };
        before.filter_map(rung).max()
    }

    /// Who is before a job that comes back now, went onto the same rung before it and does not come back with it is not
    /// in line any more.
    pub fn forget_gone(&mut self, job: &JobId, climb: Option<Climb>, here: &HashSet<&JobId>) {
        let (Some(climb), Some(own)) = (climb, self.order(job)) else { return };
        self.places.retain(|other, place| {
            let came_before = place.rung == climb.rung && place.since <= climb.since;
            !came_before || place.order >= own || here.contains(other)
        });
    }

    /// Returns the order of the place.
    pub fn take(
        &mut self,
        job: &JobId,
        shared: Option<u64>,
        rung: usize,
        now: u64,
        lasts: Duration,
        since: u64,
    ) -> u64 {
        let last = self.places.values().map(|place| place.order).max().unwrap_or_default();
        let order = shared.or(self.order(job)).unwrap_or(now.max(last + 1));
        let ends = now.saturating_add(micros_of(lasts));
        self.places.insert(job.clone(), Place { order, rung, ends, since, shared: shared.is_some() });
        order
    }
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
