//! What the relay says about its endpoints: gauges, and a part of the readiness report.
//!
//! An endpoint that gets nothing makes the process *degraded*, never unready: the others are served, and a restart
//! would not help.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::breaker::State;
use super::gate::{Disabled, Gate};
use super::held::Held;
use super::memory::{Gates, Memory};
use super::removed::{self, Removed};
use crate::admin::{Condition, Health};
use crate::broker::Broker;
use crate::broker::topology::{self, Names};
use crate::metrics as names;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Every so many looks the queues' lengths are read, which costs the broker something.
const LENGTHS_EVERY: u32 = 10;
/// The part of the readiness report.
const PART: &str = "relay";

/// Looks at all endpoints.
pub(super) struct Watch {
    pub(super) broker: Broker,
    pub(super) names: Names,
    pub(super) gates: Gates,
    /// Endpoints that their settings make unusable, and why.
    pub(super) unusable: BTreeMap<String, String>,
    /// Where those are remembered that were taken out of the settings.
    pub(super) memory: Option<Memory>,
    /// Those, as last seen.
    pub(super) removed: BTreeMap<String, Removed>,
}

impl Watch {
    /// Looks until `stop`.
    pub(super) async fn keep(mut self, health: Health, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0u32;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            for (endpoint, gate) in &self.gates {
                self.gauge(endpoint, gate);
            }
            if looks.is_multiple_of(LENGTHS_EVERY) {
                stop.run_until_cancelled(self.read_lengths()).await;
                stop.run_until_cancelled(self.look_for_removed()).await;
            }
            health.set(PART, self.condition());
            looks = looks.wrapping_add(1);
        }
    }

    /// Why an endpoint gets nothing, if it gets nothing.
    fn why_not(&self, endpoint: &str, gate: &Gate) -> Option<String> {
        if let Some(error) = self.unusable.get(endpoint) {
            return Some(error.clone());
        }
        if let Some(Disabled { reason, .. }) = gate.disabled() {
            return Some(format!("{endpoint} is disabled: {reason}"));
        }
        let (state, _) = gate.breaker();
        if state == State::Open {
            return Some(format!("{endpoint} is broken and left alone for a while"));
        }
        let Held { event, tries, .. } = gate.held()?;
        Some(format!("{endpoint} is ordered, and the event {event} before the others failed {tries} time(s)"))
    }

    fn condition(&self) -> Condition {
        let mut reasons =
            self.gates.iter().filter_map(|(endpoint, gate)| self.why_not(endpoint, gate)).collect::<Vec<_>>();
        reasons.extend(self.removed.values().map(|removed| removed.advice.clone()));
        if reasons.is_empty() {
            return Condition::Ready;
        }
        reasons.sort();
        Condition::Degraded(format!("events wait in the queues of endpoints: {}", reasons.join("; ")))
    }

    fn gauge(&self, endpoint: &str, gate: &Gate) {
        let label = || endpoint.to_owned();
        let (state, in_flight) = gate.breaker();
        let breaker = match state {
            State::Closed => 0.0,
            State::Open => 1.0,
            State::Probing | State::Ramp(_) => 2.0,
        };
        let disabled = self.unusable.contains_key(endpoint) || gate.disabled().is_some();
        metrics::gauge!(names::WEBHOOK_DISABLED, "endpoint" => label()).set(f64::from(u8::from(disabled)));
        metrics::gauge!(names::WEBHOOK_BREAKER, "endpoint" => label()).set(breaker);
        metrics::gauge!(names::WEBHOOKS_IN_FLIGHT, "endpoint" => label()).set(f64::from(in_flight));
    }

    async fn look_for_removed(&mut self) {
        let Some(memory) = &self.memory else { return };
        let is_configured = |name: &str| self.gates.contains_key(name);
        // Where it cannot be asked, what was known last stands; `relay-memory` says so.
        if memory.serve(self.gates.keys()).await.is_ok()
            && let Ok(removed) = removed::find(memory, &self.broker, &self.names, is_configured).await
        {
            // One whose queue was deleted meanwhile would keep its last figure.
            self.removed.values_mut().for_each(|gone| gone.waiting = 0);
            self.gauge_removed();
            self.removed = removed;
        }
        self.gauge_removed();
    }

    fn gauge_removed(&self) {
        for (endpoint, removed) in &self.removed {
            let waiting = f64::from(removed.waiting);
            metrics::gauge!(names::WEBHOOKS_WAITING, "endpoint" => endpoint.clone()).set(waiting);
            metrics::gauge!(names::WEBHOOKS_PARKED, "endpoint" => endpoint.clone()).set(waiting);
        }
    }

    async fn read_lengths(&self) {
        let connection = self.broker.connection().await;
        for (endpoint, gate) in &self.gates {
            let label = || endpoint.clone();
            let Ok(Some(depth)) = topology::depth(&connection, &self.names.webhooks_of(endpoint)).await else {
                continue;
            };
            let parked = if self.why_not(endpoint, gate).is_some() { depth.ready } else { 0 };
            metrics::gauge!(names::WEBHOOKS_WAITING, "endpoint" => label()).set(f64::from(depth.ready));
            metrics::gauge!(names::WEBHOOKS_PARKED, "endpoint" => label()).set(f64::from(parked));
        }
    }
}
