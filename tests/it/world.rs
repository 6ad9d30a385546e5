//! A world of its own for each test: own names on the shared broker and Redis, own target, own settings, own
//! processes. Dropping it ends the processes, and prints their logs where the test has failed.

mod process;
mod queues;
mod servers;
mod target;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use context_injector::sandbox::{self, Sandbox};
use context_injector::servers::watched::{Scratch, Spec};
use context_injector::servers::{Broker, Redis};

pub use process::{Process, run_to_end};
pub use queues::{Outcome, Properties};
pub use servers::Servers;

/// How long a fact may take on a machine that is busy with other tests.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The name of the bot that every world has.
pub const BOT: &str = "default";
/// A webhook secret of the right form.
pub const SECRET: &str = "whsec_bm90IGEgc2VjcmV0LCBidXQgbG9uZyBlbm91Z2ghISE=";

/// What differs from an ordinary world.
pub struct Setup {
    /// The target.
    pub sandbox: sandbox::Settings,
    /// Servers that this test may kill, suspend and wipe.
    pub private: Option<Servers>,
    settings: toml::Table,
}

impl Setup {
    /// A setting by its dotted name.
    pub fn set(&mut self, name: &str, value: impl Into<toml::Value>) -> &mut Setup {
        let (path, key) = name.rsplit_once('.').unwrap();
        let mut table = &mut self.settings;
        for part in path.split('.') {
            table = table.entry(part).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// A setting that is text.
    pub fn get(&self, name: &str) -> String {
        let parts = name.split('.').collect::<Vec<_>>();
        let mut value = &self.settings[parts[0]];
        for part in &parts[1..] {
            value = &value[*part];
        }
        value.as_str().unwrap().to_owned()
    }

    /// Takes a whole section out.
    pub fn remove(&mut self, section: &str) {
        self.settings.remove(section);
    }

    /// A webhook endpoint that a receiver on this machine serves.
    pub fn endpoint(&mut self, name: &str, url: &str) -> &mut Setup {
        self.set(&format!("endpoints.{name}.url"), url)
            .set(&format!("endpoints.{name}.secret"), SECRET)
            .set(&format!("endpoints.{name}.allow_http"), true)
            .set(&format!("endpoints.{name}.allow_networks"), vec!["127.0.0.0/8"])
    }
}

/// Everything that one test has.
pub struct World {
    /// Start of the names of its exchanges and queues.
    pub prefix: String,
    pub sandbox: Sandbox,
    pub amqp_url: String,
    setup: Setup,
    settings: PathBuf,
    directory: Scratch,
    queues: tokio::sync::OnceCell<queues::Queues>,
    http: reqwest::Client,
    logs: RefCell<Vec<(String, PathBuf)>>,
    conversations: AtomicU32,
}

impl World {
    /// An ordinary world: everything declared, nothing running but the target.
    pub async fn new() -> World {
        World::with(|_| {}).await
    }

    /// A world with something different; its topology is declared.
    pub async fn with(change: impl FnOnce(&mut Setup)) -> World {
        let world = World::bare(None, change).await;
        world.apply_topology().await;
        world
    }

    /// A world with servers of its own, for tests that kill or wipe them.
    pub async fn with_private_servers(change: impl FnOnce(&mut Setup)) -> World {
        let world = World::bare(Some(Servers::private().await), change).await;
        world.apply_topology().await;
        world
    }

    /// A world in which nothing has been declared yet.
    pub async fn bare(private: Option<Servers>, change: impl FnOnce(&mut Setup)) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("it{}-{number}", std::process::id());
        let sandbox = sandbox::Settings { rate: 0.0, ..sandbox::Settings::default() };
        let mut setup = Setup { sandbox, private, settings: toml::Table::new() };
        let (amqp_url, redis_url) = match &setup.private {
            Some(servers) => servers.urls(),
            None => Servers::shared().await.urls(),
        };
        setup
            .set("amqp.url", amqp_url.as_str())
            .set("amqp.prefix", prefix.as_str())
            .set("redis.url", redis_url.as_str())
            .set("redis.prefix", prefix.as_str())
            .set("admin.listen", "127.0.0.1:0")
            .set("log.level", "info,context_injector=debug")
            .set("relay.retry_schedule", vec!["100ms", "300ms"])
            .set("bots.default.allow_http", true)
            .set("bots.default.client_id", "sandbox")
            .set("bots.default.client_secret", "sandbox-secret")
            .set("bots.default.requests_per_second", 100_000)
            .set("bots.default.burst", 10_000);
        change(&mut setup);
        let sandbox = sandbox::start(setup.sandbox.clone()).await.unwrap();
        let has_url = setup.settings["bots"]["default"].get("base_url").is_some();
        if !has_url {
            setup.set("bots.default.base_url", sandbox.url());
        }
        let directory = Scratch::new("world").unwrap();
        let settings = directory.path().join("settings.toml");
        std::fs::write(&settings, toml::to_string(&setup.settings).unwrap()).unwrap();
        World {
            setup,
            prefix,
            sandbox,
            amqp_url,
            settings,
            directory,
            queues: tokio::sync::OnceCell::new(),
            http: reqwest::Client::new(),
            logs: RefCell::default(),
            conversations: AtomicU32::new(0),
        }
    }

    /// Declares everything with the command that an operator uses.
    pub async fn apply_topology(&self) {
        let (status, output) = self.command(&["topology", "apply"]).await;
        assert_eq!(status, 0, "topology apply: {output}");
    }

    /// The servers that this test may kill.
    pub fn servers(&mut self) -> &mut Servers {
        self.setup.private.as_mut().unwrap()
    }

    /// Hands the private servers over, so that each can be killed on its own.
    pub fn take_servers(&mut self) -> (Broker, Redis) {
        match self.setup.private.take() {
            Some(Servers::Own { broker, redis }) => (*broker, *redis),
            _ => panic!("a world with private servers of its own"),
        }
    }

    /// Copies the logs of its processes into a directory.
    pub fn keep_logs(&self, directory: &Path) {
        for (name, log) in self.logs.borrow().iter() {
            let _ = std::fs::copy(log, directory.join(format!("{}.log", name.replace(' ', "-"))));
        }
    }

    /// Changes the settings of what is started from now on.
    pub fn change_settings(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        std::fs::write(&self.settings, toml::to_string(&self.setup.settings).unwrap()).unwrap();
    }

    /// A conversation that no other test of this run has.
    pub fn conversation(&self) -> String {
        format!("conv_{:08x}", self.conversations.fetch_add(1, Ordering::Relaxed))
    }

    /// The worker, ready.
    pub async fn start_worker(&self) -> Process {
        let worker = self.spawn("worker");
        worker.ready().await;
        worker
    }

    /// The relay, ready.
    pub async fn start_relay(&self) -> Process {
        let relay = self.spawn("relay");
        relay.ready().await;
        relay
    }

    /// Worker and relay in one process, ready.
    pub async fn start_run(&self) -> Process {
        let both = self.spawn("run");
        both.ready().await;
        both
    }

    /// A long-running command of the real binary, started and not waited for.
    pub fn spawn(&self, command: &str) -> Process {
        let log = self.log(command);
        Process::spawn(command, &self.settings, log, self.http.clone())
    }

    /// The same where something else starts it, a container say: `how` gets the settings and the log.
    pub fn spawn_as(&self, name: &str, how: impl FnOnce(&Path, PathBuf) -> Spec) -> Process {
        let spec = how(&self.settings, self.log(name));
        Process::watch(&spec, self.http.clone())
    }

    fn log(&self, name: &str) -> PathBuf {
        let number = self.logs.borrow().len();
        let log = self.directory.path().join(format!("{number}-{name}.log"));
        self.logs.borrow_mut().push((format!("{name} {number}"), log.clone()));
        log
    }

    /// A short command of the real binary: its exit code and what it printed, errors after output.
    pub async fn command(&self, arguments: &[&str]) -> (i32, String) {
        self.command_in(&[], arguments).await
    }

    /// The same with more in its environment.
    pub async fn command_in(&self, environment: &[(&str, &OsStr)], arguments: &[&str]) -> (i32, String) {
        run_to_end(arguments, Some(&self.settings), environment).await
    }

    /// A short command that must succeed and print one JSON document or JSON lines.
    pub async fn json(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let (status, output) = self.command(arguments).await;
        assert_eq!(status, 0, "{arguments:?}: {output}");
        let documents = serde_json::Deserializer::from_str(&output).into_iter::<serde_json::Value>();
        let documents: Vec<_> = documents.map(|document| document.expect(&output)).collect();
        match documents.as_slice() {
            [serde_json::Value::Array(items)] => items.clone(),
            _ => documents,
        }
    }

    /// The settings file, `settings.toml` in the world's directory.
    pub fn settings(&self) -> &Path {
        &self.settings
    }

    /// A directory in the world's directory.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, log) in self.logs.borrow().iter() {
                let text = std::fs::read(log).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- the last lines of {name} ---");
                eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
}

/// Looks again and again until there is an answer; fails after the limit with what never came.
pub async fn eventually<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Some(answer) = look().await {
            return answer;
        }
        assert!(started.elapsed() < limit, "within {limit:?} there was never: {what}");
    }
}
