//! `context-injector receiver`: the receiver as a process of its own, for trying the relay over a network.
//!
//! Each delivery is one line of JSON on standard output: the event's id, what is wrong with the signature if
//! anything, the status it was answered with, and the event. Nothing is kept.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::{Delivery, Receiver};

/// Arguments of `receiver`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// The secret that deliveries must be signed with: whsec_ and base64
    #[arg(long, env = "RECEIVER_SECRET", hide_env_values = true)]
    secret: SecretString,
}

/// Receives until SIGTERM or SIGINT.
///
/// # Errors
/// The secret has another form, or the address cannot be bound.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let receiver = Receiver::listen(args.listen, args.secret.expose_secret(), Some(print)).await;
    let receiver = receiver.with_context(|| format!("cannot receive webhooks on {}", args.listen))?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "receiver listening on {}", receiver.url())?;
        out.flush()?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn print(delivery: &Delivery) {
    // Whoever read it may be gone; the deliveries are answered all the same.
    let _ = writeln!(std::io::stdout(), "{}", line(delivery));
}

fn line(delivery: &Delivery) -> serde_json::Value {
    let Delivery { id, fault, event, answered, .. } = delivery;
    serde_json::json!({ "webhook_id": id, "fault": fault, "answered": answered, "event": event })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_one_line_that_says_what_is_wrong_with_it() {
        let delivery = Delivery {
            id: "id-1".into(),
            timestamp: "1".into(),
            content_type: "text/plain".into(),
            fault: Some("no signature fits"),
            event: serde_json::json!({ "text": "two\nlines" }),
            answered: 401,
        };
        let text = line(&delivery).to_string();
        assert!(text.contains("no signature fits") && text.contains("401") && text.contains("id-1"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
