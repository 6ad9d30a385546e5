//! Logs, on standard error, for people or as JSON.
//!
//! Rules:
//! - `RUST_LOG` wins over the settings where it is set.
//! - lapin is silent unless the filter names it: what it reports is said by us, once. Its message that a broker
//!   returned a message holds the whole body, and its finest levels hold frames, so these are never let through:
//!   values of variables are not logged, whatever the filter.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat};

/// Starts logging. A second call changes nothing.
pub fn init(log: &Log) {
    let directives = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let directives = with_quiet_client(directives.as_deref().unwrap_or(&log.level));
    let filter = EnvFilter::new(directives).and(filter_fn(is_free_of_values));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    // An error means that a program which embeds this library logs already.
    let _ = match log.format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
        LogFormat::Human => {
            registry.with(layer.with_ansi(std::io::stderr().is_terminal()).with_filter(filter)).try_init()
        }
    };
}

fn with_quiet_client(directives: &str) -> String {
    if directives.contains("lapin") { directives.to_owned() } else { format!("{directives},lapin=off") }
}

fn is_free_of_values(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    !target.starts_with("lapin") || (*metadata.level() <= Level::INFO && target != "lapin::returned_messages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lapin_is_silent_unless_it_is_named() {
        assert_eq!(with_quiet_client("info"), "info,lapin=off");
        assert_eq!(with_quiet_client("info,lapin=debug"), "info,lapin=debug");
        assert!(EnvFilter::try_new(with_quiet_client("context_injector=debug,warn")).is_ok());
    }

    #[test]
    fn the_clients_lines_that_hold_bodies_never_pass() {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let writer = std::sync::Arc::clone(&seen);
        let make = move || Writer(std::sync::Arc::clone(&writer));
        let filter = EnvFilter::new("trace").and(filter_fn(is_free_of_values));
        let layer = tracing_subscriber::fmt::layer().with_writer(make).with_filter(filter);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(target: "lapin::returned_messages", message = "a secret body");
            tracing::trace!(target: "lapin::channel", frames = "a secret frame");
            tracing::info!("plain");
        });
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert!(text.contains("plain") && !text.contains("secret"), "{text}");
    }

    struct Writer(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
