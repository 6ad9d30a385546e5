//! `dead-letters list` and `dead-letters show`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use jiff::Timestamp;
use serde_json::Value;

use super::browse::Browser;
use super::filter::Filter;
use super::whole::{to_row, value_of};
use super::{Kind, Letter};
use crate::broker::topology::{Names, depth};
use crate::broker::{Broker, Message};
use crate::cli::output::{printable, written};
use crate::config::Config;

/// Rows that a person gets without `--limit`.
const ROWS: usize = 100;

/// `dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    /// Print at most so many letters (100 without --json)
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// One JSON object per letter
    #[arg(long)]
    json: bool,
}

/// `dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// Id of the letter, or its message id
    id: String,
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// `dead-letters export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
}

/// Prints whole letters, one JSON object a line.
pub(super) async fn export(args: &ExportArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    let names = Names::new(&config.amqp.prefix);
    let mut browser = Browser::open(broker, args.kind.queue(&names)).await?;
    let now = Timestamp::now();
    let mut out = std::io::BufWriter::new(std::io::stdout());
    while let Some(incoming) = browser.next().await? {
        let letter = Letter::read(args.kind, &names, &incoming);
        if args.filter.matches(&letter, &incoming.message.body, now) {
            written(writeln!(out, "{}", to_row(args.kind, &letter, &incoming.message)))?;
        }
        browser.leave(incoming.receipt);
    }
    written(out.flush())?;
    browser.close().await?.note();
    Ok(ExitCode::SUCCESS)
}

/// Prints counts by reason, then rows.
pub(super) async fn list(args: &ListArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    let names = Names::new(&config.amqp.prefix);
    let limit = args.limit.unwrap_or(if args.json { usize::MAX } else { ROWS });
    let mut browser = Browser::open(broker, args.kind.queue(&names)).await?;
    let now = Timestamp::now();
    let mut counts = BTreeMap::<String, u64>::new();
    let mut rows = Vec::new();
    let mut looked_at = 0_u64;
    while let Some(incoming) = browser.next().await? {
        looked_at += 1;
        let letter = Letter::read(args.kind, &names, &incoming);
        if args.filter.matches(&letter, &incoming.message.body, now) {
            *counts.entry(letter.reason.clone()).or_default() += 1;
            if rows.len() < limit {
                rows.push(letter);
            }
        }
        browser.leave(incoming.receipt);
    }
    let looked = browser.close().await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        for row in &rows {
            written(writeln!(out, "{}", row.to_json()))?;
        }
    } else {
        let total = counts.values().sum::<u64>();
        written(print_counts(&mut out, args.kind, &names, (total, looked_at), &counts))?;
        written(print_rows(&mut out, args.kind, &rows))?;
        if total > rows.len() as u64 {
            written(writeln!(out, "… and {} more (--limit N)", total - rows.len() as u64))?;
        }
    }
    drop(out);
    if !args.json {
        note_other_kinds(args.kind, &names, broker).await;
    }
    looked.note();
    Ok(ExitCode::SUCCESS)
}

fn print_counts(
    out: &mut impl std::io::Write,
    kind: Kind,
    names: &Names,
    (total, looked_at): (u64, u64),
    counts: &BTreeMap<String, u64>,
) -> std::io::Result<()> {
    let queue = kind.queue(names);
    match (total, looked_at) {
        (_, 0) => return writeln!(out, "{queue} is empty."),
        (0, _) => return writeln!(out, "None of {looked_at} in {queue} fits."),
        (total, looked_at) if total == looked_at => writeln!(out, "{total} in {queue}:")?,
        (total, looked_at) => writeln!(out, "{total} of {looked_at} in {queue} fit:")?,
    }
    let mut counts = counts.iter().collect::<Vec<_>>();
    counts.sort_by_key(|(reason, count)| (std::cmp::Reverse(**count), *reason));
    for (reason, count) in counts {
        writeln!(out, "{count:>8}  {reason}")?;
    }
    writeln!(out)
}

