//! The real binary as a real process: started, watched through its log and its admin HTTP, killed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use context_injector::servers::watched::{Spec, Watched};

use super::{LIMIT, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_context-injector");

/// A worker, a relay, or both. It is killed when this is dropped.
pub struct Process {
    watched: Watched,
    http: reqwest::Client,
}

impl Process {
    pub(super) fn spawn(command: &str, settings: &Path, log: PathBuf, http: reqwest::Client) -> Process {
        let spec = Spec {
            command: vec![BINARY.into(), "--config".into(), settings.into(), command.into()],
            env: vec![("NO_COLOR".into(), "1".into())],
            env_remove: vec!["CONTEXT_INJECTOR", "AMQP_URL", "REDIS_URL", "RUST_LOG"],
            log,
            ..Spec::default()
        };
        Process::watch(&spec, http)
    }

    pub(super) fn watch(spec: &Spec, http: reqwest::Client) -> Process {
        Process { watched: Watched::spawn(spec).unwrap(), http }
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.watched.log()).unwrap_or_default()).into_owned()
    }

    /// Waits for a line in its log that holds the text.
    pub async fn logs(&self, text: &str) -> String {
        eventually(LIMIT, &format!("a log line with {text:?}"), async || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// The address of its admin HTTP, as it logged it.
    pub async fn admin(&self) -> String {
        eventually(LIMIT, "a log line that names the admin address", async || {
            let ended = self.watched.ended();
            assert_eq!(ended, None, "it ended instead:\n{}", self.watched.log_tail());
            let log = self.log();
            let (_, rest) = log.split_once("admin listening on ")?;
            let (url, _) = rest.split_once(char::is_whitespace)?;
            Some(url.to_owned())
        })
        .await
    }

    /// What one of its pages says now: status and text; `None` where it does not answer.
    pub async fn page(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("{}{path}", self.admin().await);
        let answer = self.http.get(url).timeout(Duration::from_secs(5)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        eventually(LIMIT, "a process that is ready", async || {
            self.page("/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Waits until it says that it is not ready, for a reason that names the text.
    pub async fn not_ready_because_of(&self, text: &str) {
        eventually(LIMIT, &format!("a process that is not ready because of {text}"), async || {
            self.page("/readyz").await.filter(|(status, why)| *status == 503 && why.contains(text))
        })
        .await;
    }

    /// The sum of a metric over the series that have these labels; 0 where there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (_, text) = self.page("/metrics").await.unwrap_or_default();
        sum(&text, name, labels)
    }

    /// SIGKILL, and gone.
    pub async fn kill9(&self) {
        self.watched.signal("KILL");
        self.watched.wait().await;
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.watched.signal("TERM");
    }

    /// SIGSTOP: its connections stay open and it does nothing.
    pub fn suspend(&self) {
        self.watched.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.watched.signal("CONT");
    }

    /// Waits until it ends by itself; its exit code.
    pub async fn wait_exit(&self) -> i32 {
        tokio::time::timeout(LIMIT, self.watched.wait()).await.expect("a process that ends")
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        self.watched.ended().is_none()
    }
}

/// Runs a command of the real binary to its end: exit code, and its output; after a failure its errors too.
pub async fn run_to_end(arguments: &[&str], settings: Option<&Path>, environment: &[(&str, &OsStr)]) -> (i32, String) {
    let mut command = tokio::process::Command::new(BINARY);
    for name in std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CONTEXT_INJECTOR")) {
        command.env_remove(name);
    }
    command.env_remove("AMQP_URL").env_remove("REDIS_URL").env("NO_COLOR", "1");
    command.envs(environment.iter().copied());
    if let Some(settings) = settings {
        command.arg("--config").arg(settings);
    }
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("a command that ends").unwrap();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status.code().unwrap_or(-1), text)
}

/// The sum of the samples of a metric in Prometheus' text format.
fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let mut total = 0.0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (metric, inner) = series.split_once('{').unwrap_or((series, ""));
        let has = |label: &str, wanted: &str| {
            let mut pairs = inner.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            pairs.any(|(name, value)| name == label && value.trim_matches('"') == wanted)
        };
        if metric == name && labels.iter().all(|(label, wanted)| has(label, wanted)) {
            total += value.parse::<f64>().unwrap_or(0.0);
        }
    }
    total
}
