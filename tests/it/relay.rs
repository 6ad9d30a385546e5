//! Every outcome reaches every endpoint that wants it, signed, at least once, whatever the receiver does; what
//! cannot be delivered waits or becomes a dead letter, and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use context_injector::admin::Health;
use context_injector::broker::topology::{self, Names, Part};
use context_injector::broker::{Broker, Incoming, Mandatory, Message, Options, Publisher, header, subscribe};
use context_injector::config::Config;
use context_injector::relay;
use context_injector::relay::memory::Memory;
use context_injector::relay::signature::Verifier;
use context_injector::servers;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{amqp_url, unique_prefix, within};

mod isolates;
mod operators;
mod orders;
mod reacts;
mod survives;
mod worst;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async fn redis_url() -> &'static str {
    static REDIS: OnceCell<servers::Redis> = OnceCell::const_new();
    REDIS.get_or_init(async || servers::Redis::start().await.expect("a Redis")).await.url()
}

/// A receiver that verifies every request and answers as it is told.
struct Receiver {
    address: SocketAddr,
    /// Ids in the order in which they came.
    seen: watch::Receiver<Vec<String>>,
}

/// What a receiver answers to the n-th request (from 0) with this id as its k-th (from 0).
type Behaviour = Arc<dyn Fn(usize, usize) -> Reply + Send + Sync>;

enum Reply {
    Status(u16),
    With(u16, &'static str, &'static str),
    Never,
}

