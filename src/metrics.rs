//! Every metric: its name, unit, labels and meaning, once, in this file.
//!
//! Rules:
//! - Labels are bounded: names of bots and endpoints from the settings, and words of closed lists. Never an id.
//! - Units are in the names (`_seconds`, `_bytes`), counters end in `_total`.
//! - Requests per job is `requests_total` over `jobs_total`; it needs no metric of its own.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

mod meters;

pub use meters::{JobMeters, Purpose, RequestMeters};

/// How often the recorder is tidied up, so that histograms nobody scrapes do not grow.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// From a fraction of a millisecond (planning) to minutes (queued behind a pause).
const SECONDS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
];
const JOBS_IN_BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
const ENTRIES: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 96.0, 128.0];
const BYTES: &[f64] = &[64.0, 256.0, 512.0, 1_024.0, 2_048.0, 3_072.0, 4_096.0];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

#[derive(Debug, Clone, Copy)]
struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    text: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:expr, $unit:expr, $text:literal;)*) => {
        $(#[doc = $text] pub const $constant: &str = $name;)*
        const ALL: &[Metric] = &[$(Metric { name: $name, kind: $kind, unit: $unit, text: $text }),*];
    };
}

metrics! {
    JOBS = "context_injector_jobs_total", Kind::Counter, Unit::Count,
        "Jobs that reached their verdict; labels bot, verdict (applied, not_applied, unknown).";
    JOB_REASONS = "context_injector_job_reasons_total", Kind::Counter, Unit::Count,
        "Jobs that were not applied, or unknown, by reason code; labels bot, reason.";
    JOB_SECONDS = "context_injector_job_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "From the arrival of a job at the worker to its settlement; label bot.";
    STAGE_SECONDS = "context_injector_stage_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Time in one stage of the pipeline; labels bot, stage (lane, lease, execute, publish).";
    QUEUE_AGE_SECONDS = "context_injector_queue_age_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Age of a job by its timestamp when the worker takes it; label bot.";
    JOBS_WAITING = "context_injector_jobs_waiting", Kind::Gauge, Unit::Count,
        "Jobs that wait in a bot's queue; label bot.";
    JOBS_HELD = "context_injector_jobs_held", Kind::Gauge, Unit::Count,
        "Jobs that this worker holds; label bot.";
    BOTS_ACTIVE = "context_injector_bots_active", Kind::Gauge, Unit::Count,
        "Bots whose jobs come to this worker; for the others it stands by.";
    BATCH_JOBS = "context_injector_batch_jobs", Kind::Histogram(JOBS_IN_BATCH), Unit::Count,
        "Jobs folded into one PATCH; label bot.";
    JOB_RETRIES = "context_injector_job_retries_total", Kind::Counter, Unit::Count,
        "Jobs put onto a rung of the ladder; labels bot, rung.";
    JOBS_REDELIVERED = "context_injector_jobs_redelivered_total", Kind::Counter, Unit::Count,
        "Jobs that the broker delivered before; label bot.";
    DEAD_LETTERS = "context_injector_dead_letters_total", Kind::Counter, Unit::Count,
        "Jobs that became dead letters; labels bot, reason.";

    REQUESTS = "context_injector_requests_total", Kind::Counter, Unit::Count,
        "Requests to the bot's API; labels bot, operation (read, write, token), status (the HTTP status, or timeout, connect, broken).";
    REQUEST_SECONDS = "context_injector_request_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Duration of a request to the bot's API; labels bot, operation.";
    CONFLICTS = "context_injector_conflicts_total", Kind::Counter, Unit::Count,
        "Writes that were refused because somebody else wrote before (409, 412); label bot.";
    REPLANS = "context_injector_replans_total", Kind::Counter, Unit::Count,
        "Batches planned once more on a fresh read; label bot.";
    DUPLICATES = "context_injector_duplicates_total", Kind::Counter, Unit::Count,
        "Messages whose job was found to be applied already; labels bot, witness (ledger, memory).";
    AMBIGUOUS = "context_injector_ambiguous_total", Kind::Counter, Unit::Count,
        "Writes after which it was open whether they had their effect; label bot.";
    TOMBSTONES = "context_injector_tombstones_total", Kind::Counter, Unit::Count,
        "Jobs that were made not applied for ever; label bot.";
    LEDGER_ENTRIES = "context_injector_ledger_entries", Kind::Histogram(ENTRIES), Unit::Count,
        "Entries of a ledger when it is written; label bot.";
    LEDGER_BYTES = "context_injector_ledger_bytes", Kind::Histogram(BYTES), Unit::Bytes,
        "Size of a ledger when it is written; label bot.";
    VERSION_CACHE = "context_injector_version_cache_total", Kind::Counter, Unit::Count,
        "Where a batch found the version it builds on; labels bot, source (memory, redis, read).";

    LIMITER_WAIT_SECONDS = "context_injector_limiter_wait_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Wait for the bot's request budget; label bot.";
    BOT_BREAKER = "context_injector_bot_breaker", Kind::Gauge, Unit::Count,
        "The breaker of a bot: 0 closed, 1 open, 2 probing or ramping up; label bot.";
    BOT_HOLDING = "context_injector_bot_holding", Kind::Gauge, Unit::Count,
        "1 while no work of a bot is started; labels bot, why (breaker_open, throttled, credentials).";
    LEASE_WAIT_SECONDS = "context_injector_lease_wait_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Wait for the lease of a conversation; label bot.";
    LEASES_WITHOUT = "context_injector_leases_without_total", Kind::Counter, Unit::Count,
        "Batches that went on without the lease; labels bot, why (held, redis_away).";
    LEASES_LOST = "context_injector_leases_lost_total", Kind::Counter, Unit::Count,
        "Leases that ran out or were taken while we worked; label bot.";
    REDIS_UP = "context_injector_redis_up", Kind::Gauge, Unit::Count,
        "1 while Redis is connected.";
    BROKER_UP = "context_injector_broker_up", Kind::Gauge, Unit::Count,
        "1 while RabbitMQ is connected and takes messages; label connection.";
    BROKER_RECONNECTS = "context_injector_broker_reconnects_total", Kind::Counter, Unit::Count,
        "Connections to RabbitMQ that ended and were made again.";

    WEBHOOK_TRIES = "context_injector_webhook_tries_total", Kind::Counter, Unit::Count,
        "Tries of webhooks; labels endpoint, result (delivered, refused, or why there was no answer).";
    WEBHOOK_TRY_SECONDS = "context_injector_webhook_try_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "Duration of a try up to the status; label endpoint.";
    WEBHOOK_LAG_SECONDS = "context_injector_webhook_lag_seconds", Kind::Histogram(SECONDS), Unit::Seconds,
        "From the verdict to the receiver's success; label endpoint.";
    WEBHOOKS_GIVEN_UP = "context_injector_webhooks_given_up_total", Kind::Counter, Unit::Count,
        "Webhooks that became dead letters; labels endpoint, reason.";
    WEBHOOKS_WAITING = "context_injector_webhooks_waiting", Kind::Gauge, Unit::Count,
        "Events that wait in an endpoint's queue; label endpoint.";
    WEBHOOKS_PARKED = "context_injector_webhooks_parked", Kind::Gauge, Unit::Count,
        "Those of them that wait because the endpoint is disabled or broken; label endpoint.";
    WEBHOOKS_IN_FLIGHT = "context_injector_webhooks_in_flight", Kind::Gauge, Unit::Count,
        "Tries under way; label endpoint.";
    WEBHOOK_BREAKER = "context_injector_webhook_breaker", Kind::Gauge, Unit::Count,
        "The breaker of an endpoint: 0 closed, 1 open, 2 probing or ramping up; label endpoint.";
    WEBHOOK_DISABLED = "context_injector_webhook_disabled", Kind::Gauge, Unit::Count,
        "1 while an endpoint is disabled, by a 410, an operator or its settings; label endpoint.";
    WEBHOOK_RECORDS_DROPPED = "context_injector_webhook_records_dropped_total", Kind::Counter, Unit::Count,
        "Records of tries that were not kept.";
}

