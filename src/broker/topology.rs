//! The exchanges and queues: their names, what they are, declaring and comparing them.
//!
//! Rules:
//! - [`plan`] decides, as values, without a broker; [`declare`] and [`check()`] only carry it out.
//! - Arguments of a queue cannot be changed once it exists. Where the broker has other ones, the answer is one
//!   sentence that names the argument, both values and the ways out.
//! - A rung of a ladder has a fanout exchange of its own: published through the default exchange, a message would
//!   come back with the name of the rung as routing key instead of its bot's.
//! - `x-overflow = reject-publish` stands beside every at-least-once dead-lettering, because RabbitMQ quietly
//!   falls back to at-most-once without it. No queue has a length limit, so nothing is ever rejected.
//! - Targets of dead-lettering have a delivery limit of a million: RabbitMQ 4 drops at 20 by default, and an
//!   operator who looks at a message has it delivered.
//!
//! AMQP cannot list bindings: a filter that was taken out of `events` stays bound until it is unbound by hand or
//! the queue is deleted. The relay therefore looks at the routing key once more, with [`matches()`].

mod apply;
mod command;
mod names;
mod pattern;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::config::Config;

pub use apply::{Depth, Difference, Error, Finding, Match, check, declare, depth};
pub use command::{Command, run};
pub use names::Names;
pub use pattern::matches;

/// Deliveries after which a message counts as what crashes its consumer. Set, because the defaults differ
/// between versions, and because only with a limit does a returned message keep its place (RabbitMQ 3.10).
pub const DELIVERY_LIMIT: i64 = 100;
/// The same for queues that people look into.
pub const BROWSE_LIMIT: i64 = 1_000_000;

/// What a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Taking jobs.
    Worker,
    /// Delivering webhooks.
    Relay,
    /// Both.
    All,
}

/// One thing to declare.
#[derive(Debug, Clone, PartialEq)]
pub enum Declaration {
    /// A durable exchange.
    Exchange {
        /// Its name.
        name: String,
        /// Its kind.
        kind: ExchangeKind,
        /// Its arguments.
        arguments: FieldTable,
    },
    /// A durable queue or stream.
    Queue {
        /// Its name.
        name: String,
        /// Its arguments.
        arguments: FieldTable,
    },
    /// A queue bound to an exchange.
    Binding {
        /// The queue.
        queue: String,
        /// The exchange.
        exchange: String,
        /// Routing key or pattern.
        key: String,
    },
}

/// Everything that `part` needs, in an order in which it can be declared.
#[must_use]
pub fn plan(config: &Config, part: Part) -> Vec<Declaration> {
    let names = Names::new(&config.amqp.prefix);
    let mut plan = Plan(Vec::new());
    // Outcomes are written by one part and read by the other; whoever starts first declares them.
    plan.exchange(names.outcomes(), ExchangeKind::Topic, &[]);
    if part != Part::Relay {
        plan_jobs(&mut plan, config, &names);
    }
    if part != Part::Worker {
        plan_webhooks(&mut plan, config, &names);
    } else {
        // Outcomes of a bot must not be lost to an endpoint whose relay never ran yet.
        plan_endpoints(&mut plan, config, &names);
    }
    plan.0
}

fn plan_jobs(plan: &mut Plan, config: &Config, names: &Names) {
    plan.browsed(names.jobs_unroutable());
    plan.exchange(names.jobs_unroutable(), ExchangeKind::Fanout, &[]);
    plan.bind(names.jobs_unroutable(), names.jobs_unroutable(), "");
    plan.exchange(names.jobs(), ExchangeKind::Direct, &[("alternate-exchange", text(&names.jobs_unroutable()))]);
    plan.browsed(names.jobs_dead());
    plan.browsed(names.jobs_quarantine());
    for bot in config.bots.keys() {
        plan.work_queue(names.jobs_of(bot), &names.jobs_quarantine(), DELIVERY_LIMIT);
        plan.bind(names.jobs_of(bot), names.jobs(), bot);
    }
    for delay in rungs(&config.retry.schedule) {
        plan.rung(names.jobs_retry(delay), delay, &names.jobs());
    }
    let max_bytes = i64::try_from(config.audit.max_bytes).unwrap_or(i64::MAX);
    plan.queue(
        names.audit(),
        &[
            ("x-queue-type", text("stream")),
            ("x-max-age", text(&format!("{}s", config.audit.max_age.as_secs()))),
            ("x-max-length-bytes", AMQPValue::LongLongInt(max_bytes)),
        ],
    );
    plan.bind(names.audit(), names.outcomes(), "#");
}

