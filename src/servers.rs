//! A private RabbitMQ and a private Redis for tests and for the demo: the real servers, not stand-ins.
//!
//! They are found in this order: an address given in the environment (`AMQP_URL`, `REDIS_URL`); an image named
//! there (`RABBITMQ_IMAGE`, `REDIS_IMAGE`), through the `docker` command; the server's binaries, started on free
//! loopback ports with their data in a temporary directory; the official images; otherwise one sentence that says
//! what to do.
//!
//! Rules: a server of ours listens on loopback only, knows nothing of a server that the machine runs anyway (own
//! node name, own EPMD, own data), and ends with us, even when we are killed ([`watched`]). A server whose address
//! was given is not ours: it is neither killed nor wiped.

pub mod watched;

mod container;
mod rabbitmq;
mod redis_server;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use watched::{Scratch, Spec, Watched};

/// How long a server may take until it answers. An Erlang node needs 5 s on an idle machine, an image that must
/// be pulled first a minute.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long a server that was asked to end may take before it is killed.
const END_WITHIN: Duration = Duration::from_secs(20);
/// How often a server that has not answered yet is asked again.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// A free port can be taken by somebody else before the server binds it; then the start is repeated.
const STARTS: usize = 3;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither an address, nor binaries, nor containers.
    #[error(
        "no {server} to be had: set {variable} to the address of one, or install it (Debian: apt-get install \
         {package}), or install docker"
    )]
    NotFound {
        /// The server's name.
        server: &'static str,
        /// The variable that would name one.
        variable: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A file or a process could not be made.
    #[error("cannot start {server}")]
    Start {
        /// The server's name.
        server: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ended instead of listening.
    #[error("{server} ended with status {status} before it answered; its last words:\n{log}")]
    Ended {
        /// The server's name.
        server: &'static str,
        /// Exit status, 128 + n for a signal.
        status: i32,
        /// The end of its log.
        log: String,
    },
    /// It did not answer in time.
    #[error("{server} at {address} has not answered within {within:?}: {last}")]
    Silent {
        /// The server's name.
        server: &'static str,
        /// Where it was asked, without credentials.
        address: String,
        /// The limit.
        within: Duration,
        /// What the last try met.
        last: String,
    },
    /// Somebody else's server is not killed or wiped.
    #[error("{server} was given by {variable}: it is not ours to stop, kill or wipe")]
    NotOurs {
        /// The server's name.
        server: &'static str,
        /// The variable that named it.
        variable: &'static str,
    },
    /// The broker refused what makes it fit to be killed.
    #[error("cannot prepare RabbitMQ")]
    Prepare(#[source] lapin::Error),
    /// Redis refused a command.
    #[error("cannot wipe redis")]
    Wipe(#[source] redis::RedisError),
}

/// A RabbitMQ of our own, or one that was given. Dropping it ends it and removes its data, if it is ours.
#[derive(Debug)]
pub struct Broker {
    server: Server,
}

/// A Redis of our own, or one that was given. Dropping it ends it and removes its data, if it is ours.
#[derive(Debug)]
pub struct Redis {
    server: Server,
}

impl Broker {
    /// Finds or starts a broker and waits until the AMQP handshake succeeds.
    ///
    /// # Errors
    /// [`Error`] says what to do where there is none.
    pub async fn start() -> Result<Broker, Error> {
        Ok(Broker { server: Server::find(&rabbitmq::KIND).await? })
    }

    /// Starts a private broker from the machine's binaries or an image, whatever the environment says: for what
    /// kills its broker. Takes twice as long as [`Broker::start`], see the module `rabbitmq`.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn start_private() -> Result<Broker, Error> {
        let mut server = Server::start(&rabbitmq::KIND).await?;
        rabbitmq::declare_first_stream(&server.url).await.map_err(Error::Prepare)?;
        server.signal("TERM")?;
        server.start_again().await?;
        Ok(Broker { server })
    }

    /// Its AMQP address, credentials included.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Whether it is ours, so that it may be killed and goes with everything in it.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.server.run.is_some()
    }

    /// Its process id, where it is ours: what it costs is measured by it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.run.as_ref().map(|run| run.process.pid())
    }

    /// Kills it with SIGKILL and waits until it is gone. Its data stay.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub async fn kill9(&mut self) -> Result<(), Error> {
        self.server.kill9().await
    }

    /// Starts it again after [`Broker::kill9`] (one that still runs is killed): same address, same data.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub async fn start_again(&mut self) -> Result<(), Error> {
        self.server.start_again().await
    }

    /// Suspends it with SIGSTOP: connections stay open and nothing answers.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub fn suspend(&self) -> Result<(), Error> {
        self.server.signal("STOP")
    }

    /// Ends [`Broker::suspend`].
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub fn resume(&self) -> Result<(), Error> {
        self.server.signal("CONT")
    }

    /// Ends it and removes its data; one that was given goes on.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

