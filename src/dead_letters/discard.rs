//! `dead-letters discard`: record, confirm, then ack.
//!
//! Killed in between, a letter is on record and still there; run again, it is on record twice. The others keep
//! their places.

use std::collections::{BTreeSet, HashSet};
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::bail;
use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::json;

use super::browse::{Browser, Looked};
use super::filter::Filter;
use super::operation::{Act, Operator, Recorder};
use super::results::{Ended, Results, agreed, progress};
use super::taken::{Key, Taken};
use super::{Kind, Letter};
use crate::broker::topology::Names;
use crate::broker::{Broker, Publisher, Receipt};
use crate::cli::output::say;
use crate::config::Config;

/// Records under way together. A kill in the middle can leave these on record and in the queue, and those whose acks
/// the broker had not carried out yet.
const TOGETHER: usize = 64;
/// Failures in a row after which the rest is not tried.
const FAILURES_IN_A_ROW: u32 = 100;

/// `dead-letters discard`.
#[derive(Debug, clap::Args)]
pub struct DiscardArgs {
    /// Ids of letters, or their message ids
    ids: Vec<String>,
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    /// All of the queue; without it, ids or filters are needed
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    operator: Operator,
    /// Say what would be discarded, take nothing away
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// One JSON object per letter
    #[arg(long)]
    json: bool,
}

/// Discards.
pub(super) async fn discard(args: DiscardArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    if args.ids.is_empty() && args.filter.is_empty() && !args.all {
        bail!("discard what? Name letters by id, say a filter such as --reason CODE, or --all");
    }
    let names = Names::new(&config.amqp.prefix);
    let queue = args.kind.queue(&names);
    let now = Timestamp::now();
    let mut agreed_to = None;
    if !args.yes && !args.dry_run {
        if !std::io::stdin().is_terminal() {
            bail!(
                "discard asks before it takes letters away, and here is no terminal to ask at: say --yes, or --dry-run"
            );
        }
        let ids = meant_now(&args, &names, broker, now).await?;
        let question = format!("Discard {} letter(s) of {} for ever?", ids.len(), args.kind.queue(&names));
        if !ids.is_empty() && !agreed(&question)? {
            say!("Nothing was discarded.")?;
            return Ok(ExitCode::FAILURE);
        }
        agreed_to = Some(ids.into_iter().collect::<HashSet<_>>());
    }
    let browser = Browser::open(broker, args.kind.queue(&names)).await?;
    let publisher = Publisher::new(broker);
    let mut run = Run {
        recorder: Recorder::new(&publisher, &names, config),
        results: Results::new(progress(browser.expected, args.json), args.json),
        names,
        now,
        agreed_to,
        found: BTreeSet::new(),
        taken: Taken::default(),
        failures_in_a_row: 0,
        args,
    };
    let done = run.go(browser).await;
    run.recorder.close().await;
    run.results.bar.finish_and_clear();
    let mut looked = done?;
    let may_succeed = looked.is_whole() || !run.args.ids.is_empty();
    if may_succeed && run.results.total() > 0 && !run.args.dry_run {
        looked = looked.and(run.taken.make_sure(broker, &queue).await?);
    }
    run.finish(looked)
}

/// The ids of all letters that are meant, each as often as it is there.
async fn meant_now(args: &DiscardArgs, names: &Names, broker: &Broker, now: Timestamp) -> anyhow::Result<Vec<String>> {
    let mut browser = Browser::open(broker, args.kind.queue(names)).await?;
    let mut ids = Vec::new();
    while let Some(incoming) = browser.next().await? {
        let letter = Letter::read(args.kind, names, &incoming);
        if is_meant(args, &letter, &incoming.message.body, now) {
            ids.push(letter.id);
        }
        browser.leave(incoming.receipt);
    }
    browser.close().await?.note();
    Ok(ids)
}

fn is_meant(args: &DiscardArgs, letter: &Letter, body: &[u8], now: Timestamp) -> bool {
    args.filter.matches(letter, body, now) && (args.ids.is_empty() || args.ids.iter().any(|id| letter.is_called(id)))
}

struct Run {
    args: DiscardArgs,
    names: Names,
    recorder: Recorder,
    results: Results,
    now: Timestamp,
    /// What a person said yes to: what came meanwhile is left.
    agreed_to: Option<HashSet<String>>,
    found: BTreeSet<String>,
    taken: Taken,
    failures_in_a_row: u32,
}