impl Receiver {
    async fn start(behave: impl Fn(usize, usize) -> Reply + Send + Sync + 'static) -> Self {
        let behave: Behaviour = Arc::new(behave);
        let (sender, seen) = watch::channel(Vec::new());
        let counts = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
        let handler = move |headers: HeaderMap, body: Bytes| {
            let (behave, counts, sender) = (Arc::clone(&behave), Arc::clone(&counts), sender.clone());
            async move {
                let id = verify(&headers, &body);
                let of_id = {
                    let mut counts = counts.lock().unwrap();
                    let count = counts.entry(id.clone()).or_default();
                    *count += 1;
                    *count - 1
                };
                let mut number = 0;
                sender.send_modify(|seen| {
                    number = seen.len();
                    seen.push(id);
                });
                match behave(number, of_id) {
                    Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
                    Reply::With(status, name, value) => {
                        (StatusCode::from_u16(status).unwrap(), [(name, value)]).into_response()
                    }
                    Reply::Never => std::future::pending().await,
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().route("/hook", axum::routing::post(handler));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, seen }
    }

    fn settings(&self, name: &str, more: &str) -> String {
        let address = self.address;
        format!(
            "[endpoints.{name}]\nurl = \"http://{address}/hook\"\nsecret = {SECRET:?}\nallow_http = true\n\
             allow_networks = [\"127.0.0.0/8\"]\n{more}\n"
        )
    }

    /// Waits until that many requests came.
    async fn requests(&self, count: usize) -> Vec<String> {
        let mut seen = self.seen.clone();
        let seen = within(&format!("{count} requests"), seen.wait_for(|seen| seen.len() >= count)).await.unwrap();
        seen.clone()
    }

    /// Waits until all of these ids came at least once.
    async fn all_of(&self, ids: &BTreeSet<String>) -> Vec<String> {
        let mut seen = self.seen.clone();
        let came = |seen: &Vec<String>| seen.iter().collect::<BTreeSet<_>>().len() >= ids.len();
        let seen = within("every event", seen.wait_for(came)).await.unwrap().clone();
        assert_eq!(&seen.iter().cloned().collect::<BTreeSet<_>>(), ids);
        seen
    }
}

fn verify(headers: &HeaderMap, body: &[u8]) -> String {
    let header = |name: &str| headers[name].to_str().unwrap();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let (id, time, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    Verifier::new([SECRET]).unwrap().verify(id, time, signature, body, now).expect("a good signature");
    assert_eq!(header("content-type"), "application/cloudevents+json");
    id.to_owned()
}

/// A relay in this process, and a producer of events.
struct Room {
    config: Config,
    names: Names,
    broker: Broker,
    publisher: Publisher,
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

fn settings(amqp: &str, redis: &str, prefix: &str, more: &str) -> String {
    format!(
        "{more}\n[amqp]\nurl = {amqp:?}\nprefix = {prefix:?}\n[redis]\nurl = {redis:?}\nprefix = {prefix:?}\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n"
    )
}

impl Room {
    async fn open(name: &str, more: &str) -> Self {
        Self::open_at(amqp_url().await, redis_url().await, name, more).await
    }

    async fn open_at(amqp: &str, redis: &str, name: &str, more: &str) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let config = Config::parse(&settings(amqp, redis, &unique_prefix(name), more), []).expect("settings");
        let plan = topology::plan(&config, Part::Relay);
        let broker = Broker::start_declaring(&config.amqp, name, plan, CancellationToken::new());
        within("a connection", broker.connection()).await;
        let (publisher, names) = (Publisher::new(&broker), Names::new(&config.amqp.prefix));
        let stop = CancellationToken::new();
        let relay = serve(&config, &broker, &stop);
        Self { config, names, broker, publisher, stop, relay }
    }

    /// For a relay as a process of its own: everything is declared, nothing delivers.
    async fn open_without_relay(name: &str, more: &str) -> Self {
        let mut room = Self::open(name, more).await;
        room.stop.cancel();
        within("the relay stops", &mut room.relay).await.unwrap();
        room.relay = tokio::spawn(async {});
        room
    }

    /// Publishes an outcome and returns its id.
    async fn publish(&self, key: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let body = format!(r#"{{"specversion":"1.0","id":"{id}","time":"{}","data":{{}}}}"#, jiff::Timestamp::now());
        let message = Message::new(body).with_message_id(&id);
        loop {
            let published = self.publisher.publish(&self.names.outcomes(), key, &message, Mandatory::Yes).await;
            match published {
                Ok(()) => return id,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }

    async fn publish_many(&self, count: usize) -> BTreeSet<String> {
        let publishing = (0..count).map(|_| self.publish("default.applied"));
        futures_util::future::join_all(publishing).await.into_iter().collect()
    }

    async fn dead_letter(&self) -> Incoming {
        let options = Options { prefetch: 1, tag: "test".into(), ..Options::default() };
        let mut dead = within("a subscription", subscribe(&self.broker, &self.names.webhooks_dead(), options)).await;
        within("a dead letter", dead.as_mut().unwrap().next()).await.unwrap()
    }

    /// Waits until so many events wait in the endpoint's queue (those in hand do not count).
    async fn waiting(&self, endpoint: &str, count: u32) {
        let queue = self.names.webhooks_of(endpoint);
        within(&format!("{count} events wait in {queue}"), async {
            loop {
                let connection = self.broker.connection().await;
                if topology::depth(&connection, &queue).await.unwrap().unwrap().ready == count {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn restart_relay(&mut self) {
        self.stop.cancel();
        within("the relay stops", &mut self.relay).await.unwrap();
        self.start_relay();
    }

    fn start_relay(&mut self) {
        self.stop = CancellationToken::new();
        self.relay = serve(&self.config, &self.broker, &self.stop);
    }

    async fn close(self) {
        self.stop.cancel();
        within("the relay stops", self.relay).await.unwrap();
        self.broker.close().await;
    }
}

fn serve(config: &Config, broker: &Broker, stop: &CancellationToken) -> JoinHandle<()> {
    let (config, broker, stop) = (config.clone(), broker.clone(), stop.clone());
    tokio::spawn(async move { relay::serve(&config, &broker, &Health::new(), stop).await })
}

/// The binary as a process of its own.
struct Process {
    child: tokio::process::Child,
    file: std::path::PathBuf,
}

impl Process {
    fn settings(text: &str) -> std::path::PathBuf {
        let file = std::env::temp_dir().join(format!("context-injector-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&file, text).unwrap();
        file
    }

    fn start(file: &std::path::Path) -> Self {
        Self::start_with(file, |_| {})
    }

    /// One that trusts this certificate authority alone.
    fn start_trusting(file: &std::path::Path, authority: &std::path::Path) -> Self {
        Self::start_with(file, |command| {
            command.env("SSL_CERT_FILE", authority).env_remove("SSL_CERT_DIR");
        })
    }

    fn start_with(file: &std::path::Path, change: impl FnOnce(&mut tokio::process::Command)) -> Self {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"));
        command.args(["relay", "--config"]).arg(file).kill_on_drop(true);
        change(&mut command);
        command.stderr(std::process::Stdio::null());
        Self { child: command.spawn().unwrap(), file: file.to_owned() }
    }

    /// The most memory that it ever had, in kB.
    fn peak_memory(&self) -> u32 {
        let id = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// SIGKILL, and the same again.
    async fn replace(&mut self) {
        self.child.kill().await.unwrap();
        *self = Self::start(&self.file.clone());
    }
}