impl Redis {
    /// Finds or starts a Redis and waits until it answers `PING`.
    ///
    /// # Errors
    /// [`Error`] says what to do where there is none.
    pub async fn start() -> Result<Redis, Error> {
        Ok(Redis { server: Server::find(&redis_server::KIND).await? })
    }

    /// Starts a private Redis, whatever the environment says: for what kills or wipes its Redis.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_private() -> Result<Redis, Error> {
        Ok(Redis { server: Server::start(&redis_server::KIND).await? })
    }

    /// Its address; database 0 unless the given address says otherwise. A private Redis has 10,000 databases.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Whether it is ours, so that it may be killed and wiped and has many databases.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.server.run.is_some()
    }

    /// Its process id, where it is ours: what it costs is measured by it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.run.as_ref().map(|run| run.process.pid())
    }

    /// Kills it with SIGKILL and waits until it is gone. Its data stay.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub async fn kill9(&mut self) -> Result<(), Error> {
        self.server.kill9().await
    }

    /// Starts it again after [`Redis::kill9`] (one that still runs is killed): same address, same data.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start_again(&mut self) -> Result<(), Error> {
        self.server.start_again().await
    }

    /// Forgets everything in every database.
    ///
    /// # Errors
    /// [`Error::NotOurs`]; [`Error::Wipe`] where Redis refuses.
    pub async fn wipe(&self) -> Result<(), Error> {
        if !self.is_private() {
            return Err(self.server.not_ours());
        }
        redis_server::wipe(&self.server.url).await.map_err(Error::Wipe)
    }

    /// Suspends it with SIGSTOP: connections stay open and nothing answers.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub fn suspend(&self) -> Result<(), Error> {
        self.server.signal("STOP")
    }

    /// Ends [`Redis::suspend`].
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub fn resume(&self) -> Result<(), Error> {
        self.server.signal("CONT")
    }

    /// Ends it and removes its data; one that was given goes on.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}

/// What differs between the two servers.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    variable: &'static str,
    package: &'static str,
    image_variable: &'static str,
    image: &'static str,
    /// The port that it listens on inside a container.
    port: u16,
    /// What the image's command is to be, where its own is not enough.
    command: &'static [&'static str],
    scheme: Scheme,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Amqp,
    Redis,
}

impl Scheme {
    fn url(self, port: u16) -> String {
        match self {
            Scheme::Amqp => format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
            Scheme::Redis => format!("redis://127.0.0.1:{port}/"),
        }
    }

    async fn ask(self, url: &str) -> Result<(), String> {
        match self {
            Scheme::Amqp => rabbitmq::handshake(url).await,
            Scheme::Redis => redis_server::ping(url).await,
        }
    }

    /// The private server's command, its files written; `None` where the machine has no binaries.
    fn prepare(self, scratch: &Scratch) -> std::io::Result<Option<(Spec, u16)>> {
        match self {
            Scheme::Amqp => rabbitmq::prepare(scratch),
            Scheme::Redis => redis_server::prepare(scratch),
        }
    }
}

#[derive(Debug)]
struct Server {
    kind: &'static Kind,
    url: String,
    /// `None`: it was given.
    run: Option<Run>,
}

/// Field order is drop order: the process ends before its directory goes.
#[derive(Debug)]
struct Run {
    process: Watched,
    again: Spec,
    _scratch: Scratch,
}

impl Server {
    async fn find(kind: &'static Kind) -> Result<Server, Error> {
        match std::env::var(kind.variable) {
            Ok(url) if !url.is_empty() => {
                let server = Server { kind, url, run: None };
                server.wait_until_it_answers().await?;
                Ok(server)
            }
            _ => Server::start(kind).await,
        }
    }

