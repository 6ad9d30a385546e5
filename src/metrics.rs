//! Metrics.

/// Connections to RabbitMQ that ended and were made again.
pub const BROKER_RECONNECTS: &str = "context_injector_broker_reconnects_total";
