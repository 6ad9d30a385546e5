//! `dead-letters replay`: publish, confirm, then ack, in the order of the queue.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::browse::{Browser, Looked};
use super::filter::Filter;
use super::repair::{self, Outgoing, Refusal, Repair, prepare};
use super::results::progress;
use super::taken::{Key, Taken};
use super::{Kind, Letter};
use crate::broker::topology::Names;
use crate::broker::{Broker, Mandatory, Publisher, Receipt};
use crate::cli::output::say;
use crate::config::Config;

/// Messages published together. A kill in the middle can repeat these, and those whose acks the broker had not carried
/// out yet.
const TOGETHER: usize = 64;
/// Failures in a row after which the rest is not tried.
const FAILURES_IN_A_ROW: u32 = 100;

/// `dead-letters replay`.
#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    /// Ids of letters, or their message ids; without any: all that the filters let through
    ids: Vec<String>,
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    /// Say what would be replayed, move nothing
    #[arg(long)]
    dry_run: bool,
    /// At most so many per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Change the body by this JSON merge patch (RFC 7396), and check it, before it is published
    #[arg(long, value_name = "JSON", value_parser = repair::read_patch)]
    patch: Option<Value>,
    /// Give it this message id; for one letter
    #[arg(long, value_name = "ID")]
    set_message_id: Option<String>,
    /// One JSON object per letter
    #[arg(long)]
    json: bool,
}

/// Replays.
pub(super) async fn replay(args: ReplayArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    if args.patch.is_some() && !args.kind.is_jobs() {
        bail!("--patch is for jobs: an event tells what happened and is not rewritten");
    }
    if args.set_message_id.is_some() && (args.ids.len() != 1 || !args.kind.is_jobs()) {
        bail!("--set-message-id is for one job: name it by its id");
    }
    let names = Names::new(&config.amqp.prefix);
    let browser = Browser::open(broker, args.kind.queue(&names)).await?;
    let bar = progress(browser.expected, args.json);
    let queue = args.kind.queue(&names);
    let repair = Repair { patch: args.patch.clone(), message_id: args.set_message_id.clone() };
    let mut run = Run {
        names,
        config,
        repair,
        now: Timestamp::now(),
        publisher: Publisher::new(broker),
        results: Results { bar, json: args.json, dry_run: args.dry_run, replayed: 0, refused: 0, failed: 0 },
        pace: Pace { rate: args.rate, start: Instant::now(), done: 0 },
        failures_in_a_row: 0,
        found: BTreeSet::new(),
        taken: Taken::default(),
        args,
    };
    let done = run.go(browser).await;
    run.results.bar.finish_and_clear();
    let mut looked = done?;
    let may_succeed = looked.is_whole() || !run.args.ids.is_empty();
    if may_succeed && run.results.replayed > 0 && !run.args.dry_run {
        looked = looked.and(run.taken.make_sure(broker, &queue).await?);
    }
    run.finish(looked)
}

struct Run<'a> {
    args: ReplayArgs,
    names: Names,
    config: &'a Config,
    repair: Repair,
    now: Timestamp,
    publisher: Publisher,
    results: Results,
    pace: Pace,
    failures_in_a_row: u32,
    found: BTreeSet<String>,
    taken: Taken,
}

struct Ready {
    key: Key,
    letter: Letter,
    outgoing: Outgoing,
    receipt: Receipt,
}