fn print_rows(out: &mut impl std::io::Write, kind: Kind, rows: &[Letter]) -> std::io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let owner = if kind.is_jobs() { "BOT" } else { "ENDPOINT" };
    let mut table = vec![["ID", "DIED", owner, "CONVERSATION", "REASON", "TEXT"].map(str::to_owned)];
    for row in rows {
        let whose = if kind.is_jobs() { &row.bot } else { &row.endpoint };
        let text = row.text.chars().take(100).collect::<String>();
        table.push([
            row.id.clone(),
            row.died_at.map_or_else(|| "-".to_owned(), |time| format!("{time:.0}")),
            whose.clone().unwrap_or_else(|| "-".to_owned()),
            row.conversation.clone().unwrap_or_else(|| "-".to_owned()),
            row.reason.clone(),
            text,
        ]);
    }
    let widths = (0..5).map(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let widths = widths.collect::<Vec<_>>();
    for row in &table {
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "{}{:pad$}  ", printable(cell), "", pad = width.saturating_sub(cell.chars().count()))?;
        }
        writeln!(out, "{}", printable(&row[5]))?;
    }
    Ok(())
}

/// Says what lies in the other queues, since nobody looks where nothing points.
async fn note_other_kinds(kind: Kind, names: &Names, broker: &Broker) {
    let connection = broker.connection().await;
    for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
        // A hint; a queue that cannot be asked gives none.
        if let Ok(Some(depth)) = depth(&connection, &other.queue(names)).await
            && depth.ready > 0
        {
            eprintln!("note: {} in {} (--kind {})", depth.ready, other.queue(names), other.as_str());
        }
    }
}

/// Prints one letter.
pub(super) async fn show(args: &ShowArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    let names = Names::new(&config.amqp.prefix);
    let queue = args.kind.queue(&names);
    let mut browser = Browser::open(broker, queue.clone()).await?;
    let mut found = Vec::new();
    while let Some(incoming) = browser.next().await? {
        let letter = Letter::read(args.kind, &names, &incoming);
        if letter.is_called(&args.id) {
            found.push((letter, incoming.message));
        }
        browser.leave(incoming.receipt);
    }
    browser.close().await?.note();
    if found.is_empty() {
        bail!("no letter {:?} in {queue}; `dead-letters list --kind …` names them", args.id);
    }
    let mut out = std::io::stdout().lock();
    for (letter, message) in &found {
        if args.json {
            written(writeln!(out, "{}", to_row(args.kind, letter, message)))?;
        } else {
            written(print_letter(&mut out, letter, message))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_letter(out: &mut impl std::io::Write, letter: &Letter, message: &Message) -> std::io::Result<()> {
    writeln!(out, "{}", printable(&letter.id))?;
    writeln!(out, "  {}: {}", letter.reason, printable(&letter.text))?;
    let optional = |value: &Option<String>| value.as_deref().map(printable);
    let time = |value: Option<Timestamp>| value.map(|time| format!("{time:.3}"));
    for (name, value) in [
        ("certainty", optional(&letter.certainty)),
        ("bot", optional(&letter.bot)),
        ("endpoint", optional(&letter.endpoint)),
        ("conversation", optional(&letter.conversation)),
        ("attempts", letter.attempts.map(|number| number.to_string())),
        ("last status", letter.status.map(|number| number.to_string())),
        ("generation", Some(letter.generation.to_string())),
        ("first seen", time(letter.first_seen)),
        ("died", time(letter.died_at)),
        ("trace", optional(&letter.trace_id)),
        ("message id", optional(&letter.message_id)),
        ("published", time(message.timestamp())),
        ("content type", message.content_type().map(printable)),
    ] {
        if let Some(value) = value {
            writeln!(out, "  {name:<13} {value}")?;
        }
    }
    writeln!(out, "  headers")?;
    for (name, value) in message.headers() {
        writeln!(out, "    {} = {}", printable(name), value_of(value))?;
    }
    writeln!(out, "  body ({} bytes)", message.body.len())?;
    match serde_json::from_slice::<Value>(&message.body) {
        Ok(body) => writeln!(out, "{body:#}"),
        Err(_) => writeln!(out, "{}", printable(&String::from_utf8_lossy(&message.body))),
    }
}
