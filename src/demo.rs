//! `context-injector demo`: the main job end to end on a real broker and a real Redis, with a check of its own.
//!
//! The input is committed (`deploy/demo/`), the parts are separate processes of this binary, the target fails and is
//! written by somebody else meanwhile, the worker is killed in the middle. [`check`] judges what came out and shares
//! no code with what it judges.

pub mod check;
pub mod input;
mod leftovers;
pub mod receiver;
mod report;
mod stage;
mod traffic;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::cli::EXIT_DIFFERENCE;
use check::{Evidence, judge};
use input::{Input, Message};
use receiver::Receiver;
use report::{Figures, table};
use stage::Stage;
use traffic::Traffic;

/// Without a new outcome for so long, nothing more is waited for: the check tells what is missing.
const STALLED: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Share of the outcomes after which the worker is killed, in percent.
const KILL_AT: [usize; 2] = [25, 60];
/// The first webhook tries that the receiver answers with 500.
const FAILING_FIRST: usize = 3;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave everything running at the end, until Ctrl-C, and say how to use it
    #[arg(long)]
    keep: bool,

    /// The directory of the input
    #[arg(long, default_value = "deploy/demo", value_name = "DIRECTORY")]
    input: PathBuf,

    /// Where the logs are kept when the check fails
    #[arg(long, default_value = ".demo", value_name = "DIRECTORY")]
    logs: PathBuf,
}

/// Runs the demo.
///
/// # Errors
/// A part cannot be started, or breaks down. A check that fails is exit code 3.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let input = Input::read(&args.input)?;
    let secret = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>()));
    let receiver = Receiver::start(&secret).await.context("cannot start the webhook receiver")?;
    let receiver_url = receiver.url();
    let mut stop = Stop::new()?;
    say("starting RabbitMQ, Redis, sandbox, worker, relay and a webhook receiver …");
    let mut stage = tokio::select! {
        stage = Stage::start(&receiver_url, &secret) => stage?,
        () = stop.asked() => bail!("stopped"),
    };
    let played = tokio::select! {
        played = play(&mut stage, &input, &receiver, &args.logs) => played,
        () = stop.asked() => Err(anyhow::anyhow!("stopped")),
    };
    let passed = match played {
        Ok(passed) => passed,
        Err(error) => {
            keep_logs(&stage, &args.logs);
            return Err(error);
        }
    };
    if !passed {
        keep_logs(&stage, &args.logs);
    }
    if args.keep {
        say(&hints(&stage, &receiver).await?);
        stop.asked().await;
    }
    stage.clear().await.context("cannot clear up")?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DIFFERENCE) })
}

/// Publishes the input, breaks things meanwhile, judges. Whether the check passed.
async fn play(stage: &mut Stage, input: &Input, receiver: &Receiver, logs: &Path) -> anyhow::Result<bool> {
    let traffic = Traffic::open(stage.broker.url(), &stage.prefix).await.context("cannot use the broker")?;
    receiver.answer_next(&[500; FAILING_FIRST]);
    let started = Instant::now();
    say("the reference example first:");
    traffic.publish(std::slice::from_ref(&input.reference)).await?;
    wait(&traffic, 1, None).await;
    say(&reference_text(stage, input).await?);

    stage.second_writer(true).await?;
    let mut published: Vec<Message> = input.malformed.clone();
    published.push(input.too_long.clone());
    published.extend(input.jobs.iter().cloned());
    traffic.publish(&published).await?;
    published.insert(0, input.reference.clone());
    let expected = different(&published);
    say(&format!("{} messages published; {expected} outcomes expected:", published.len()));

    let bar = progress(expected);
    for percent in KILL_AT {
        wait(&traffic, expected * percent / 100, Some(&bar)).await;
        bar.suspend(|| say("kill -9 of the worker, and another one is started"));
        stage.kill_worker().await?;
    }
    wait(&traffic, expected, Some(&bar)).await;
    bar.finish();
    let took = started.elapsed();

    let dead_letters = dead_letters(stage, &[]).await?.len();
    let repaired = repair(stage, input, &traffic).await?;
    published.push(input.repaired()?);
    let told = traffic.different();
    until(STALLED, || delivered(receiver) >= told).await;
    stage.second_writer(false).await?;

    let evidence = gather(stage, published, &traffic, receiver).await?;
    let stats = stage.control("stats").await?;
    let judgement = judge(&evidence);
    let figures = Figures { stats: &stats, took, dead_letters, repaired, kills: KILL_AT.len() };
    say(&format!("\n{}", table(&evidence, &judgement, &figures)));
    let passed = judgement.faults.is_empty();
    if !passed {
        keep_evidence(&evidence, logs).with_context(|| format!("cannot write to {}", logs.display()))?;
    }
    Ok(passed)
}

/// How many different outcome events a list of messages must lead to.
fn different(published: &[Message]) -> usize {
    let names = published.iter().map(|message| match &message.job {
        Some(job) => job.id.as_bytes(),
        None => &message.body,
    });
    names.collect::<std::collections::BTreeSet<_>>().len()
}

/// Waits for so many different outcomes, or until none has come for long.
async fn wait(traffic: &Traffic, wanted: usize, bar: Option<&ProgressBar>) {
    let (mut before, mut since) = (0, Instant::now());
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        let now = traffic.different();
        if let Some(bar) = bar {
            bar.set_position(now as u64);
        }
        if now > before {
            (before, since) = (now, Instant::now());
        }
        if now >= wanted || since.elapsed() > STALLED {
            return;
        }
    }
}

/// Waits until something is so, or the limit is over; whether it is.
async fn until(limit: Duration, mut is: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    while started.elapsed() < limit {
        tick.tick().await;
        if is() {
            return true;
        }
    }
    false
}

