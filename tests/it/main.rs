//! The promises, one file each, kept against the real RabbitMQ and Redis by the real binary as a real process.
//!
//! The vocabulary is in `world` and its rooms; a promise reads as what a producer, a subscriber, an operator or
//! another writer does and sees. Nothing sleeps: a test waits for facts, with a limit ([`world::eventually`]).
//!
//! `TEST_SERVERS=containers` runs all of it against containers instead of the machine's own servers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; the lints cannot tell the harness from production code"
)]

mod support;
mod world;

mod applies_a_job;
mod broker;
mod chaos;
mod delivers_webhooks;
mod drains_on_sigterm;
mod ends_quietly;
mod exactly_once_under_kill;
mod folds_and_orders;
mod foreign_clients;
mod goes_on_without_redis;
mod holds_the_hash_chain;
mod injects_directly;
mod injects_jobs;
mod leaves_nothing_behind;
mod looks_into_dead_letters;
mod map_is_true;
mod readme_is_true;
mod reads_illegible_messages;
mod rejects_bad_input;
mod relay;
mod repairs_dead_letters;
mod replays_dead_letters;
mod resolves_conflicts;
mod runbook_explains;
mod says_what_cannot_be_known;
mod schemas_agree;
mod settings_are_explained;
mod shares_bots_out;
mod shows_itself;
mod speaks_cognigy;
mod starts_without_services;
mod takes_over;
mod topology_differs;
mod trusts_the_machine;
mod unroutable_waits;
mod verifies_the_audit;
