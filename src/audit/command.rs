//! `audit verify`, `audit tail`, `audit export`.

use std::io::{BufRead, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use ed25519_dalek::VerifyingKey;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::checkpoint;
use super::report;
use super::select::{Select, time};
use super::stream::Reader;
use super::verify::{Report, Verifier};
use crate::broker::topology::Names;
use crate::broker::{Broker, Offset};
use crate::cli::EXIT_DIFFERENCE;
use crate::cli::output::{printable, say, written};
use crate::config::Config;

/// How long a command waits for RabbitMQ.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// `audit …`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Checks hashes, links, numbers and signed checkpoints; exit code 3 where something is wrong
    ///
    /// Reads the stream up to its present end, or JSON lines as `audit export` writes them. That the oldest events
    /// are no longer kept is told and is no fault.
    Verify(VerifyArgs),
    /// Follows the stream: one line per event, until it is interrupted
    Tail(TailArgs),
    /// Prints the events as they are stored, byte for byte, one a line
    Export(ExportArgs),
}

/// `audit verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// JSON lines; "-" is standard input [default: the stream]
    file: Option<String>,
    /// Public key of the checkpoints (PEM); several while keys change [default: that of audit.signing_key]
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `audit tail`.
#[derive(Debug, clap::Args)]
pub struct TailArgs {
    #[command(flatten)]
    select: Select,
    /// The events as they are stored, one a line
    #[arg(long)]
    json: bool,
}

/// `audit export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    #[command(flatten)]
    select: Select,
    /// Before this time (2026-11-23T10:00:00Z), or this long ago (90s, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

/// Runs `audit …`.
///
/// # Errors
/// RabbitMQ cannot be reached, the stream is not there, a file cannot be read.
pub async fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    if let Command::Verify(args) = &command
        && let Some(file) = &args.file
    {
        let mut verifier = Verifier::new(keys(args, &config)?);
        read_lines(file, &mut verifier)?;
        return tell(&verifier.finish(false), args.json, "line");
    }
    let broker = Broker::start(&config.amqp, "context-injector audit", CancellationToken::new());
    broker.connection_within(CONNECT_WAIT).await?;
    let stream = Names::new(&config.amqp.prefix).audit();
    let done = match command {
        Command::Verify(args) => verify(&args, &config, &broker, stream).await,
        Command::Tail(args) => tail(&args, &broker, stream).await,
        Command::Export(args) => export(&args, &broker, stream).await,
    };
    broker.close().await;
    done
}

fn keys(args: &VerifyArgs, config: &Config) -> anyhow::Result<Vec<VerifyingKey>> {
    if args.public_key.is_empty() {
        return Ok(config.audit.notary.iter().map(|notary| notary.key.verifying_key()).collect());
    }
    let read = |path: &PathBuf| {
        let pem = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        checkpoint::public_key(&pem).map_err(|error| anyhow!("{} {error}", path.display()))
    };
    args.public_key.iter().map(read).collect()
}

fn read_lines(file: &str, verifier: &mut Verifier) -> anyhow::Result<()> {
    let source: Box<dyn BufRead> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        _ => {
            let opened = std::fs::File::open(file).with_context(|| format!("cannot open {file:?}"))?;
            Box::new(std::io::BufReader::new(opened))
        }
    };
    for (number, line) in (1..).zip(source.split(b'\n')) {
        let line = line.with_context(|| format!("cannot read {file:?}"))?;
        if !line.trim_ascii().is_empty() {
            verifier.take(number, &line);
        }
    }
    Ok(())
}

async fn verify(args: &VerifyArgs, config: &Config, broker: &Broker, stream: String) -> anyhow::Result<ExitCode> {
    let mut verifier = Verifier::new(keys(args, config)?);
    let mut begins_at = None;
    let mut reader = Reader::open(broker, stream, Offset::First).await?;
    let take = |offset, body: &bytes::Bytes| {
        begins_at.get_or_insert(offset);
        verifier.take(offset, body);
        Ok(())
    };
    reader.read_to_end(take).await?;
    // What was let go is always from the beginning on.
    tell(&verifier.finish(begins_at == Some(0)), args.json, "offset")
}

fn tell(report: &Report, as_json: bool, place: &str) -> anyhow::Result<ExitCode> {
    if as_json {
        let mut row = serde_json::to_value(report)?;
        row["intact"] = json!(report.fault_count == 0);
        row["places_are"] = json!(place);
        say!("{row}")?;
    } else {
        let mut text = Vec::new();
        report::print(&mut text, report, place)?;
        say!("{}", String::from_utf8_lossy(&text).trim_end())?;
    }
    Ok(if report.fault_count == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENCE) })
}

async fn tail(args: &TailArgs, broker: &Broker, stream: String) -> anyhow::Result<ExitCode> {
    let from = args.select.read_from().map_or(Offset::Next, Offset::Since);
    let mut reader = Reader::open(broker, stream, from).await?;
    loop {
        let (_, body) = reader.next().await?;
        let event = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        if !args.select.matches(&event, None) {
            continue;
        }
        let mut out = std::io::stdout().lock();
        if args.json {
            written(write_line(&mut out, &body))?;
        } else {
            written(writeln!(out, "{}", line_of(&event)))?;
        }
        written(out.flush())?;
    }
}

async fn export(args: &ExportArgs, broker: &Broker, stream: String) -> anyhow::Result<ExitCode> {
    let from = args.select.read_from().map_or(Offset::First, Offset::Since);
    let mut reader = Reader::open(broker, stream, from).await?;
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let mut left_out = 0_u64;
    let each = |offset, body: &bytes::Bytes| {
        let event = serde_json::from_slice::<Value>(body).unwrap_or_default();
        if !args.select.matches(&event, args.until) {
            return Ok(());
        }
        if body.contains(&b'\n') {
            // A writer makes no such event, and it would be two lines.
            left_out += 1;
            eprintln!("left out: the message at offset {offset} has several lines, so it is no event");
            return Ok(());
        }
        written(write_line(&mut out, body))
    };
    reader.read_to_end(each).await?;
    written(out.flush())?;
    Ok(if left_out == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENCE) })
}

fn write_line(out: &mut impl std::io::Write, body: &[u8]) -> std::io::Result<()> {
    out.write_all(body)?;
    out.write_all(b"\n")
}

/// An event in a line for people.
fn line_of(event: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), printable);
    let (time, data) = (text(&event["time"]), &event["data"]);
    if event["type"] == checkpoint::TYPE {
        let ended = if data["final"] == true { ", the writer ended" } else { "" };
        return format!("{time}  checkpoint  writer {} signed up to {}{ended}", text(&data["writer"]), data["seq"]);
    }
    if let Some(action) = data["action"].as_str() {
        let (by, why) = (text(&data["by"]), text(&data["why"]));
        return format!("{time}  dead-letters {}  {}  by {by}: {why}", printable(action), text(&data["letter"]));
    }
    let reason = &data["reason"];
    let told = match (reason["code"].as_str(), reason["text"].as_str()) {
        (Some(code), Some(text)) => format!("  {}: {}", printable(code), printable(text)),
        _ => String::new(),
    };
    let repeat = if data["repeat"] == true { " (repeat)" } else { "" };
    format!(
        "{time}  {}  {}{repeat}  {}  {}{told}",
        text(&data["bot"]),
        text(&data["verdict"]),
        text(&data["conversation_id"]),
        text(&data["job_id"])
    )
}
