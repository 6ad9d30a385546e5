//! The worker process: one intake per bot, one way out, one drain.
//!
//! ```text
//! intake (validate, lanes) ─▶ batch (lease, execute, settle) ─▶ outbox (outcomes, dead letters, ladder)
//! ```
//!
//! Two connections to RabbitMQ: one takes and acknowledges, one publishes, so that an alarm of the broker that
//! blocks publishers does not keep acknowledgements from getting through.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Condition, Health};
use crate::bot::Bot;
use crate::broker::topology::{self, Names, Part};
use crate::broker::{Broker, Publisher};
use crate::config::{self, Config};
use crate::ladder::Ladder;
use crate::limiter::Sources;
use crate::redis_link::RedisLink;
use crate::relay;
use crate::shutdown::Shutdown;

mod batch;
mod envelope;
mod intake;
mod memories;
mod outbox;
mod permits;
pub mod recent;
mod seat;
mod settle;
mod share;
pub mod watchdog;

use batch::Context;
use intake::Intake;
use outbox::Outbox;
use seat::Seat;
use watchdog::Watchdog;

/// After the order to stop: until then requests may be under way.
const DRAIN_REQUESTS: Duration = Duration::from_secs(15);
/// After the order to stop: until then confirms and acknowledgements are waited for.
const DRAIN_CONFIRMS: Duration = Duration::from_secs(20);
/// After the order to stop: the process is gone.
const DRAIN_ALL: Duration = Duration::from_secs(25);
/// How often a bot's platform is looked for at start.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `worker`.
///
/// # Errors
/// Settings that cannot be used, or an address that cannot be listened on. What is away is waited for.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    run_parts(config, false).await
}

/// `run`: worker and relay in one process.
///
/// # Errors
/// As [`run`].
pub async fn run_with_relay(config: Config) -> anyhow::Result<ExitCode> {
    run_parts(config, true).await
}

async fn run_parts(config: Config, with_relay: bool) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!config.bots.is_empty(), "no bot is configured; add a [bots.default] section with its base_url");
    let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
    let (stop, done) = (shutdown.token(), CancellationToken::new());
    let health = Health::new();
    let _admin = Admin::start(config.admin.listen, health.clone()).await?;
    tracing::info!(
        rabbitmq = %config.amqp.url, redis = %config.redis.url, bots = config.bots.len(),
        "context-injector {} starts", env!("CARGO_PKG_VERSION")
    );
    let part = if with_relay { Part::All } else { Part::Worker };
    let plan = topology::plan(&config, part);
    let taking = Broker::start_declaring(&config.amqp, "context-injector worker", plan, done.clone());
    let publishing = Broker::start(&config.amqp, "context-injector outcomes", done.clone());
    health.follow_broker(&taking, done.clone());
    health.follow_connection("rabbitmq-outcomes", &publishing, done.clone());
    let redis = RedisLink::start(&config.redis)?;
    tokio::spawn(follow_redis(Arc::clone(&redis), health.clone(), config.redis.url.clone()));

    let (halt, give_up) = (CancellationToken::new(), CancellationToken::new());
    let names = Names::new(&config.amqp.prefix);
    let digest_key = config.audit.digest_key_or_random();
    let notary = config.audit.notary.clone();
    if notary.is_none() {
        tracing::info!("audit.signing_key is not set: the audit chain has no signed checkpoints");
    }
    let publisher = Publisher::new(&publishing);
    let outbox = Arc::new(Outbox::new(publisher, names.clone(), digest_key, notary, give_up.clone()));
    let ladder = Arc::new(Ladder::new(Arc::clone(&redis)));
    let telling = Arc::clone(&ladder);
    tokio::spawn(async move { telling.tell_redis_what_it_missed().await });
    let sources = Sources::new(&config, &redis);
    let (mut intakes, mut seats) = (JoinSet::new(), Vec::new());
    for bot in config.bots.values() {
        let context = Arc::new(Context {
            bot: Bot::new(bot.clone(), Arc::clone(&redis), sources.of(bot))?,
            retry: config.retry.clone(),
            redis: Arc::clone(&redis),
            ladder: Arc::clone(&ladder),
            outbox: Arc::clone(&outbox),
            recent: std::sync::Mutex::default(),
            stop: stop.clone(),
            halt: halt.clone(),
        });
        tokio::spawn(look_for_platform(bot.clone(), health.clone(), stop.clone()));
        let seat = Arc::new(Seat::new(bot.name.clone(), names.jobs_of(&bot.name)));
        seats.push(Arc::clone(&seat));
        let (measured, broker, done) = (Arc::clone(&seat), taking.clone(), done.clone());
        tokio::spawn(async move { measured.measure(broker, done).await });
        let watchdog = Watchdog::new(config.watchdog, Instant::now());
        intakes.spawn(Intake::new(context, taking.clone(), seat, watchdog, health.clone()).run());
    }
    tokio::spawn(share::share_out(seats, Arc::clone(&redis), stop.clone()));
    let relay = with_relay.then(|| {
        let (config, broker, health, stop) = (config.clone(), taking.clone(), health.clone(), stop.clone());
        tokio::spawn(async move { relay::serve(&config, &broker, &health, stop).await })
    });

    shutdown.ordered().await;
    health.stop();
    tokio::spawn(deadlines(halt, give_up));
    while let Some(ended) = intakes.join_next().await {
        ended.context("an intake ended by itself")?;
    }
    outbox.close().await;
    if let Some(relay) = relay {
        relay.await.context("the relay ended by itself")?;
    }
    done.cancel();
    publishing.close().await;
    taking.close().await;
    tracing::info!("stopped; nothing is left under way");
    Ok(ExitCode::SUCCESS)
}

