//! What all runs share: servers, the stub, connections of the bench's own, settings of the worker.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use context_injector::servers::watched::Scratch;
use context_injector::servers::{Broker, Redis};
use lapin::options::QueuePurgeOptions;
use lapin::{Connection, ConnectionProperties};

use crate::load::conversation;
use crate::stub::Stub;

/// What Python's worker needs.
const PYTHON_LIBRARIES: [&str; 4] = ["aio-pika==10.*", "httpx==0.28.*", "pydantic==2.*", "redis==8.*"];

/// Everything that a run needs.
#[derive(Debug)]
pub struct Stage {
    pub broker: Broker,
    pub redis: Redis,
    pub api: Stub,
    /// A Python with the libraries; `None`: there is none, and the runs of Python are left out.
    pub python: Option<PathBuf>,
    /// Publishes jobs.
    pub publishing: Connection,
    /// Takes outcomes.
    pub taking: Connection,
    directory: Scratch,
    files: AtomicU32,
}

impl Stage {
    pub async fn set_up() -> anyhow::Result<Self> {
        let (broker, redis) = tokio::join!(Broker::start_private(), Redis::start_private());
        let (broker, redis) = (broker?, redis?);
        let connect = || Connection::connect(broker.url(), ConnectionProperties::default());
        let (publishing, taking) = (connect().await?, connect().await?);
        let stage = Self {
            api: Stub::start().await?,
            python: tokio::task::spawn_blocking(python).await?,
            publishing,
            taking,
            directory: Scratch::new("bench")?,
            files: AtomicU32::new(0),
            broker,
            redis,
        };
        let settings = stage.settings(1, 1, 1)?;
        let output = Command::new(env!("CARGO_BIN_EXE_context-injector"))
            .args([Path::new("topology"), Path::new("apply"), Path::new("--config"), &settings])
            .output()?;
        anyhow::ensure!(output.status.success(), "topology apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(stage)
    }

    /// Settings of the worker for so many conversations at the same time; all guarantees are on by default.
    pub fn settings(&self, in_flight: usize, per_second: u32, burst: u32) -> anyhow::Result<PathBuf> {
        self.settings_with(in_flight, per_second, burst, "")
    }

    /// The same with more sections.
    pub fn settings_with(&self, in_flight: usize, per_second: u32, burst: u32, more: &str) -> anyhow::Result<PathBuf> {
        let (amqp, redis, api, prefetch) = (self.broker.url(), self.redis.url(), self.api.url(), 2 * in_flight);
        let text = format!(
            r#"
            [amqp]
            url = "{amqp}"
            [redis]
            url = "{redis}"
            [admin]
            listen = "127.0.0.1:0"
            [audit]
            max_bytes = "500MB"
            [bots.default]
            base_url = "{api}"
            allow_http = true
            client_id = "bench"
            client_secret = "bench-secret"
            requests_per_second = {per_second}
            burst = {burst}
            concurrency = {in_flight}
            prefetch = {prefetch}
            {more}
            "#
        );
        let path = self.next_file("toml");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    pub fn next_log(&self) -> PathBuf {
        self.next_file("log")
    }

    fn next_file(&self, ending: &str) -> PathBuf {
        self.directory.path().join(format!("{}.{ending}", self.files.fetch_add(1, Ordering::Relaxed)))
    }

    /// As if nothing had been done yet.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let channel = self.publishing.create_channel().await?;
        channel.queue_purge("context.jobs.default".into(), QueuePurgeOptions::default()).await?;
        channel.close(200, "done".into()).await?;
        self.redis.wipe().await?;
        self.api.reset();
        Ok(())
    }

    /// Redis knows the versions of the first `count` conversations, as after an earlier write to each.
    pub async fn make_versions_known(&self, count: usize) -> anyhow::Result<()> {
        let mut redis = redis::Client::open(self.redis.url())?.get_multiplexed_async_connection().await?;
        let numbers = (0..count).collect::<Vec<_>>();
        for chunk in numbers.chunks(1_000) {
            let mut pipe = redis::pipe();
            for number in chunk {
                pipe.set(format!("context-injector:version:{{default:{}}}", conversation(*number)), 1).ignore();
            }
            pipe.query_async::<()>(&mut redis).await.context("cannot write the version records")?;
        }
        Ok(())
    }

    pub async fn tear_down(self) {
        let Self { broker, redis, .. } = self;
        tokio::join!(broker.stop(), redis.stop());
    }
}

/// `target/bench`, made if it is not there.
pub fn output_directory() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_context-injector")).ancestors().nth(2).context("no target directory")?;
    let path = target.join("bench");
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

/// A Python with the libraries, in an environment of its own that is kept for the next time.
fn python() -> Option<PathBuf> {
    let environment = output_directory().ok()?.join("python");
    let python = environment.join("bin/python");
    let has_libraries = || succeeds(Command::new(&python).args(["-c", "import aio_pika, httpx, pydantic, redis"]));
    if has_libraries() {
        return Some(python);
    }
    let made = succeeds(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        && succeeds(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PYTHON_LIBRARIES))
        && has_libraries();
    if !made {
        eprintln!("Python's libraries are not to be had (python3 -m venv, pip install); its runs are left out");
    }
    made.then_some(python)
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
