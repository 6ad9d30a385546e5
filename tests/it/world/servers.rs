//! The broker and the Redis: one pair for all tests of the binary, or a pair of its own for a test that kills.
//!
//! The shared pair lives in a static, which Rust never drops; it ends all the same, because what started it
//! watches our end (`context_injector::servers::watched`).
//!
//! `TEST_SERVERS=containers` takes the shared pair from the images `TEST_RABBITMQ_IMAGE` and `TEST_REDIS_IMAGE`; the
//! private ones come from `RABBITMQ_IMAGE` and `REDIS_IMAGE`, where these are set.

use context_injector::servers::watched::{Scratch, Spec, Watched};
use context_injector::servers::{Broker, Redis};
use testcontainers::core::ContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage};
use tokio::sync::OnceCell;

use super::{LIMIT, eventually};

/// A broker and a Redis.
pub enum Servers {
    /// The machine's own binaries, or given addresses, or images through the docker command.
    Own { broker: Box<Broker>, redis: Box<Redis> },
    /// Containers through the testcontainers crate, with what ends them when the tests end.
    Containers { amqp_url: String, redis_url: String, _held: Vec<Held> },
}

type Held = (ContainerAsync<GenericImage>, Watched, Scratch);

static SHARED: OnceCell<Servers> = OnceCell::const_new();

impl Servers {
    /// The pair that all tests share.
    pub async fn shared() -> &'static Servers {
        SHARED
            .get_or_init(async || {
                if std::env::var("TEST_SERVERS").is_ok_and(|servers| servers == "containers") {
                    return containers().await;
                }
                let (broker, redis) = tokio::join!(Broker::start(), Redis::start());
                Servers::own(broker, redis)
            })
            .await
    }

    /// A pair for one test alone.
    pub async fn private() -> Servers {
        let (broker, redis) = tokio::join!(Broker::start_private(), Redis::start_private());
        Servers::own(broker, redis)
    }

    /// A pair that somebody else looks after.
    pub fn elsewhere(amqp_url: String, redis_url: String) -> Servers {
        Servers::Containers { amqp_url, redis_url, _held: Vec::new() }
    }

    fn own<E: std::fmt::Display>(broker: Result<Broker, E>, redis: Result<Redis, E>) -> Servers {
        let (broker, redis) = (broker.unwrap_or_else(|e| panic!("{e}")), redis.unwrap_or_else(|e| panic!("{e}")));
        Servers::Own { broker: Box::new(broker), redis: Box::new(redis) }
    }

    /// The addresses of broker and Redis.
    pub fn urls(&self) -> (String, String) {
        match self {
            Servers::Own { broker, redis } => (broker.url().to_owned(), redis.url().to_owned()),
            Servers::Containers { amqp_url, redis_url, .. } => (amqp_url.clone(), redis_url.clone()),
        }
    }

    /// The address of the broker.
    pub fn amqp_url(&self) -> &str {
        match self {
            Servers::Own { broker, .. } => broker.url(),
            Servers::Containers { amqp_url, .. } => amqp_url,
        }
    }

    /// The broker, to be killed.
    pub fn broker(&mut self) -> &mut Broker {
        match self {
            Servers::Own { broker, .. } => broker,
            Servers::Containers { .. } => panic!("a test that kills servers has private ones"),
        }
    }

    /// The Redis, to be killed or wiped.
    pub fn redis(&mut self) -> &mut Redis {
        match self {
            Servers::Own { redis, .. } => redis,
            Servers::Containers { .. } => panic!("a test that kills servers has private ones"),
        }
    }
}

async fn containers() -> Servers {
    let rabbitmq = container("TEST_RABBITMQ_IMAGE", "rabbitmq:4", 5672);
    let redis = container("TEST_REDIS_IMAGE", "redis:8", 6379);
    let ((rabbitmq, amqp_port), (redis, redis_port)) = tokio::join!(rabbitmq, redis);
    let amqp_url = format!("amqp://guest:guest@127.0.0.1:{amqp_port}/%2f");
    // Not by a line of its log: RabbitMQ's depend on where it logs to. docker accepts connections before it does.
    eventually(LIMIT, "an AMQP handshake with the container", async || {
        lapin::Connection::connect(&amqp_url, lapin::ConnectionProperties::default()).await.ok()
    })
    .await;
    let redis_url = format!("redis://127.0.0.1:{redis_port}/");
    eventually(LIMIT, "a connection to the container's Redis", async || {
        redis::Client::open(redis_url.as_str()).ok()?.get_multiplexed_async_connection().await.ok()
    })
    .await;
    Servers::Containers { amqp_url, redis_url, _held: vec![rabbitmq, redis] }
}

async fn container(variable: &str, default: &str, port: u16) -> (Held, u16) {
    let image = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let (name, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
    let container = GenericImage::new(name, tag)
        .with_exposed_port(ContainerPort::Tcp(port))
        .start()
        .await
        .unwrap_or_else(|error| panic!("cannot start a container of {image} ({variable} names another): {error}"));
    let published = container.get_host_port_ipv4(port).await.unwrap();
    let scratch = Scratch::new("container").unwrap();
    let spec = Spec {
        command: vec!["docker".into(), "logs".into(), "--follow".into(), container.id().into()],
        log: scratch.path().join("log"),
        container: Some(container.id().to_owned()),
        scratch: Some(scratch.path().to_owned()),
        ..Spec::default()
    };
    let watched = Watched::spawn(&spec).unwrap();
    ((container, watched, scratch), published)
}
