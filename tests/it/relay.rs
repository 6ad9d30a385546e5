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

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_gets_the_outcomes_that_it_wants_once_and_signed() {
    let (all, failed) =
        (Receiver::start(|_, _| Reply::Status(204)).await, Receiver::start(|_, _| Reply::Status(200)).await);
    let more = all.settings("all", "") + &failed.settings("failed", "events = [\"*.not_applied\"]");
    let room = Room::open("relay-filters", &more).await;
    let applied = room.publish("default.applied").await;
    let not_applied = room.publish("other.not_applied").await;
    all.all_of(&BTreeSet::from([applied, not_applied.clone()])).await;
    assert_eq!(failed.requests(1).await, [not_applied]);
    room.waiting("all", 0).await;
    room.close().await;
    assert_eq!((all.seen.borrow().len(), failed.seen.borrow().len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_climbs_the_ladder_with_its_id_until_it_arrives() {
    let receiver = Receiver::start(|number, _| match number {
        0 => Reply::Status(500),
        1 => Reply::With(429, "retry-after", "1"),
        2 => Reply::With(302, "location", "http://127.0.0.1:1/"),
        _ => Reply::Status(200),
    })
    .await;
    let more = "[relay]\nretry_schedule = [\"50ms\", \"60ms\", \"1s\"]\n".to_owned() + &receiver.settings("one", "");
    let room = Room::open("relay-ladder", &more).await;
    let begun = std::time::Instant::now();
    let id = room.publish("default.applied").await;
    assert_eq!(receiver.requests(4).await, vec![id; 4]);
    // Retry-After: 1 takes the rung of 1 s instead of 60 ms, and the third wait is another 0.8 to 1.2 s.
    assert!(begun.elapsed() >= Duration::from_millis(1_800), "{:?}", begun.elapsed());
    room.waiting("one", 0).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_delivery_is_a_dead_letter_that_says_why() {
    let receiver = Receiver::start(|_, _| Reply::Status(503)).await;
    let more = "[relay]\nretry_schedule = [\"20ms\", \"20ms\"]\n".to_owned() + &receiver.settings("one", "");
    let room = Room::open("relay-exhausted", &more).await;
    let id = room.publish("default.applied").await;
    let letter = room.dead_letter().await;
    assert_eq!(receiver.requests(3).await, vec![id.clone(); 3]);
    let message = &letter.message;
    assert_eq!(message.text(header::REASON), Some("attempts_exhausted"));
    assert!(message.text(header::REASON_TEXT).unwrap().contains("503"), "{:?}", message.text(header::REASON_TEXT));
    assert_eq!(message.text(header::ENDPOINT), Some("one"));
    assert_eq!(message.integer(header::ATTEMPTS), Some(3));
    assert_eq!(message.integer(header::LAST_STATUS), Some(503));
    assert!(message.first_seen().is_some() && message.header("x-death").is_none());
    assert_eq!(message.message_id(), Some(id.as_str()));
    assert!(String::from_utf8_lossy(&message.body).contains(&id));
    letter.ack().await.unwrap();
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_error_is_final_unless_the_endpoint_says_otherwise() {
    let strict = Receiver::start(|_, _| Reply::Status(422)).await;
    let patient = Receiver::start(|_, of_id| Reply::Status(if of_id == 0 { 422 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"20ms\"]\n".to_owned()
        + &strict.settings("strict", "")
        + &patient.settings("patient", "retry_client_errors = true");
    let room = Room::open("relay-4xx", &more).await;
    let id = room.publish("default.applied").await;
    let letter = room.dead_letter().await;
    assert_eq!(letter.message.text(header::REASON), Some("refused_by_receiver"));
    assert_eq!(letter.message.text(header::ENDPOINT), Some("strict"));
    letter.ack().await.unwrap();
    assert_eq!(patient.requests(2).await, vec![id; 2]);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gone_disables_across_restarts_and_the_events_wait_until_it_is_enabled() {
    let receiver = Receiver::start(|number, _| Reply::Status(if number == 0 { 410 } else { 200 })).await;
    let mut room = Room::open("relay-gone", &receiver.settings("one", "max_in_flight = 1")).await;
    let mut ids = BTreeSet::from([room.publish("default.applied").await]);
    receiver.requests(1).await;
    ids.extend(room.publish_many(4).await);
    room.waiting("one", 5).await;
    // Redis is told within a second; a relay that stops before says it at the end.
    room.restart_relay().await;
    ids.insert(room.publish("default.applied").await);
    room.waiting("one", 6).await;
    assert_eq!(receiver.seen.borrow().len(), 1, "nothing was tried while it was disabled");
    assert!(Memory::new(&room.config.redis).unwrap().enable("one").await.unwrap());
    receiver.all_of(&ids).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_receiver_is_left_alone_and_its_events_wait_without_burning_attempts() {
    let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = Arc::clone(&well);
    let receiver = Receiver::start(move |_, _| {
        Reply::Status(if told.load(std::sync::atomic::Ordering::SeqCst) { 200 } else { 500 })
    })
    .await;
    // One rung only: an event that were tried twice while it is broken would be dead.
    let more = "[relay]\nretry_schedule = [\"2s\"]\nbreaker_open_for = \"100ms\"\nbreaker_open_max = \"200ms\"\n"
        .to_owned()
        + &receiver.settings("one", "max_in_flight = 1");
    let room = Room::open("relay-breaker", &more).await;
    let ids = room.publish_many(30).await;
    // Five failures open it; the probes after that are single.
    receiver.requests(8).await;
    well.store(true, std::sync::atomic::Ordering::SeqCst);
    receiver.all_of(&ids).await;
    room.waiting("one", 0).await;
    let dead = topology::depth(&*room.broker.connection().await, &room.names.webhooks_dead()).await.unwrap().unwrap();
    assert_eq!(dead.ready, 0);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let (hanging, quick) =
        (Receiver::start(|_, _| Reply::Never).await, Receiver::start(|_, _| Reply::Status(200)).await);
    let more = hanging.settings("hanging", "max_in_flight = 3") + &quick.settings("quick", "");
    let room = Room::open("relay-isolation", &more).await;
    let ids = room.publish_many(200).await;
    quick.all_of(&ids).await;
    assert!(hanging.seen.borrow().len() <= 3, "it holds at most its in-flight cap");
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_be_used_keeps_its_events_and_the_others_go_on() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let refused = receiver.settings("refused", "").replace("127.0.0.0/8", "10.0.0.0/8");
    let unsigned = receiver.settings("unsigned", "").replace("whsec_", "whsec_!");
    let named =
        receiver.settings("named", "").replace("127.0.0.0/8", "10.0.0.0/8").replace("//127.0.0.1", "//localhost");
    let more = receiver.settings("good", "") + &refused + &unsigned + &named;
    let room = Room::open("relay-unusable", &more).await;
    let id = room.publish("default.applied").await;
    assert_eq!(receiver.requests(1).await, [id]);
    for endpoint in ["refused", "unsigned", "named"] {
        room.waiting(endpoint, 1).await;
    }
    room.close().await;
    assert_eq!(receiver.seen.borrow().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_event_is_a_dead_letter_and_the_next_one_is_delivered() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let room = Room::open("relay-rubbish", &receiver.settings("one", "")).await;
    let rubbish = Message::new("rubbish");
    room.publisher.publish(&room.names.outcomes(), "default.applied", &rubbish, Mandatory::Yes).await.unwrap();
    let id = room.publish("default.applied").await;
    let letter = room.dead_letter().await;
    assert_eq!(
        (letter.message.text(header::REASON), &letter.message.body[..]),
        (Some("not_an_event"), &b"rubbish"[..])
    );
    letter.ack().await.unwrap();
    assert_eq!(receiver.requests(1).await, [id]);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_deleted_by_mistake_is_made_again() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let room = Room::open("relay-deleted", &receiver.settings("one", "")).await;
    let first = room.publish("default.applied").await;
    receiver.requests(1).await;
    let channel = room.broker.connection().await.create_channel().await.unwrap();
    let queue = room.names.webhooks_of("one");
    channel.queue_delete(queue.as_str().into(), Default::default()).await.unwrap();
    // Nobody takes an outcome until the queue is back and bound.
    let body = format!(r#"{{"id":"{}"}}"#, uuid::Uuid::new_v4());
    let message = Message::new(body);
    within("the queue is back", async {
        while room.publisher.publish(&room.names.outcomes(), "default.applied", &message, Mandatory::Yes).await.is_err()
        {
        }
    })
    .await;
    let second = room.publish("default.applied").await;
    let seen = receiver.requests(3).await;
    assert!(seen.contains(&first) && seen.contains(&second));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_everything_is_delivered() {
    let receiver = Receiver::start(|_, of_id| Reply::Status(if of_id == 0 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"20ms\"]\n".to_owned() + &receiver.settings("one", "");
    let room = Room::open_at(amqp_url().await, "redis://127.0.0.1:1/", "relay-no-redis", &more).await;
    let ids = room.publish_many(3).await;
    receiver.all_of(&ids).await;
    receiver.requests(6).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_under_way_and_keeps_the_rest() {
    let (release, released) = watch::channel(false);
    let released = Arc::new(released);
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let gate = Arc::clone(&released);
    let slow = axum::Router::new().route(
        "/hook",
        axum::routing::post(move || {
            let mut gate = (*gate).clone();
            async move { gate.wait_for(|open| *open).await.map(|_| StatusCode::OK).unwrap_or(StatusCode::BAD_GATEWAY) }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings =
        Receiver { address: listener.local_addr().unwrap(), ..receiver }.settings("one", "max_in_flight = 2");
    tokio::spawn(async move { axum::serve(listener, slow).await });
    let room = Room::open("relay-drain", &settings).await;
    room.publish_many(5).await;
    room.waiting("one", 3).await;
    room.stop.cancel();
    assert!(!room.relay.is_finished());
    release.send(true).unwrap();
    within("the relay stops", room.relay).await.unwrap();
    // Two were under way and were delivered, three never left.
    let queue = room.names.webhooks_of("one");
    let depth = topology::depth(&*room.broker.connection().await, &queue).await.unwrap().unwrap();
    assert_eq!(depth.ready, 3);
    room.broker.close().await;
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
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"));
        command.args(["relay", "--config"]).arg(file).kill_on_drop(true);
        command.stderr(std::process::Stdio::null());
        Self { child: command.spawn().unwrap(), file: file.to_owned() }
    }

    /// SIGKILL, and the same again.
    async fn replace(&mut self) {
        self.child.kill().await.unwrap();
        *self = Self::start(&self.file.clone());
    }
}

async fn command(file: &std::path::Path, arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"));
    let output = within("the command", command.args(arguments).arg("--config").arg(file).output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_disables_enables_tests_and_looks_while_the_relay_runs() {
    let receiver = Receiver::start(|number, _| Reply::With(if number == 0 { 500 } else { 200 }, "x-a", "b")).await;
    let more = "[relay]\nretry_schedule = [\"20ms\"]\n".to_owned() + &receiver.settings("one", "");
    let room = Room::open("relay-commands", &more).await;
    let text = settings(amqp_url().await, redis_url().await, &room.config.amqp.prefix, &more);
    let file = Process::settings(&text);

    let id = room.publish("default.applied").await;
    receiver.requests(2).await;
    room.waiting("one", 0).await;
    // The record is written off the delivery's path.
    let shown = within("the record of the tries", async {
        loop {
            let (_, shown) = command(&file, &["endpoints", "event", &id]).await;
            if shown.matches(" try ").count() == 2 {
                return shown;
            }
        }
    })
    .await;
    assert!(shown.contains("500 in") && shown.contains("200 in"), "{shown}");

    let (done, said) = command(&file, &["endpoints", "disable", "one", "--reason", "they asked"]).await;
    assert!(done && said.contains("its events wait"), "{said}");
    let (_, listed) = command(&file, &["endpoints", "list"]).await;
    assert!(listed.contains("disabled") && listed.contains("they asked"), "{listed}");
    // The running relay follows: its consumer goes away.
    let queue = room.names.webhooks_of("one");
    within("the relay follows", async {
        let connection = room.broker.connection().await;
        while topology::depth(&connection, &queue).await.unwrap().unwrap().consumers > 0 {}
    })
    .await;
    let waits = room.publish("default.applied").await;
    room.waiting("one", 1).await;
    let (_, shown) = command(&file, &["endpoints", "show", "one"]).await;
    assert!(shown.contains("1 events") && shown.contains(&id) && !shown.contains("/hook"), "{shown}");

    // A test goes out even so: it is how an operator finds out whether to enable.
    let (done, said) = command(&file, &["endpoints", "test", "one"]).await;
    assert!(done && said.contains("answered 200"), "{said}");
    let (done, _) = command(&file, &["endpoints", "enable", "one"]).await;
    assert!(done);
    assert_eq!(receiver.requests(4).await.last(), Some(&waits));
    let (done, said) = command(&file, &["endpoints", "show", "two"]).await;
    assert!(!done && said.contains("the settings have one"), "{said}");
    let (done, said) = command(&file, &["endpoints", "rotate", "one"]).await;
    assert!(done && said.contains("whsec_") && said.contains("previous_secret"), "{said}");
    std::fs::remove_file(&file).unwrap();
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_again_and_again_loses_nothing() {
    // A third of the first tries fails, so kills meet the ladder too.
    let receiver = Receiver::start(|_, of_id| Reply::Status(if of_id == 0 { 200 } else { 204 })).await;
    let flaky =
        Receiver::start(|number, of_id| Reply::Status(if of_id == 0 && number % 3 == 0 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"50ms\", \"100ms\", \"100ms\", \"100ms\"]\nbreaker_open_for = \"50ms\"\n"
        .to_owned()
        + &receiver.settings("one", "")
        + &flaky.settings("flaky", "");
    let room = Room::open("relay-kill", &more).await;
    room.stop.cancel();
    let text = settings(amqp_url().await, redis_url().await, &room.config.amqp.prefix, &more);
    let file = Process::settings(&text);
    let mut relay = Process::start(&file);
    let mut ids = BTreeSet::new();
    for kill in 0..20 {
        let before = receiver.seen.borrow().len();
        ids.extend(room.publish_many(100).await);
        // Kill it in the middle of its work, at another point each time.
        receiver.requests(before + 5 + kill * 4).await;
        relay.replace().await;
    }
    let seen = receiver.all_of(&ids).await;
    flaky.all_of(&ids).await;
    room.waiting("one", 0).await;
    room.waiting("flaky", 0).await;
    println!("20 kills: {} events, {} requests, lost 0", ids.len(), seen.len());
    relay.child.kill().await.unwrap();
    std::fs::remove_file(&file).unwrap();
    within("the relay stops", room.relay).await.unwrap();
    room.broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_loses_nothing() {
    let mut server = servers::Broker::start_private().await.expect("a RabbitMQ");
    let receiver =
        Receiver::start(|number, of_id| Reply::Status(if of_id == 0 && number % 4 == 0 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"50ms\", \"500ms\"]\nbreaker_open_for = \"50ms\"\n".to_owned()
        + &receiver.settings("one", "");
    let room = Room::open_at(server.url(), redis_url().await, "relay-broker", &more).await;
    let mut ids = room.publish_many(300).await;
    receiver.requests(50).await;
    server.kill9().await.unwrap();
    server.start_again().await.unwrap();
    ids.extend(room.publish_many(100).await);
    let seen = receiver.all_of(&ids).await;
    println!("broker killed: {} events, {} requests, lost 0", ids.len(), seen.len());
    room.close().await;
    server.stop().await;
}

/// Milliseconds from the verdict to the receiver: median, 95th and 99th percentile.
fn percentiles(mut lags: Vec<f64>) -> [f64; 3] {
    lags.sort_by(f64::total_cmp);
    [50, 95, 99].map(|percent| lags[(lags.len() - 1) * percent / 100])
}

/// Publishes at a rate and returns the lags at the endpoints that are well.
async fn lags(name: &str, more: &str, per_second: u32, seconds: u32, well: &[Arc<Mutex<Vec<f64>>>]) -> Vec<f64> {
    let room = Room::open(name, more).await;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    for _ in 0..per_second * seconds {
        ticks.tick().await;
        room.publish("default.applied").await;
    }
    let all = usize::try_from(per_second * seconds).unwrap();
    within("all events", async {
        while well.iter().any(|lags| lags.lock().unwrap().len() < all) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    room.close().await;
    well.iter().flat_map(|lags| std::mem::take(&mut *lags.lock().unwrap())).collect()
}

/// A receiver that notes how old events are when they come.
async fn stopwatch() -> (SocketAddr, Arc<Mutex<Vec<f64>>>) {
    let lags = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&lags);
    let app = axum::Router::new().route(
        "/hook",
        axum::routing::post(move |axum::Json(event): axum::Json<serde_json::Value>| {
            let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
            let lag = jiff::Timestamp::now().duration_since(time).as_secs_f64() * 1_000.0;
            noted.lock().unwrap().push(lag);
            async { StatusCode::OK }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, lags)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, in release"]
async fn figures_of_lag_and_isolation() {
    let endpoint = |name: &str, address: SocketAddr| {
        format!(
            "[endpoints.{name}]\nurl = \"http://{address}/hook\"\nsecret = {SECRET:?}\nallow_http = true\n\
             allow_networks = [\"127.0.0.0/8\"]\n"
        )
    };
    let (address, single) = stopwatch().await;
    let lag = lags("relay-lag", &endpoint("one", address), 200, 20, &[single]).await;
    println!("one endpoint at 200/s: p50, p95, p99 {:.1?} ms", percentiles(lag));

    let (hanging, failing) =
        (Receiver::start(|_, _| Reply::Never).await, Receiver::start(|_, _| Reply::Status(500)).await);
    let (mut well, mut settings, mut spare) = (Vec::new(), String::new(), String::new());
    for number in 0..10 {
        let (address, lags) = stopwatch().await;
        if number < 8 {
            well.push(lags);
            settings += &endpoint(&format!("well{number}"), address);
        } else {
            spare += &endpoint(&format!("well{number}"), address);
        }
    }
    let bad = hanging.settings("hanging", "") + &failing.settings("failing", "");
    for round in 0..2 {
        let calm = lags("relay-calm", &(settings.clone() + &spare), 50, 20, &well).await;
        let stormy = lags("relay-stormy", &(settings.clone() + &bad), 50, 20, &well).await;
        println!("round {round}: ten well, of which eight: {:.1?} ms", percentiles(calm));
        println!("round {round}: one hangs, one fails, the other eight: {:.1?} ms", percentiles(stormy));
    }
}
