//! Metrics.

/// Connections to RabbitMQ that ended and were made again.
pub const BROKER_RECONNECTS: &str = "context_injector_broker_reconnects_total";

/// Tries of webhooks; labels `endpoint`, `result` (`delivered`, `refused`, or why there was no answer).
pub const WEBHOOK_TRIES: &str = "context_injector_webhook_tries_total";
/// Duration of a try up to the status, in seconds; label `endpoint`.
pub const WEBHOOK_TRY_SECONDS: &str = "context_injector_webhook_try_seconds";
/// From the verdict to the receiver's success, in seconds; label `endpoint`.
pub const WEBHOOK_LAG_SECONDS: &str = "context_injector_webhook_lag_seconds";
/// Webhooks that became dead letters; labels `endpoint`, `reason`.
pub const WEBHOOKS_GIVEN_UP: &str = "context_injector_webhooks_given_up_total";
/// Events that wait in an endpoint's queue; label `endpoint`.
pub const WEBHOOKS_WAITING: &str = "context_injector_webhooks_waiting";
/// Those of them that wait because the endpoint is disabled or broken; label `endpoint`.
pub const WEBHOOKS_PARKED: &str = "context_injector_webhooks_parked";
/// Tries under way; label `endpoint`.
pub const WEBHOOKS_IN_FLIGHT: &str = "context_injector_webhooks_in_flight";
/// The breaker of an endpoint: 0 closed, 1 open, 2 probing or ramping up; label `endpoint`.
pub const WEBHOOK_BREAKER: &str = "context_injector_webhook_breaker";
/// 1 while an endpoint is disabled, by a 410, an operator or its settings; label `endpoint`.
pub const WEBHOOK_DISABLED: &str = "context_injector_webhook_disabled";
/// Records of tries that were not kept.
pub const WEBHOOK_RECORDS_DROPPED: &str = "context_injector_webhook_records_dropped_total";
