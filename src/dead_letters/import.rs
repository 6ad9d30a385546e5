//! `dead-letters import`: letters that `export` wrote, put into the queues that they came from, of this broker.
//!
//! Bodies are byte for byte the same, ids too. Each letter is confirmed and told; a line that cannot be read, or
//! that is there for the second time, is refused and the rest goes on. An import that was cut off is not resumed:
//! `--dry-run` and `list` show what is there, and a job that is replayed twice has its effect once.

use std::collections::HashMap;
use std::io::BufRead;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use indicatif::ProgressBar;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::repair;
use super::results::{Ended, Results};
use super::whole::{Row, from_row};
use crate::broker::topology::Names;
use crate::broker::{Broker, Mandatory, Publisher};
use crate::config::Config;

/// Letters under way together.
const TOGETHER: usize = 64;
/// Failures in a row after which the rest is not tried.
const FAILURES_IN_A_ROW: u32 = 100;

/// `dead-letters import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// File that export wrote; "-" is standard input
    file: String,
    /// Check the file and say what would be imported
    #[arg(long)]
    dry_run: bool,
    /// One JSON object per letter
    #[arg(long)]
    json: bool,
}

/// Imports.
pub(super) async fn import(args: ImportArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    let source: Box<dyn BufRead> = match args.file.as_str() {
        "-" => Box::new(std::io::BufReader::new(std::io::stdin())),
        file => {
            let opened = std::fs::File::open(file).with_context(|| format!("cannot open {file:?}"))?;
            Box::new(std::io::BufReader::new(opened))
        }
    };
    let mut run = Run {
        names: Names::new(&config.amqp.prefix),
        publisher: Publisher::new(broker),
        results: Results::new(ProgressBar::hidden(), args.json),
        dry_run: args.dry_run,
        failures_in_a_row: 0,
    };
    // Which line had it first; 40 bytes a letter.
    let mut lines = HashMap::new();
    let mut batch = Vec::new();
    for (number, line) in (1_u64..).zip(source.split(b'\n')) {
        let line = line.with_context(|| format!("cannot read {:?}", args.file))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match read(&line, number, &mut lines) {
            Ok(row) => batch.push((number, row)),
            Err(text) => {
                // In the order of the file.
                run.publish(std::mem::take(&mut batch)).await?;
                let row = json!({ "line": number, "result": "refused", "text": text });
                run.results.tell(Ended::Refused, format!("line {number} refused: {text}"), row)?;
            }
        }
        if batch.len() >= TOGETHER {
            run.publish(std::mem::take(&mut batch)).await?;
        }
    }
    run.publish(batch).await?;
    run.results.finish(if args.dry_run { "would be imported" } else { "imported" })
}

fn read(line: &[u8], number: u64, lines: &mut HashMap<[u8; 32], u64>) -> Result<Row, String> {
    let row = from_row(line)?;
    let mut hash = Sha256::new();
    for part in [row.kind.as_str().as_bytes(), row.message.message_id().unwrap_or_default().as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(&row.message.body);
    match lines.insert(hash.finalize().into(), number) {
        None => Ok(row),
        Some(first) => Err(format!("it is the letter {} of line {first} once more", row.id)),
    }
}

struct Run {
    names: Names,
    publisher: Publisher,
    results: Results,
    dry_run: bool,
    failures_in_a_row: u32,
}

impl Run {
    /// Publishes some, in order.
    async fn publish(&mut self, batch: Vec<(u64, Row)>) -> anyhow::Result<()> {
        let confirms = batch.iter().map(|(_, row)| {
            let letter = repair::laid_down(row.kind, &row.told, &row.message);
            let (exchange, key) = repair::home(row.kind, &self.names, &row.told);
            (!self.dry_run).then(|| self.publisher.hand_over(&exchange, &key, &letter, Mandatory::Yes))
        });
        let confirms = confirms.collect::<Vec<_>>();
        let confirmed = join_all(confirms.into_iter().map(async |confirm| match confirm {
            None => Ok(()),
            Some(confirm) => confirm.wait().await,
        }));
        for ((number, row), confirmed) in batch.iter().zip(confirmed.await) {
            let queue = row.kind.queue(&self.names);
            match confirmed {
                Ok(()) => {
                    self.failures_in_a_row = 0;
                    let (result, said) =
                        if self.dry_run { ("dry_run", "would be imported") } else { ("imported", "imported") };
                    let told = json!({ "line": number, "id": row.id, "result": result, "queue": queue });
                    self.results.tell(Ended::Done, format!("{} {said} into {queue}", row.id), told)?;
                }
                Err(error) => {
                    self.failures_in_a_row += 1;
                    let told = json!({ "line": number, "id": row.id, "result": "failed", "text": error.to_string() });
                    self.results.tell(Ended::Failed, format!("{} (line {number}) failed: {error}", row.id), told)?;
                    if self.failures_in_a_row >= FAILURES_IN_A_ROW {
                        bail!(
                            "{FAILURES_IN_A_ROW} failures in a row; the rest was not tried. `context-injector topology \
                             apply` declares queues that are missing"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