/// Events that the receiver took.
fn delivered(receiver: &Receiver) -> usize {
    let taken = receiver.deliveries().into_iter().filter(|delivery| delivery.answered < 300);
    taken.map(|delivery| delivery.id).collect::<std::collections::BTreeSet<_>>().len()
}

async fn dead_letters(stage: &Stage, filters: &[&str]) -> anyhow::Result<Vec<Value>> {
    let text = stage.run(&[&["dead-letters", "list", "--json"], filters].concat()).await?;
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>().collect::<Result<Vec<_>, _>>()?;
    Ok(match documents.as_slice() {
        [Value::Array(letters)] => letters.clone(),
        _ => documents,
    })
}

/// Finds the dead letter that can be repaired, replays it repaired, and waits for its outcome.
async fn repair(stage: &Stage, input: &Input, traffic: &Traffic) -> anyhow::Result<bool> {
    let letters = dead_letters(stage, &["--reason", "value_too_large"]).await?;
    let Some(id) = letters.first().and_then(|letter| letter["id"].as_str()) else { return Ok(false) };
    say("one dead letter is repaired and replayed");
    stage.run(&["dead-letters", "replay", id, "--patch", &input.repair.to_string()]).await?;
    let id = input.too_long.job.as_ref().map(|job| job.id.as_str()).unwrap_or_default();
    let applied = |event: &Value| event["data"]["job_id"] == id && event["data"]["verdict"] == "applied";
    Ok(until(STALLED, || traffic.any(applied)).await)
}

/// What the check looks at.
async fn gather(
    stage: &Stage,
    published: Vec<Message>,
    traffic: &Traffic,
    receiver: &Receiver,
) -> anyhow::Result<Evidence> {
    let page = stage.control("history?after=0&limit=100000").await?;
    let history = serde_json::from_value(page["entries"].clone()).context("the sandbox's history")?;
    let mut state = std::collections::BTreeMap::new();
    for id in stage.control("conversations").await?["conversations"].as_array().into_iter().flatten() {
        let Some(id) = id["id"].as_str() else { continue };
        let conversation = stage.control(&format!("conversations/{id}")).await?;
        state.insert(id.to_owned(), conversation["context"].clone());
    }
    Ok(Evidence {
        published,
        outcomes: traffic.outcomes(),
        history,
        state,
        deliveries: receiver.deliveries(),
        second_writer_keys: stage::SECOND_WRITER_KEYS.iter().map(|key| (*key).to_owned()).collect(),
    })
}

async fn reference_text(stage: &Stage, input: &Input) -> anyhow::Result<String> {
    let Some(job) = &input.reference.job else { bail!("reference.json holds no job") };
    let conversation = stage.control(&format!("conversations/{}", job.conversation)).await?;
    let mut text = String::new();
    for variable in &job.variables {
        let entry = &conversation["context"][&variable.key];
        text.push_str(&format!("  {} ({}) = {}\n", variable.key, variable.scope, entry["value"]));
    }
    Ok(text.trim_end().to_owned())
}

async fn hints(stage: &Stage, receiver: &Receiver) -> anyhow::Result<String> {
    let us = std::env::current_exe().unwrap_or_else(|_| "context-injector".into());
    let command = format!("{} --config {}", us.display(), stage.settings.display());
    let job =
        r#"{"job_id":"by-hand-1","conversation_id":"conv_8a7b9c2d1e3f","variables":{"mood":{"value":"curious"}}}"#;
    Ok(format!(
        "Everything is still running; Ctrl-C ends it. In another terminal:\n\n\
         publish a job by hand:\n  echo '{job}' | {command} inject -\n\
         or with a program that is not ours (Debian: amqp-tools):\n  \
         amqp-publish -u {amqp} -e {prefix}.jobs -r default -p -b '{job}'\n\
         look at the conversation:\n  curl {sandbox}/_sandbox/conversations/conv_8a7b9c2d1e3f\n\
         look at the worker:\n  {worker}/readyz and {worker}/metrics\n\
         look at the relay, which delivers to {receiver}:\n  {relay}/readyz and {relay}/metrics\n\
         dead letters:\n  {command} dead-letters list\n\
         logs:\n  {worker_log}\n  {relay_log}",
        amqp = stage.broker.url(),
        prefix = stage.prefix,
        sandbox = stage.sandbox_url,
        worker = stage.admin(&stage.worker).await?,
        relay = stage.admin(&stage.relay).await?,
        receiver = receiver.url(),
        worker_log = stage.worker.log().display(),
        relay_log = stage.relay.log().display(),
    ))
}

/// What the check looked at, as JSON lines.
fn keep_evidence(evidence: &Evidence, directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let history = evidence.history.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    for (name, values) in [("outcomes.jsonl", &evidence.outcomes), ("history.jsonl", &history)] {
        let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
        std::fs::write(directory.join(name), lines)?;
    }
    Ok(())
}

fn keep_logs(stage: &Stage, directory: &Path) {
    match stage.keep_logs(directory) {
        Ok(()) => say(&format!("logs and evidence are in {}", directory.display())),
        Err(error) => say(&format!("the logs cannot be kept in {}: {error}", directory.display())),
    }
}

fn progress(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if let Ok(style) = ProgressStyle::with_template("  {bar:40} {pos}/{len} outcomes, {elapsed}") {
        bar.set_style(style);
    }
    bar
}

/// SIGINT and SIGTERM, both of which mean: end, and leave nothing behind.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[expect(clippy::print_stdout, reason = "a demo whose audience is gone may end loudly")]
fn say(text: &str) {
    println!("{text}");
}