impl Run<'_> {
    async fn go(&mut self, mut browser: Browser<'_>) -> anyhow::Result<Looked> {
        let mut batch = Vec::new();
        loop {
            // Before the window is asked for more: it may be full of what waits here.
            if batch.len() >= self.pace.batch() || browser.is_full_with(batch.len()) {
                self.publish(std::mem::take(&mut batch), &mut browser).await?;
            }
            let Some(incoming) = browser.next().await? else { break };
            self.results.bar.inc(1);
            let letter = Letter::read(self.args.kind, &self.names, &incoming);
            if !self.is_meant(&letter, &incoming.message.body) {
                self.taken.leave();
                browser.leave(incoming.receipt);
                continue;
            }
            let (kind, message) = (self.args.kind, &incoming.message);
            match prepare(kind, self.config, &letter, message, &self.repair, self.now) {
                Err(refusal) => {
                    self.results.refused(&letter, &refusal)?;
                    self.taken.leave();
                    browser.leave(incoming.receipt);
                }
                Ok(outgoing) if self.args.dry_run => {
                    self.results.replayed(&letter, &outgoing)?;
                    browser.leave(incoming.receipt);
                }
                Ok(outgoing) => {
                    batch.push(Ready { key: Key::of(&incoming), letter, outgoing, receipt: incoming.receipt })
                }
            }
        }
        self.publish(batch, &mut browser).await?;
        browser.close().await
    }

    fn is_meant(&mut self, letter: &Letter, body: &[u8]) -> bool {
        if !self.args.filter.matches(letter, body, self.now) {
            return false;
        }
        if self.args.ids.is_empty() {
            return true;
        }
        let called = self.args.ids.iter().filter(|id| letter.is_called(id)).cloned().collect::<Vec<_>>();
        let meant = !called.is_empty();
        self.found.extend(called);
        meant
    }

    /// Publishes some, in order, and acks those that were confirmed.
    async fn publish(&mut self, batch: Vec<Ready>, browser: &mut Browser<'_>) -> anyhow::Result<()> {
        let publisher = &self.publisher;
        let published = batch.iter().map(|ready| {
            let Outgoing { exchange, routing_key, message } = &ready.outgoing;
            publisher.publish(exchange, routing_key, message, Mandatory::Yes)
        });
        // All are handed over at the first look, in this order, and travel together.
        let published = join_all(published).await;
        for (ready, published) in batch.into_iter().zip(published) {
            let Ready { key, letter, outgoing, receipt } = ready;
            match published {
                Ok(()) => {
                    self.failures_in_a_row = 0;
                    self.pace.done += 1;
                    match receipt.ack().await {
                        Ok(()) => {
                            self.taken.take(key);
                            self.results.replayed(&letter, &outgoing)?;
                        }
                        Err(_gone) => self.results.failed(
                            &letter,
                            "published, but it could not be taken off this queue; the worker knows a repeat by its id",
                        )?,
                    }
                }
                Err(error) => {
                    self.failures_in_a_row += 1;
                    self.results.failed(&letter, &error.to_string())?;
                    self.taken.keep(key);
                    browser.leave(receipt);
                    if self.failures_in_a_row >= FAILURES_IN_A_ROW {
                        bail!("{FAILURES_IN_A_ROW} publishes in a row failed; the rest was not tried, run it again");
                    }
                }
            }
        }
        self.pace.wait().await;
        Ok(())
    }

    fn finish(&self, looked: Looked) -> anyhow::Result<ExitCode> {
        let missing = self.args.ids.iter().filter(|id| !self.found.contains(*id)).collect::<Vec<_>>();
        for id in &missing {
            let queue = self.args.kind.queue(&self.names);
            eprintln!("error: no letter {id:?} in {queue}; `dead-letters list --kind …` names them");
        }
        let Results { replayed, refused, failed, .. } = self.results;
        if !self.args.json {
            let done = if self.args.dry_run { "would be replayed" } else { "replayed" };
            say!("{replayed} {done}, {refused} refused, {failed} failed.")?;
            if replayed + refused + failed == 0 && !self.args.filter.is_empty() {
                say!("No letter fits the filters.")?;
            }
        }
        let all_seen = looked.suffices(!self.args.ids.is_empty());
        let well = refused + failed == 0 && missing.is_empty() && all_seen;
        Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Tells the result of every letter.
struct Results {
    bar: ProgressBar,
    json: bool,
    dry_run: bool,
    replayed: u64,
    refused: u64,
    failed: u64,
}

impl Results {
    fn replayed(&mut self, letter: &Letter, outgoing: &Outgoing) -> anyhow::Result<()> {
        self.replayed += 1;
        let generation = outgoing.message.replay_generation();
        let (exchange, key) = (&outgoing.exchange, &outgoing.routing_key);
        let result = if self.dry_run { "would be replayed" } else { "replayed" };
        self.tell(
            format!("{} {result} to {exchange} for {key}, generation {generation}", letter.id),
            json!({ "id": letter.id, "result": if self.dry_run { "dry_run" } else { "replayed" },
                    "exchange": exchange, "routing_key": key, "generation": generation }),
        )
    }

    fn refused(&mut self, letter: &Letter, refusal: &Refusal) -> anyhow::Result<()> {
        self.refused += 1;
        let Refusal { code, text, pointer } = refusal;
        let place = pointer.as_ref().map(|pointer| format!(" at {pointer}")).unwrap_or_default();
        self.tell(
            format!("{} refused: {code}{place}: {text}", letter.id),
            json!({ "id": letter.id, "result": "refused", "code": code, "pointer": pointer, "text": text }),
        )
    }

    fn failed(&mut self, letter: &Letter, text: &str) -> anyhow::Result<()> {
        self.failed += 1;
        self.tell(format!("{} failed: {text}", letter.id), json!({ "id": letter.id, "result": "failed", "text": text }))
    }

    fn tell(&self, line: String, row: Value) -> anyhow::Result<()> {
        let line = if self.json { row.to_string() } else { line };
        self.bar.suspend(|| writeln!(std::io::stdout(), "{line}")).context("cannot write to standard output")
    }
}

/// Keeps to the rate.
struct Pace {
    rate: Option<u32>,
    start: Instant,
    done: u32,
}

impl Pace {
    /// So many together that the rate is kept in steps of a tenth of a second.
    fn batch(&self) -> usize {
        self.rate.map_or(TOGETHER, |rate| usize::try_from(rate / 10).unwrap_or(TOGETHER).clamp(1, TOGETHER))
    }

    async fn wait(&self) {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(f64::from(self.done) / f64::from(rate));
            tokio::time::sleep_until(self.start + due).await;
        }
    }
}