fn plan_webhooks(plan: &mut Plan, config: &Config, names: &Names) {
    plan_endpoints(plan, config, names);
    plan.browsed(names.webhooks_dead());
    for delay in crate::relay::schedule::Schedule::new(&config.relay.retry_schedule).delays() {
        plan.rung(names.webhooks_retry(delay), delay, &names.webhooks());
    }
}

fn plan_endpoints(plan: &mut Plan, config: &Config, names: &Names) {
    plan.browsed(names.webhooks_quarantine());
    // An endpoint's queue that is gone must not hold up its rungs for the others.
    plan.browsed(names.webhooks_unroutable());
    plan.exchange(names.webhooks_unroutable(), ExchangeKind::Fanout, &[]);
    plan.bind(names.webhooks_unroutable(), names.webhooks_unroutable(), "");
    let alternate = ("alternate-exchange", text(&names.webhooks_unroutable()));
    plan.exchange(names.webhooks(), ExchangeKind::Direct, &[alternate]);
    for endpoint in config.endpoints.values() {
        let queue = names.webhooks_of(&endpoint.name);
        // The event that holds an ordered queue comes back for as long as its receiver is ill, and must not go away
        // before its turn.
        let limit = if endpoint.ordered { BROWSE_LIMIT } else { DELIVERY_LIMIT };
        plan.work_queue(queue.clone(), &names.webhooks_quarantine(), limit);
        plan.bind(queue.clone(), names.webhooks(), &endpoint.name);
        for pattern in &endpoint.events {
            plan.bind(queue.clone(), names.outcomes(), pattern);
        }
    }
}

fn rungs(schedule: &[std::time::Duration]) -> std::collections::BTreeSet<std::time::Duration> {
    schedule.iter().copied().collect()
}

struct Plan(Vec<Declaration>);

impl Plan {
    fn exchange(&mut self, name: String, kind: ExchangeKind, arguments: &[(&str, AMQPValue)]) {
        self.0.push(Declaration::Exchange { name, kind, arguments: table(arguments) });
    }

    fn queue(&mut self, name: String, arguments: &[(&str, AMQPValue)]) {
        self.0.push(Declaration::Queue { name, arguments: table(arguments) });
    }

    fn bind(&mut self, queue: String, exchange: String, key: &str) {
        self.0.push(Declaration::Binding { queue, exchange, key: key.to_owned() });
    }

    /// A queue that one process at a time works on; what crashes its consumers, `limit` times, goes to `quarantine`.
    fn work_queue(&mut self, name: String, quarantine: &str, limit: i64) {
        self.queue(
            name,
            &[
                ("x-queue-type", text("quorum")),
                ("x-single-active-consumer", AMQPValue::Boolean(true)),
                ("x-delivery-limit", AMQPValue::LongLongInt(limit)),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text(quarantine)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ],
        );
    }

    /// A queue that people look into.
    fn browsed(&mut self, name: String) {
        let limit = ("x-delivery-limit", AMQPValue::LongLongInt(BROWSE_LIMIT));
        self.queue(name, &[("x-queue-type", text("quorum")), limit]);
    }

    /// A rung of a ladder: what is published to the exchange `name` comes to `back` after `delay`.
    fn rung(&mut self, name: String, delay: std::time::Duration, back: &str) {
        let millis = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        self.queue(
            name.clone(),
            &[
                ("x-queue-type", text("quorum")),
                ("x-message-ttl", AMQPValue::LongLongInt(millis)),
                ("x-dead-letter-exchange", text(back)),
                ("x-dead-letter-strategy", text("at-least-once")),
                ("x-overflow", text("reject-publish")),
            ],
        );
        self.exchange(name.clone(), ExchangeKind::Fanout, &[]);
        self.bind(name.clone(), name, "");
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(ShortString::from(*name), value.clone());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        let text = format!(
            "[bots.default]\nbase_url = \"https://b.example\"\nclient_id = \"a\"\nclient_secret = \"b\"\n{more}\n\
             [endpoints.analytics]\nurl = \"https://e.example\"\nsecret = \"whsec_AAAA\"\n\
             events = [\"*.applied\", \"default.#\"]\n"
        );
        Config::parse(&text, []).unwrap()
    }

