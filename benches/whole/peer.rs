//! A peer as a process of its own, and what it costs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use context_injector::servers::watched::{Spec, Watched};

use crate::floor;
use crate::stage::Stage;

/// How long a peer may take until it takes jobs.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Clock ticks of `/proc/PID/stat`: Linux shows all programs 100 a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Worker,
    /// Another build of the worker, that `BENCH_BEFORE` names.
    Before,
    Floor,
    /// The floor with an event like the worker's: what telling as much costs, beside all else that the worker does.
    Telling,
    Python,
}

/// What a peer does before it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// The version is known: nothing.
    Write,
    /// It is not: a GET.
    Read,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Before => "before",
            Self::Floor => "floor",
            Self::Telling => "telling",
            Self::Python => "python",
        }
    }

    /// The worker's binary; `None`: it is none, or there is none.
    fn binary(self) -> Option<OsString> {
        match self {
            Self::Worker => Some(env!("CARGO_BIN_EXE_context-injector").into()),
            Self::Before => std::env::var_os("BENCH_BEFORE"),
            Self::Floor | Self::Telling | Self::Python => None,
        }
    }

    /// Whether it can run here and is wanted (`BENCH_PEERS=worker,floor`).
    pub fn takes_part(self, stage: &Stage) -> bool {
        let is_there = match self {
            Self::Worker | Self::Floor | Self::Telling => true,
            Self::Before => self.binary().is_some(),
            Self::Python => stage.python.is_some(),
        };
        is_there && std::env::var("BENCH_PEERS").map_or(true, |peers| peers.split(',').any(|name| name == self.name()))
    }

    /// Starts the peer. `first` is what the floor and Python do; the worker knows by itself.
    pub fn start(self, stage: &Stage, in_flight: usize, first: First) -> anyhow::Result<Running> {
        let (amqp, redis) = (stage.broker.url(), stage.redis.url());
        let first = if first == First::Read { "read" } else { "write" };
        let in_words = in_flight.to_string();
        let told = if self == Self::Telling { "telling" } else { "plain" };
        let arguments = [amqp, redis, stage.api.url(), &in_words, first, told].map(str::to_owned);
        let command = match self {
            Self::Worker | Self::Before => {
                let binary = self.binary().context("BENCH_BEFORE names no binary")?;
                let settings = stage.settings(in_flight, 100_000, 10_000)?;
                vec![binary, "--config".into(), settings.into(), "worker".into()]
            }
            Self::Floor | Self::Telling => vec![std::env::current_exe()?.into_os_string(), floor::COMMAND.into()],
            Self::Python => {
                let python = stage.python.clone().context("Python's libraries are not there")?;
                vec![python.into(), concat!(env!("CARGO_MANIFEST_DIR"), "/benches/whole/python_worker.py").into()]
            }
        };
        let arguments = arguments.map(Into::into).into_iter().filter(|_| self.binary().is_none());
        Running::spawn(stage, command.into_iter().chain(arguments).collect())
    }
}

/// A peer that runs; it is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    watched: Watched,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Memory now, and at most, in MB.
    pub memory: f64,
    pub peak: f64,
}

impl Usage {
    /// What a process has used so far.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold blanks; user and system time are the 12th and 13th field behind it.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kib.unwrap_or(0.0) * 1_024.0 / 1e6
        };
        let cpu = Duration::from_secs_f64((ticks(11) + ticks(12)) / TICKS_PER_SECOND);
        Ok(Self { cpu, memory: megabytes("VmRSS:"), peak: megabytes("VmHWM:") })
    }
}

impl Running {
    /// A command of the real binary.
    pub fn of_ours(stage: &Stage, command: &[&str], settings: &std::path::Path) -> anyhow::Result<Self> {
        let binary = env!("CARGO_BIN_EXE_context-injector");
        let settings: [OsString; 2] = ["--config".into(), settings.into()];
        let command = command.iter().map(OsString::from);
        Self::spawn(stage, std::iter::once(binary.into()).chain(settings).chain(command).collect())
    }

    fn spawn(stage: &Stage, command: Vec<OsString>) -> anyhow::Result<Self> {
        let log: PathBuf = stage.next_log();
        let env_remove = vec!["CONTEXT_INJECTOR", "AMQP_URL", "REDIS_URL", "RUST_LOG"];
        let env = vec![("NO_COLOR".to_owned(), "1".into()), ("PYTHONUNBUFFERED".to_owned(), "1".into())];
        Ok(Self { watched: Watched::spawn(&Spec { command, env, env_remove, log, ..Spec::default() })? })
    }

    /// Waits until it takes jobs (or, the relay, events).
    pub async fn ready(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.watched.log()).unwrap_or_default();
            let ready = match log.split_once("admin listening on ") {
                Some((_, rest)) => is_ready(rest.split_whitespace().next().unwrap_or_default()).await,
                None => log.contains("taking jobs"),
            };
            if ready {
                return Ok(());
            }
            anyhow::ensure!(began.elapsed() < READY_WITHIN, "a peer is not ready:\n{}", self.watched.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL; returns when it is gone.
    pub async fn kill9(&self) {
        self.watched.signal("KILL");
        self.watched.wait().await;
    }

    /// Waits until it has ended by itself; its exit status.
    pub async fn ended(&self) -> i32 {
        self.watched.wait().await
    }

    /// What it has used so far.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.watched.pid()).with_context(|| format!("a peer ended:\n{}", self.watched.log_tail()))
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.watched.log_tail()
    }
}

async fn is_ready(address: &str) -> bool {
    let answer = reqwest::Client::new().get(format!("{address}/readyz")).timeout(Duration::from_secs(5)).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}
