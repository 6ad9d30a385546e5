//! The dialect `cognigy-v2`: context injection into sessions, and profiles. It exposes no version.

use super::answer::{Reply, problem};
use super::dispatch::Received;
use super::exchange::Exchange;

/// The name of a profile among the conversations.
pub(super) fn profile(id: &str) -> String {
    format!("profile/{id}")
}

/// Serves sessions and profiles.
pub(super) fn serve(exchange: &Exchange, _received: &Received) -> Reply {
    problem(exchange, 404, "no_such_path", "this dialect is not served yet")
}