    fn arguments<'a>(plan: &'a [Declaration], queue: &str) -> &'a FieldTable {
        let found = plan.iter().find_map(|declaration| match declaration {
            Declaration::Queue { name, arguments } if name == queue => Some(arguments),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no queue {queue}"))
    }

    fn has_binding(plan: &[Declaration], queue: &str, exchange: &str, key: &str) -> bool {
        plan.contains(&Declaration::Binding { queue: queue.into(), exchange: exchange.into(), key: key.into() })
    }

    #[test]
    fn whoever_binds_or_dead_letters_finds_its_target_declared_before() {
        for part in [Part::Worker, Part::Relay, Part::All] {
            let plan = plan(&config(""), part);
            let mut exchanges = vec![String::new()];
            let mut queues = Vec::new();
            for declaration in &plan {
                match declaration {
                    Declaration::Exchange { name, .. } => exchanges.push(name.clone()),
                    Declaration::Queue { name, arguments } => {
                        let of = |key: &str| arguments.inner().get(key).map(|value| format!("{value:?}"));
                        assert_eq!(
                            of("x-dead-letter-strategy").is_some(),
                            of("x-overflow").is_some(),
                            "{name}: at-least-once needs reject-publish"
                        );
                        queues.push(name.clone());
                    }
                    Declaration::Binding { queue, exchange, .. } => {
                        assert!(queues.contains(queue), "{part:?}: {queue}");
                        assert!(exchanges.contains(exchange), "{part:?}: {exchange}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_bots_queue_and_an_endpoints_queue_are_single_active_with_a_quarantine() {
        let plan = plan(&config(""), Part::All);
        for (queue, quarantine) in [
            ("context.jobs.default", "context.jobs.quarantine"),
            ("context.webhooks.analytics", "context.webhooks.quarantine"),
        ] {
            let arguments = arguments(&plan, queue).inner();
            assert_eq!(arguments.get("x-single-active-consumer"), Some(&AMQPValue::Boolean(true)));
            assert_eq!(arguments.get("x-delivery-limit"), Some(&AMQPValue::LongLongInt(100)));
            assert_eq!(arguments.get("x-dead-letter-routing-key"), Some(&text(quarantine)));
        }
        assert!(has_binding(&plan, "context.jobs.default", "context.jobs", "default"));
        assert!(has_binding(&plan, "context.webhooks.analytics", "context.webhooks", "analytics"));
        assert!(has_binding(&plan, "context.webhooks.analytics", "context.outcomes", "*.applied"));
        assert!(has_binding(&plan, "context.webhooks.analytics", "context.outcomes", "default.#"));
        assert!(has_binding(&plan, "context.audit", "context.outcomes", "#"));
    }

    #[test]
    fn what_holds_an_ordered_queue_may_come_back_as_often_as_it_must() {
        let ordered = "[endpoints.log]\nurl = \"https://l.example\"\nsecret = \"whsec_AAAA\"\n\
                       ordered = true\nmax_in_flight = 1\n";
        let plan = plan(&config(ordered), Part::Relay);
        let limit = |queue: &str| arguments(&plan, queue).inner().get("x-delivery-limit").cloned();
        assert_eq!(limit("context.webhooks.log"), Some(AMQPValue::LongLongInt(1_000_000)));
        assert_eq!(limit("context.webhooks.analytics"), Some(AMQPValue::LongLongInt(100)));
    }

    #[test]
    fn every_rung_keeps_the_routing_key_and_is_declared_once() {
        let plan = plan(&config("[retry]\nschedule = [\"5s\", \"2m\", \"2m\"]"), Part::Worker);
        let rungs = plan.iter().filter(
            |declaration| matches!(declaration, Declaration::Queue { name, .. } if name.contains(".jobs.retry.")),
        );
        assert_eq!(rungs.count(), 2);
        let arguments = arguments(&plan, "context.jobs.retry.2m").inner();
        assert_eq!(arguments.get("x-message-ttl"), Some(&AMQPValue::LongLongInt(120_000)));
        assert_eq!(arguments.get("x-dead-letter-exchange"), Some(&text("context.jobs")));
        assert!(!arguments.contains_key("x-dead-letter-routing-key"));
        assert!(has_binding(&plan, "context.jobs.retry.2m", "context.jobs.retry.2m", ""));
    }

    #[test]
    fn a_worker_needs_the_endpoints_queues_and_a_relay_none_of_the_jobs() {
        let worker = plan(&config(""), Part::Worker);
        assert!(has_binding(&worker, "context.webhooks.analytics", "context.outcomes", "*.applied"));
        let relay = format!("{:?}", plan(&config(""), Part::Relay));
        assert!(!relay.contains("context.jobs"), "{relay}");
    }
}
