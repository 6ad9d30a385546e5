//! What the demo runs on: the servers, and sandbox, worker and relay as processes of this same binary.
//!
//! Everything ends when the stage is dropped, or when we are killed. On a broker and a Redis that were given, the
//! names begin with a prefix of this run, and [`Stage::clear`] takes them away again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::servers::watched::{Scratch, Spec, Watched};
use crate::servers::{Broker, Redis};

/// How long a process may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The second writer and the faults, as `PUT /_sandbox/…` takes them.
const FAULTS: &str = r#"{"server_error": {"probability": 0.015, "only": {"methods": ["PATCH"]}},
    "applied_then_500": {"probability": 0.015, "only": {"methods": ["PATCH"]}}, "parameters": {"statuses": [500]}}"#;
/// The keys of the second writer.
pub(super) const SECOND_WRITER_KEYS: [&str; 2] = ["crm_owner", "crm_score"];

/// The running parts. Field order is drop order: whoever uses a server ends before it.
#[derive(Debug)]
pub struct Stage {
    /// Takes jobs; killed and started again in the middle.
    pub worker: Watched,
    /// Delivers webhooks.
    pub relay: Watched,
    /// The target.
    pub sandbox: Watched,
    /// Address of the target.
    pub sandbox_url: String,
    /// The broker.
    pub broker: Broker,
    /// Redis.
    pub redis: Redis,
    /// Start of all names.
    pub prefix: String,
    /// The settings file of worker and relay.
    pub settings: PathBuf,
    http: reqwest::Client,
    scratch: Scratch,
}

impl Stage {
    /// Starts everything; events go to `receiver`, signed with `secret`.
    ///
    /// # Errors
    /// What could not be started, and why.
    pub async fn start(receiver: &str, secret: &str) -> anyhow::Result<Stage> {
        let (broker, redis) = tokio::try_join!(Broker::start(), Redis::start())?;
        // From here on the sandbox's watcher takes the directory along.
        let scratch = Scratch::new("demo").context("cannot make a temporary directory")?;
        let sandbox = sandbox(scratch.path())?;
        let sandbox_url = word_after(&sandbox, "sandbox listening on ").await?;
        let ours = broker.is_private() && redis.is_private();
        let prefix = if ours { "context".to_owned() } else { format!("context-demo-{}", std::process::id()) };
        let settings = scratch.path().join("settings.toml");
        let text = settings_text(broker.url(), redis.url(), &prefix, &sandbox_url, receiver, secret);
        std::fs::write(&settings, text).context("cannot write the settings file")?;
        run(&settings, &["topology", "apply"]).await?;
        let worker = long_running(&settings, "worker", scratch.path())?;
        let relay = long_running(&settings, "relay", scratch.path())?;
        let http = reqwest::Client::new();
        let stage = Stage { worker, relay, sandbox, sandbox_url, broker, redis, prefix, settings, http, scratch };
        stage.ready(&stage.worker).await.context("the worker")?;
        stage.ready(&stage.relay).await.context("the relay")?;
        Ok(stage)
    }