    async fn start(kind: &'static Kind) -> Result<Server, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let server = Server::spawn(kind)?;
            match server.wait_until_it_answers().await {
                Ok(()) => return Ok(server),
                Err(Error::Ended { .. }) if tries < STARTS => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn spawn(kind: &'static Kind) -> Result<Server, Error> {
        let failed = |source| Error::Start { server: kind.name, source };
        let scratch = Scratch::new(kind.package).map_err(failed)?;
        let wants_image = std::env::var_os(kind.image_variable).is_some_and(|image| !image.is_empty());
        let prepared = if wants_image { None } else { kind.scheme.prepare(&scratch).map_err(failed)? };
        let (first, again, port) = match prepared {
            Some((spec, port)) => (spec.clone(), spec, port),
            None => {
                let missing = Error::NotFound { server: kind.name, variable: kind.variable, package: kind.package };
                container::prepare(kind, &scratch).map_err(failed)?.ok_or(missing)?
            }
        };
        let process = Watched::spawn(&first).map_err(failed)?;
        let run = Run { process, again, _scratch: scratch };
        Ok(Server { kind, url: kind.scheme.url(port), run: Some(run) })
    }

    async fn wait_until_it_answers(&self) -> Result<(), Error> {
        let mut tick = tokio::time::interval(ASK_EVERY);
        let started = tokio::time::Instant::now();
        loop {
            tick.tick().await;
            let Err(last) = self.kind.scheme.ask(&self.url).await else { return Ok(()) };
            if let Some(run) = &self.run
                && let Some(status) = run.process.ended()
            {
                return Err(Error::Ended { server: self.kind.name, status, log: run.process.log_tail() });
            }
            if started.elapsed() > READY_WITHIN {
                let address = without_credentials(&self.url);
                return Err(Error::Silent { server: self.kind.name, address, within: READY_WITHIN, last });
            }
        }
    }

    fn not_ours(&self) -> Error {
        Error::NotOurs { server: self.kind.name, variable: self.kind.variable }
    }

    async fn kill9(&mut self) -> Result<(), Error> {
        let not_ours = self.not_ours();
        let run = self.run.as_mut().ok_or(not_ours)?;
        run.process.signal("KILL");
        run.process.wait().await;
        Ok(())
    }

    async fn start_again(&mut self) -> Result<(), Error> {
        let not_ours = self.not_ours();
        let run = self.run.as_mut().ok_or(not_ours)?;
        // The old one must be off its ports first; replacing it would end it only afterwards.
        if tokio::time::timeout(END_WITHIN, run.process.wait()).await.is_err() {
            run.process.signal("KILL");
            run.process.wait().await;
        }
        let server = self.kind.name;
        let mut tries = 0;
        loop {
            tries += 1;
            let run = self.run.as_mut().ok_or(Error::NotOurs { server, variable: self.kind.variable })?;
            // Each that ended, or its shell would take the directory along that the next one needs.
            run.process.leave();
            run.process = Watched::spawn(&run.again).map_err(|source| Error::Start { server, source })?;
            match self.wait_until_it_answers().await {
                // What the one before held (a port, its name at the port mapper) can outlast it for a moment.
                Err(Error::Ended { .. }) if tries < STARTS => {}
                answered => return answered,
            }
        }
    }

    fn signal(&self, name: &str) -> Result<(), Error> {
        self.run.as_ref().ok_or_else(|| self.not_ours())?.process.signal(name);
        Ok(())
    }

    async fn stop(self) {
        if let Some(run) = self.run {
            // Dropping waits for the process to be gone, which must not block the runtime.
            let _ = tokio::task::spawn_blocking(move || drop(run)).await;
        }
    }
}

/// The ports that our servers listen on: below those that the system gives to outgoing connections (from 32,768 on
/// Linux, from 49,152 elsewhere). A server that is killed would otherwise lose its port to any connection made
/// before it is back, such as the next try of a client to reach that very port, which then connects to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_768;

/// A port of the loopback interface that was free a moment ago, and that only a listener takes.
fn free_port() -> std::io::Result<u16> {
    let first = rand::random_range(PORTS);
    (first..PORTS.end)
        .chain(PORTS.start..first)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| std::io::ErrorKind::AddrInUse.into())
}

/// The first of the places that is a file: `name` in each directory of the PATH, then Debian's places.
fn find_program(name: &str, places: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    places
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path).map(|directory| directory.join(name)))
        .find(|candidate| candidate.is_file())
}

fn without_credentials(url: &str) -> String {
    url::Url::parse(url).map_or_else(
        |_| "the given address".to_owned(),
        |url| format!("{}:{}", url.host_str().unwrap_or("?"), url.port().unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests;
