//! `context-injector sandbox`: its arguments, and its life until a signal.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::faults::Faults;
use super::second_writer::SecondWriter;
use super::settings::{ConflictStatus, RetryAfter, Settings, V2Merge, V2Settings, VersionForm};
use super::{Sandbox, start};

/// Arguments of `context-injector sandbox`.
///
/// Serves `context-v1` (`/api/v1/…`) and `cognigy-v2` (`/new/v2.0/…`) on one port until SIGTERM or SIGINT. The control
/// interface is under `/_sandbox/`: health, faults, second-writer, conversations, history, stats, tokens/revoke.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Box<Flags>,
}

#[derive(Debug, clap::Args)]
struct Flags {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// OAuth2 client id of both dialects
    #[arg(long, default_value = "sandbox")]
    client_id: String,

    /// OAuth2 client secret of both dialects
    #[arg(long, default_value = "sandbox-secret", env = "SANDBOX_CLIENT_SECRET", hide_env_values = true)]
    client_secret: String,

    /// Key accepted in X-API-Key (cognigy-v2)
    #[arg(long, default_value = "sandbox-key", env = "SANDBOX_API_KEY", hide_env_values = true)]
    api_key: String,

    /// Life of an access token: seconds, or as "15m"
    #[arg(long, default_value = "1h", value_parser = duration)]
    token_ttl: Duration,

    /// Requests per second of context-v1; 0 is unlimited
    #[arg(long, default_value_t = 100.0)]
    rate: f64,

    /// Requests admitted at once before the rate counts; 0 is one second's worth
    #[arg(long, default_value_t = 0)]
    burst: u32,

    /// The form of Retry-After
    #[arg(long, value_enum, default_value_t = RetryAfter::Seconds)]
    retry_after: RetryAfter,

    /// Where and how answers carry the version
    #[arg(long, value_enum, default_value_t = VersionForm::ContextVersion)]
    version_form: VersionForm,

    /// The status of a failed If-Match
    #[arg(long, value_enum, default_value_t = ConflictStatus::Conflict)]
    conflict: ConflictStatus,

    /// Refuse a PATCH without If-Match with 428
    #[arg(long)]
    require_if_match: bool,

    /// Unknown conversations are 404 instead of coming into being
    #[arg(long)]
    no_auto_create: bool,

    /// Ids of conversations that come into being on their own
    #[arg(long, default_value = "^conv_[0-9a-f]+$", value_name = "REGEX")]
    conversation_id_pattern: String,

    /// Bytes of one serialised value
    #[arg(long, default_value_t = 10_240)]
    max_value_bytes: usize,

    /// Bytes of one request body of context-v1
    #[arg(long, default_value_t = 524_288)]
    max_payload_bytes: usize,

    /// Keep numbers as they were written, not as JavaScript would keep them
    #[arg(long)]
    exact_numbers: bool,

    /// Leave `scope` out of a read where it is `conversation`
    #[arg(long)]
    omit_default_scope: bool,

    /// Faults: a file, or JSON as `{"applied_then_500": 0.015}`; GET /_sandbox/faults shows all
    #[arg(long, value_name = "FILE|JSON")]
    faults: Option<String>,

    /// The second writer: a file, or JSON as `{"enabled": true, "writes_per_second": 20}`
    #[arg(long, value_name = "FILE|JSON")]
    second_writer: Option<String>,

    /// What every draw depends on
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Entries that the history keeps
    #[arg(long, default_value_t = 1_000_000)]
    history_entries: usize,

    /// Write the history here when stopping, as JSON lines
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,

    /// Requests per five minutes of cognigy-v2; 0 is unlimited
    #[arg(long, default_value_t = 1_000)]
    v2_requests: u32,

    /// How an injected context of cognigy-v2 meets the stored one
    #[arg(long, value_enum, default_value_t = V2Merge::Shallow)]
    v2_merge: V2Merge,

    /// cognigy-v2 stores a null instead of removing the key
    #[arg(long)]
    v2_keep_null: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An argument is wrong, the address cannot be bound, or the history cannot be written.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { flags } = args;
    let (history, listen) = (flags.history.clone(), flags.listen);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let sandbox = start(flags.settings()?).await.with_context(|| format!("cannot serve the sandbox on {listen}"))?;
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "sandbox listening on {}", sandbox.url())?;
        out.flush()?;
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(path) = history {
        write_history(&sandbox, &path).with_context(|| format!("cannot write the history to {}", path.display()))?;
    }
    sandbox.stop().await;
    Ok(ExitCode::SUCCESS)
}