    /// Kills the worker with SIGKILL and starts another one.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn kill_worker(&mut self) -> anyhow::Result<()> {
        self.worker.signal("KILL");
        self.worker.wait().await;
        self.worker = long_running(&self.settings, "worker", self.scratch.path())?;
        Ok(())
    }

    /// Runs a short command of this binary with the settings of the demo; what it printed.
    ///
    /// # Errors
    /// It failed: with what it said.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&self.settings, arguments).await
    }

    /// Asks the sandbox's control interface.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn control(&self, path: &str) -> anyhow::Result<Value> {
        let url = format!("{}/_sandbox/{path}", self.sandbox_url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// Lets the second writer write, or stops it.
    ///
    /// # Errors
    /// The sandbox does not answer, or refuses.
    pub async fn second_writer(&self, enabled: bool) -> anyhow::Result<()> {
        let body = serde_json::json!({"enabled": enabled, "writes_per_second": 40, "keys": SECOND_WRITER_KEYS});
        let url = format!("{}/_sandbox/second-writer", self.sandbox_url);
        self.http.put(url).json(&body).send().await?.error_for_status()?;
        Ok(())
    }

    /// The address of a process' admin HTTP.
    ///
    /// # Errors
    /// It ended, or has not said it in time.
    pub async fn admin(&self, process: &Watched) -> anyhow::Result<String> {
        word_after(process, "admin listening on ").await
    }

    /// Ends worker, relay and sandbox, and takes away what was declared on servers that were given.
    ///
    /// # Errors
    /// A given server refuses.
    pub async fn clear(self) -> anyhow::Result<()> {
        let Stage { worker, relay, sandbox, broker, redis, prefix, settings, scratch, .. } = self;
        for process in [&worker, &relay] {
            process.signal("TERM");
            if tokio::time::timeout(READY_WITHIN, process.wait()).await.is_err() {
                process.signal("KILL");
            }
        }
        drop((worker, relay));
        if !broker.is_private() {
            super::leftovers::declared(&settings, broker.url()).await?;
        }
        if !redis.is_private() {
            super::leftovers::keys(redis.url(), &prefix).await?;
        }
        drop(sandbox);
        broker.stop().await;
        redis.stop().await;
        drop(scratch);
        Ok(())
    }

    /// Copies the logs to where they stay.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn keep_logs(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        for entry in std::fs::read_dir(self.scratch.path())? {
            let path = entry?.path();
            if let (Some("log"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_name()) {
                std::fs::copy(&path, directory.join(name))?;
            }
        }
        Ok(())
    }

    async fn ready(&self, process: &Watched) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.admin(process).await?);
        let started = tokio::time::Instant::now();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        let mut last = String::new();
        while started.elapsed() < READY_WITHIN {
            tick.tick().await;
            match self.http.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => last = answer.text().await.unwrap_or_default(),
                Err(error) => last = error.to_string(),
            }
        }
        bail!("not ready within {READY_WITHIN:?}: {last}")
    }
}

fn settings_text(amqp: &str, redis: &str, prefix: &str, target: &str, receiver: &str, secret: &str) -> String {
    format!(
        r##"# Made by `context-injector demo`.
[amqp]
url = "{amqp}"
prefix = "{prefix}"

[redis]
url = "{redis}"
prefix = "{prefix}"

[admin]
listen = "127.0.0.1:0"

[bots.default]
base_url = "{target}"
allow_http = true
client_id = "sandbox"
client_secret = "sandbox-secret"

[endpoints.analytics]
url = "{receiver}"
secret = "{secret}"
events = ["#"]
allow_http = true
allow_networks = ["127.0.0.0/8"]
"##
    )
}

fn us() -> anyhow::Result<OsString> {
    Ok(std::env::current_exe().context("cannot find this program's own file")?.into())
}

fn sandbox(directory: &Path) -> anyhow::Result<Watched> {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--faults", FAULTS];
    let command = std::iter::once(us()?).chain(arguments.iter().map(Into::into)).collect();
    let (log, scratch) = (directory.join("sandbox.log"), Some(directory.to_owned()));
    let spec = Spec { command, log, scratch, ..Spec::default() };
    Watched::spawn(&spec).context("cannot start the sandbox")
}

fn long_running(settings: &Path, command: &str, directory: &Path) -> anyhow::Result<Watched> {
    let log = directory.join(format!("{command}.log"));
    // The address of the process before must not be taken for this one's.
    if log.exists() {
        std::fs::rename(&log, directory.join(format!("{command}-killed.log")))?;
    }
    let spec = Spec {
        command: vec![us()?, "--config".into(), settings.into(), command.into()],
        env: vec![("NO_COLOR".to_owned(), "1".into())],
        env_remove: vec!["CONTEXT_INJECTOR", "AMQP_URL", "REDIS_URL"],
        log,
        ..Spec::default()
    };
    Watched::spawn(&spec).with_context(|| format!("cannot start the {command}"))
}

async fn run(settings: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(us()?);
    command.arg("--config").arg(settings).args(arguments).env_remove("AMQP_URL").env_remove("REDIS_URL");
    let output = command.stdin(std::process::Stdio::null()).kill_on_drop(true).output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The word behind `mark` in a process' log, as soon as it is there.
async fn word_after(process: &Watched, mark: &str) -> anyhow::Result<String> {
    let started = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    while started.elapsed() < READY_WITHIN {
        tick.tick().await;
        let log = std::fs::read_to_string(process.log()).unwrap_or_default();
        let found = log.split_once(mark).and_then(|(_, rest)| rest.split_once(char::is_whitespace));
        if let Some((word, _)) = found {
            return Ok(word.to_owned());
        }
        if let Some(status) = process.ended() {
            bail!("it ended with status {status}:\n{}", process.log_tail());
        }
    }
    bail!("it has not said \"{mark}\" within {READY_WITHIN:?}:\n{}", process.log_tail())
}