struct Meant {
    key: Key,
    letter: Letter,
    body: Bytes,
    receipt: Receipt,
}

impl Run {
    async fn go(&mut self, mut browser: Browser<'_>) -> anyhow::Result<Looked> {
        let mut batch = Vec::new();
        loop {
            // Before the window is asked for more: it may be full of what waits here.
            if batch.len() >= TOGETHER || browser.is_full_with(batch.len()) {
                self.discard(std::mem::take(&mut batch), &mut browser).await?;
            }
            let Some(incoming) = browser.next().await? else { break };
            self.results.bar.inc(1);
            let letter = Letter::read(self.args.kind, &self.names, &incoming);
            let meant = is_meant(&self.args, &letter, &incoming.message.body, self.now)
                && self.agreed_to.as_ref().is_none_or(|ids| ids.contains(&letter.id));
            if meant {
                self.found.extend(self.args.ids.iter().filter(|id| letter.is_called(id)).cloned());
            }
            if meant && !self.args.dry_run {
                let key = Key::of(&incoming);
                batch.push(Meant { key, letter, body: incoming.message.body, receipt: incoming.receipt });
                continue;
            }
            self.taken.leave();
            browser.leave(incoming.receipt);
            if meant {
                let row = json!({ "id": letter.id, "result": "dry_run", "reason": letter.reason });
                self.results.tell(Ended::Done, format!("{} would be discarded ({})", letter.id, letter.reason), row)?;
            }
        }
        self.discard(batch, &mut browser).await?;
        browser.close().await
    }

    /// Records some, in order, and acks those whose record was confirmed.
    async fn discard(&mut self, batch: Vec<Meant>, browser: &mut Browser<'_>) -> anyhow::Result<()> {
        let (recorder, args) = (&self.recorder, &self.args);
        let recorded = batch.iter().map(|meant| {
            recorder.hand_over(&args.operator, args.kind, &meant.letter, &meant.body, Act::Discard).confirm.wait()
        });
        let recorded = join_all(recorded.collect::<Vec<_>>()).await;
        for (Meant { key, letter, receipt, .. }, recorded) in batch.into_iter().zip(recorded) {
            if let Err(error) = recorded {
                self.taken.keep(key);
                browser.leave(receipt);
                self.failures_in_a_row += 1;
                self.failed(&letter, &format!("it cannot be recorded: {error}"))?;
                if self.failures_in_a_row >= FAILURES_IN_A_ROW {
                    bail!("{FAILURES_IN_A_ROW} failures in a row; the rest was not tried, run it again");
                }
                continue;
            }
            self.failures_in_a_row = 0;
            match receipt.ack().await {
                Ok(()) => {
                    self.taken.take(key);
                    let row = json!({ "id": letter.id, "result": "discarded", "reason": letter.reason });
                    self.results.tell(Ended::Done, format!("{} discarded ({})", letter.id, letter.reason), row)?;
                }
                Err(_gone) => {
                    self.failed(&letter, "recorded, but the connection broke; it is still there, run it again")?
                }
            }
        }
        Ok(())
    }

    fn failed(&mut self, letter: &Letter, text: &str) -> anyhow::Result<()> {
        let row = json!({ "id": letter.id, "result": "failed", "text": text });
        self.results.tell(Ended::Failed, format!("{} failed: {text}", letter.id), row)
    }

    fn finish(&self, looked: Looked) -> anyhow::Result<ExitCode> {
        let missing = self.args.ids.iter().filter(|id| !self.found.contains(*id)).collect::<Vec<_>>();
        for id in &missing {
            let queue = self.args.kind.queue(&self.names);
            eprintln!("error: no letter {id:?} in {queue} that fits; `dead-letters list --kind …` names them");
        }
        let code = self.results.finish(if self.args.dry_run { "would be discarded" } else { "discarded" })?;
        if self.results.total() == 0 && missing.is_empty() {
            eprintln!("No letter fits.");
        }
        let all_seen = looked.suffices(!self.args.ids.is_empty());
        Ok(if missing.is_empty() && all_seen { code } else { ExitCode::FAILURE })
    }
}