fn write_history(sandbox: &Sandbox, path: &std::path::Path) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for entry in sandbox.history() {
        serde_json::to_writer(&mut file, &entry)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(())
}

impl Flags {
    fn settings(self) -> anyhow::Result<Settings> {
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("--rate {}: a number from 0 (unlimited) on", self.rate);
        }
        let faults = match &self.faults {
            None => Faults::none(),
            Some(given) => Faults::from_json(&json(given)?).map_err(|error| anyhow::anyhow!("--faults: {error}"))?,
        };
        let second_writer = match &self.second_writer {
            None => SecondWriter::default(),
            Some(given) => serde_json::from_str(&json(given)?).context("--second-writer")?,
        };
        Ok(Settings {
            listen: self.listen,
            client_id: self.client_id,
            client_secret: self.client_secret,
            api_key: self.api_key,
            token_ttl: self.token_ttl,
            rate: self.rate,
            burst: self.burst,
            retry_after: self.retry_after,
            version_form: self.version_form,
            conflict: self.conflict,
            require_if_match: self.require_if_match,
            auto_create: !self.no_auto_create,
            conversation_id_pattern: self.conversation_id_pattern,
            max_value_bytes: self.max_value_bytes,
            max_payload_bytes: self.max_payload_bytes,
            javascript_numbers: !self.exact_numbers,
            omit_default_scope: self.omit_default_scope,
            history_entries: self.history_entries,
            seed: self.seed,
            faults,
            second_writer,
            v2: V2Settings {
                requests: self.v2_requests,
                merge: self.v2_merge,
                keep_null: self.v2_keep_null,
                ..V2Settings::default()
            },
            ..Settings::default()
        })
    }
}

/// The JSON itself, or what the file holds.
fn json(given: &str) -> anyhow::Result<String> {
    if given.trim_start().starts_with('{') {
        return Ok(given.to_owned());
    }
    std::fs::read_to_string(given)
        .with_context(|| format!("cannot read {given:?} (a file, or JSON that begins with '{{')"))
}

fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(parsed).map_err(|_| "a duration is not negative".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn settings(line: &[&str]) -> anyhow::Result<Settings> {
        let line = Line::try_parse_from(std::iter::once(&"sandbox").chain(line))?;
        line.args.flags.settings()
    }

    #[test]
    fn without_arguments_the_settings_are_the_defaults_on_port_8080() {
        let (given, default) = (settings(&[]).unwrap(), Settings::default());
        assert_eq!(given.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((given.client_id, given.client_secret), (default.client_id, default.client_secret));
        assert_eq!((given.rate, given.burst, given.token_ttl), (default.rate, default.burst, default.token_ttl));
        assert_eq!(
            (given.max_value_bytes, given.max_payload_bytes),
            (default.max_value_bytes, default.max_payload_bytes)
        );
        assert_eq!((given.version_form, given.conflict), (default.version_form, default.conflict));
        assert_eq!((given.faults, given.second_writer, given.v2), (default.faults, default.second_writer, default.v2));
        assert_eq!(given.conversation_id_pattern, default.conversation_id_pattern);
        assert_eq!(
            (given.history_entries, given.seed, given.api_key),
            (default.history_entries, default.seed, default.api_key)
        );
        assert!(given.auto_create && given.javascript_numbers && !given.require_if_match && !given.omit_default_scope);
    }

    #[test]
    fn arguments_are_read_in_the_forms_that_the_help_names() {
        let given = settings(&[
            "--token-ttl=15m",
            "--conflict=412",
            "--version-form=etag",
            "--retry-after=alternate",
            "--faults={\"applied_then_500\": 0.5}",
            "--second-writer={\"enabled\": true, \"conversations\": [\"conv_1\"]}",
        ])
        .unwrap();
        assert_eq!(given.token_ttl, Duration::from_secs(900));
        assert_eq!((given.conflict, given.version_form), (ConflictStatus::PreconditionFailed, VersionForm::Etag));
        assert!(given.second_writer.enabled && given.faults.rules.len() == 1);
        assert_eq!(settings(&["--token-ttl=90"]).unwrap().token_ttl, Duration::from_secs(90));
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (argument, part) in [
            ("--rate=-1", "--rate"),
            ("--faults={\"x\": 1}", "--faults"),
            ("--faults=/no/such/file", "/no/such/file"),
            ("--second-writer={\"on\": true}", "--second-writer"),
            ("--token-ttl=-5s", "negative"),
        ] {
            let error = format!("{:#}", settings(&[argument]).err().unwrap());
            assert!(error.contains(part), "{argument}: {error}");
        }
    }
}