/// Makes the instruments count and describes them; needs a tokio runtime. A second call gives the first recorder.
pub fn install() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
            let handle = recorder.handle();
            // Somebody else's recorder (a program that embeds this library) is left in place.
            if metrics::set_global_recorder(recorder).is_ok() {
                describe();
            }
            tokio::spawn(keep_up(handle.clone()));
            handle
        })
        .clone()
}

async fn keep_up(handle: PrometheusHandle) {
    let mut clock = tokio::time::interval(UPKEEP_EVERY);
    loop {
        clock.tick().await;
        handle.run_upkeep();
    }
}

fn with_buckets(builder: PrometheusBuilder) -> PrometheusBuilder {
    ALL.iter().fold(builder, |builder, metric| match metric.kind {
        Kind::Histogram(buckets) => builder
            .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
            .expect("a constant list of buckets is not empty"),
        Kind::Counter | Kind::Gauge => builder,
    })
}

fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.text),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.text),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.unit, metric.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_kind_and_unit() {
        let names = ALL.iter().map(|metric| metric.name).collect::<BTreeSet<_>>();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("context_injector_"), "{}", metric.name);
            let counter = matches!(metric.kind, Kind::Counter);
            assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
            assert_eq!(metric.name.ends_with("_seconds"), metric.unit == Unit::Seconds, "{}", metric.name);
            assert!(metric.text.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn every_histogram_is_rendered_with_its_buckets() {
        let recorder = with_buckets(PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::histogram!(JOB_SECONDS, "bot" => "default").record(0.02);
            metrics::counter!(JOBS, "bot" => "default", "verdict" => "applied").increment(2);
        });
        let text = handle.render();
        assert!(text.contains("context_injector_job_seconds_bucket{bot=\"default\",le=\"0.025\"} 1"), "{text}");
        assert!(text.contains("context_injector_jobs_total{bot=\"default\",verdict=\"applied\"} 2"), "{text}");
        assert!(text.contains("# HELP context_injector_jobs_total Jobs that reached"), "{text}");
    }
}
