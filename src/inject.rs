//! `inject`: jobs from a file or standard input, checked and published.
//!
//! Rules:
//! - Every job is checked by the worker's own validator before the first one is published; those that are fine
//!   are published, those that are not are named, with code and JSON pointer.
//! - A job is published as any producer should: persistent, confirmed, mandatory, with the job id as message id,
//!   so that running the same file again has no further effect.
//! - The bodies go out byte for byte as they were read.

mod direct;
mod input;
mod preview;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::input::Item;
use self::preview::{Preview, Previews};
use crate::broker::topology::{self, Names, Part};
use crate::broker::{Broker, Mandatory, Message, PublishError, Publisher, header};
use crate::config::{Bot, Config};
use crate::job::{Job, JobId};
use crate::pipeline::validate::{Source, validate};
use crate::pipeline::verdict::{Rejection, Verdict};
use crate::trace::new_traceparent;

/// How long the command waits for RabbitMQ.
const CONNECT_WAIT: Duration = Duration::from_secs(15);
/// Messages under way at the same time.
const TOGETHER: usize = 256;

/// `inject`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File of jobs: one JSON object, an array of them, or JSON lines; "-" is standard input
    file: String,
    /// The bot that the jobs are for [default: the only one in the settings]
    #[arg(long, value_name = "NAME")]
    bot: Option<String>,
    /// One JSON object per job
    #[arg(long)]
    json: bool,
    /// Apply one job straight to the platform, without broker and Redis, and print its outcome
    #[arg(long, conflicts_with = "dry_run")]
    direct: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: plan on the state in this file (the body of the platform's answer to a read) instead of
    /// asking the platform
    #[arg(long, value_name = "STATE", requires = "dry_run")]
    state: Option<PathBuf>,
}

/// A job that was read and checked.
struct Checked {
    item: Item,
    verdict: Result<Job, (Option<JobId>, Rejection)>,
}

/// Runs `inject`. Exit code 1 where a job was refused or could not be published.
///
/// # Errors
/// The input cannot be read, the bot is not known, RabbitMQ cannot be reached.
pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let bot = choose_bot(&config.bots, args.bot.as_deref())?;
    let items = input::read(&args.file).await?;
    let now = Timestamp::now();
    let checked = items.into_iter().map(|item| check(bot, config.retry.deadline, item, now)).collect::<Vec<_>>();
    let mut results = Results { json: args.json, good: 0, bad: 0 };
    for Checked { item, verdict } in &checked {
        if let Err((job_id, rejection)) = verdict {
            results.refused(item, job_id.as_ref(), rejection)?;
        }
    }
    let good = || checked.iter().filter_map(|checked| checked.verdict.as_ref().ok());
    if args.direct {
        anyhow::ensure!(checked.len() == 1, "--direct applies one job, and {} were given", checked.len());
        for job in good() {
            let outcome = direct::apply(&config, bot, job.clone()).await?;
            results.applied(&outcome.event(bot, &config.audit.digest_key_or_random()).to_json(), &outcome.verdict)?;
        }
    } else if args.dry_run {
        let mut previews = Previews::new(bot, args.state.as_deref());
        for job in good() {
            results.previewed(&previews.next(job).await?)?;
        }
    } else {
        publish(&config, bot, &checked, now, &mut results).await?;
    }
    results.finish(if args.direct || args.dry_run { None } else { Some("published") })
}

fn choose_bot<'a>(bots: &'a BTreeMap<String, Bot>, wanted: Option<&str>) -> anyhow::Result<&'a Bot> {
    let known = || bots.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (wanted, bots.len()) {
        (Some(name), _) => bots.get(name).with_context(|| {
            format!(
                "unknown_bot: the settings have no [bots.{name}], so nobody would take its jobs; there is: {}",
                known()
            )
        }),
        (None, 1) => bots.values().next().context("no bot"),
        (None, 0) => bail!("unknown_bot: the settings have no bot; add a [bots.default] section with its base_url"),
        (None, _) => bail!("which bot? Say --bot NAME with one of: {}", known()),
    }
}

fn check(bot: &Bot, default_deadline: Duration, item: Item, now: Timestamp) -> Checked {
    let source = Source {
        body: &item.body,
        message_id: None,
        content_encoding: None,
        published: Some(now),
        first_seen: now,
        now,
    };
    let verdict = validate(bot, default_deadline, &source);
    Checked { verdict: verdict.map_err(|invalid| (invalid.job_id, invalid.rejection)), item }
}

/// Publishes the good ones, in their order.
async fn publish(
    config: &Config,
    bot: &Bot,
    checked: &[Checked],
    now: Timestamp,
    results: &mut Results,
) -> anyhow::Result<()> {
    let good = checked.iter().filter_map(|checked| Some((&checked.item, checked.verdict.as_ref().ok()?)));
    let good = good.collect::<Vec<_>>();
    if good.is_empty() {
        return Ok(());
    }
    // Declared first, so that a job which was confirmed has a queue to wait in.
    let plan = topology::plan(config, Part::Worker);
    let broker = Broker::start_declaring(&config.amqp, "context-injector inject", plan, CancellationToken::new());
    broker.connection_within(CONNECT_WAIT).await?;
    broker.say_when_blocked();
    let publisher = Publisher::new(&broker);
    let exchange = Names::new(&config.amqp.prefix).jobs();
    for some in good.chunks(TOGETHER) {
        let published = some.iter().map(async |(item, job)| {
            let message = message_of(item, job, now);
            publisher.publish(&exchange, &bot.name, &message, Mandatory::Yes).await
        });
        for ((item, job), published) in some.iter().zip(join_all(published).await) {
            match published {
                Ok(()) => results.published(item, &job.id, &exchange, &bot.name)?,
                Err(error) => results.failed(item, &job.id, &error)?,
            }
        }
    }
    broker.close().await;
    Ok(())
}