/// The deadlines of a drain, each louder than the one before.
async fn deadlines(halt: CancellationToken, give_up: CancellationToken) {
    tokio::time::sleep(DRAIN_REQUESTS).await;
    tracing::warn!(
        "requests are still under way after {} s; their jobs go back to the queue",
        DRAIN_REQUESTS.as_secs()
    );
    halt.cancel();
    tokio::time::sleep(DRAIN_CONFIRMS - DRAIN_REQUESTS).await;
    tracing::warn!(
        "messages are still unconfirmed after {} s; their jobs go back to the queue",
        DRAIN_CONFIRMS.as_secs()
    );
    give_up.cancel();
    tokio::time::sleep(DRAIN_ALL - DRAIN_CONFIRMS).await;
    tracing::error!("not stopped after {} s; ending now, the broker delivers the rest again", DRAIN_ALL.as_secs());
    std::process::exit(1);
}

/// Keeps the part `redis` as the link is: not ready until it was there once, degraded when it goes away later.
async fn follow_redis(redis: Arc<RedisLink>, health: Health, address: config::SecretUrl) {
    health.set("redis", Condition::NotReady(format!("connecting to Redis at {address}")));
    loop {
        redis.wait_until(true).await;
        health.set("redis", Condition::Ready);
        metrics::gauge!(crate::metrics::REDIS_UP).set(1.0);
        redis.wait_until(false).await;
        metrics::gauge!(crate::metrics::REDIS_UP).set(0.0);
        let text = format!("Redis at {address} is away; working on without leases, with a local limiter");
        health.set("redis", Condition::Degraded(text));
    }
}

/// Not ready before the bot's platform could be reached once: a wrong address shows at start, not with the first
/// job.
async fn look_for_platform(bot: config::Bot, health: Health, stop: CancellationToken) {
    let part = format!("platform of {}", bot.name);
    let address = config::show_host(bot.base_url.as_str());
    let (Some(host), Some(port)) = (bot.base_url.host_str(), bot.base_url.port_or_known_default()) else { return };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut said = false;
    while !stop.is_cancelled() {
        let error = match tokio::time::timeout(
            bot.connect_timeout,
            tokio::net::TcpStream::connect((host.as_str(), port)),
        )
        .await
        {
            Ok(Ok(_)) => {
                health.set(&part, Condition::Ready);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        let text = format!("cannot reach {address} (bots.{}.base_url): {error}", bot.name);
        if !said {
            tracing::warn!("{text}; trying on");
            said = true;
        }
        health.set(&part, Condition::NotReady(text));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