fn message_of(item: &Item, job: &Job, now: Timestamp) -> Message {
    Message::new(item.body.clone())
        .with_message_id(job.id.as_str())
        .with_content_type("application/json")
        .with_timestamp(now)
        .with_text(header::TRACEPARENT, &new_traceparent())
}

/// Tells the result of every job.
struct Results {
    json: bool,
    good: usize,
    bad: usize,
}

impl Results {
    fn published(&mut self, item: &Item, id: &JobId, exchange: &str, bot: &str) -> anyhow::Result<()> {
        self.good += 1;
        self.tell(
            || format!("{id} published to {exchange} for bot {bot}"),
            || json!({ "place": item.place, "job_id": id, "result": "published", "bot": bot }),
        )
    }

    /// The outcome event of `--direct` is JSON in both forms: it is what a subscriber would get.
    fn applied(&mut self, event: &Value, verdict: &Verdict) -> anyhow::Result<()> {
        if *verdict == Verdict::Applied {
            self.good += 1
        } else {
            self.bad += 1
        }
        self.tell(|| format!("{event:#}"), || event.clone())
    }

    fn previewed(&mut self, preview: &Preview) -> anyhow::Result<()> {
        if preview.applies {
            self.good += 1
        } else {
            self.bad += 1
        }
        self.tell(|| preview.text.clone(), || preview.json.clone())
    }

    fn refused(&mut self, item: &Item, id: Option<&JobId>, rejection: &Rejection) -> anyhow::Result<()> {
        self.bad += 1;
        let Rejection { code, text, pointer } = rejection;
        self.tell(
            || {
                let name = id.map(|id| format!("{id} ")).unwrap_or_default();
                format!("{name}({}) refused: {rejection}", item.place)
            },
            || {
                json!({ "place": item.place, "job_id": id, "result": "refused", "code": code,
                        "pointer": pointer, "text": text })
            },
        )
    }

    fn failed(&mut self, item: &Item, id: &JobId, error: &PublishError) -> anyhow::Result<()> {
        self.bad += 1;
        self.tell(
            || format!("{id} ({}) not published: {error}", item.place),
            || json!({ "place": item.place, "job_id": id, "result": "failed", "text": error.to_string() }),
        )
    }

    fn tell(&self, line: impl FnOnce() -> String, row: impl FnOnce() -> Value) -> anyhow::Result<()> {
        let line = if self.json { row().to_string() } else { line() };
        writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
    }

    fn finish(&self, done: Option<&str>) -> anyhow::Result<ExitCode> {
        if let Some(done) = done.filter(|_| !self.json && self.good + self.bad != 1) {
            writeln!(std::io::stdout(), "{} {done}, {} not.", self.good, self.bad)
                .context("cannot write to standard output")?;
        }
        Ok(if self.bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bots(names: &[&str]) -> BTreeMap<String, Bot> {
        let sections = names.iter().map(|name| {
            format!("[bots.{name}]\nbase_url = \"https://b.example\"\nclient_id = \"a\"\nclient_secret = \"b\"\n")
        });
        Config::parse(&sections.collect::<String>(), []).unwrap().bots
    }

    #[test]
    fn the_only_bot_is_meant_and_of_several_one_must_be_named() {
        assert_eq!(choose_bot(&bots(&["sales"]), None).unwrap().name, "sales");
        assert_eq!(choose_bot(&bots(&["a", "b"]), Some("b")).unwrap().name, "b");
        let error = choose_bot(&bots(&["a", "b"]), None).unwrap_err().to_string();
        assert!(error.contains("a, b"), "{error}");
        let error = choose_bot(&bots(&["a"]), Some("x")).unwrap_err().to_string();
        assert!(error.starts_with("unknown_bot"), "{error}");
    }

    #[test]
    fn a_job_is_published_under_its_id_with_a_trace_and_untouched() {
        let body = "{ \"job_id\": \"j-1\", \"conversation_id\": \"conv_1\", \"variables\": {\"a\": {\"value\": 1}} }";
        let items = input::split(body);
        let now = "2026-11-23T10:00:00Z".parse().unwrap();
        let bots = bots(&["a"]);
        let checked = check(&bots["a"], Duration::from_secs(900), items[0].clone(), now);
        let message = message_of(&checked.item, &checked.verdict.unwrap(), now);
        assert_eq!((message.message_id(), &message.body[..]), (Some("j-1"), body.as_bytes()));
        assert_eq!(message.timestamp(), Some(now));
        assert_eq!(message.traceparent().map(str::len), Some(55));
    }
}
