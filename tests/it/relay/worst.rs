//! The worst receivers of the internet, each at an endpoint of one real relay: every try is recorded with its reason,
//! the event takes the next rung and ends in the dead letters, a success stays one whatever follows it, and the good
//! receiver beside them gets everything.

use context_injector::relay::attempts::{self, Record};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a receiver does with a connection. The tests' runtime ends those that never end by themselves.
#[derive(Clone, Copy)]
enum Does {
    /// Takes the connection and says nothing.
    Nothing,
    /// Ends it by a reset before anything was read.
    ResetsAtOnce,
    /// Takes the greeting of a TLS session and ends by a reset.
    ResetsInTls,
    /// Says this after the request, and ends in good order.
    Says(&'static [u8]),
    /// Says this after the request, and ends by a reset.
    SaysAndResets(&'static [u8]),
    /// Says this without reading the request.
    SaysFirst(&'static [u8]),
    /// Says this, then one byte every few milliseconds for ever.
    SaysSlowly(&'static [u8]),
    /// Says this, then so many bytes of this, again and again.
    SaysAndGoesOn(&'static [u8], usize, &'static [u8]),
    /// Says this, then 100 MB of zeros in a few bytes of gzip.
    SaysAndBombs(&'static [u8]),
    /// Has this certificate, and answers 200 to who trusts it.
    HasCertificate(&'static str),
}

const ENDLESS: usize = usize::MAX;
const HUGE: usize = 100_000_000;
static ZEROS: [u8; 65_536] = [0; 65_536];
static LETTERS: [u8; 65_536] = [b'a'; 65_536];
const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

impl Does {
    async fn serve(self, mut stream: TcpStream) -> std::io::Result<()> {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::ResetsAtOnce => reset(stream),
            Self::ResetsInTls => {
                stream.read_buf(&mut Vec::new()).await?;
                reset(stream)
            }
            Self::Says(text) => {
                read_request(&mut stream).await?;
                stream.write_all(text).await?;
                stream.shutdown().await
            }
            Self::SaysAndResets(text) => {
                read_request(&mut stream).await?;
                stream.write_all(text).await?;
                // What is said must have arrived: a reset would take it back.
                while stream.ready(tokio::io::Interest::WRITABLE).await?.is_writable() && !is_sent(&stream) {
                    tokio::task::yield_now().await;
                }
                reset(stream)
            }
            Self::SaysFirst(text) => {
                stream.write_all(text).await?;
                read_request(&mut stream).await
            }
            Self::SaysSlowly(text) => {
                read_request(&mut stream).await?;
                stream.write_all(text).await?;
                let mut ticks = tokio::time::interval(Duration::from_millis(20));
                loop {
                    ticks.tick().await;
                    stream.write_all(b"a").await?;
                }
            }
            Self::SaysAndGoesOn(text, bytes, chunk) => {
                read_request(&mut stream).await?;
                stream.write_all(text).await?;
                let mut sent = 0;
                while sent < bytes {
                    stream.write_all(chunk).await?;
                    sent += chunk.len();
                }
                stream.shutdown().await
            }
            Self::SaysAndBombs(text) => {
                read_request(&mut stream).await?;
                stream.write_all(text).await?;
                stream.write_all(bomb()).await?;
                stream.shutdown().await
            }
            Self::HasCertificate(_) => unreachable!("served in a thread of its own"),
        }
    }

    async fn start(self) -> SocketAddr {
        if let Self::HasCertificate(pem) = self {
            return serve_tls(pem);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A relay that has seen enough closes: that is its right.
                tokio::spawn(async move { self.serve(stream).await.ok() });
            }
        });
        address
    }

    fn scheme(self) -> &'static str {
        if matches!(self, Self::HasCertificate(_) | Self::ResetsInTls) { "https" } else { "http" }
    }
}

/// Whether the peer's system has acknowledged everything: nothing is left in the socket's queue (Linux).
fn is_sent(stream: &TcpStream) -> bool {
    // Nothing waits for a peer that is gone.
    let (Ok(own), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return true };
    let (port, peer) = (own.port(), peer.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = (format!(":{port:04X}"), format!(":{peer:04X}"));
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut own = fields.filter(|fields| fields[1].ends_with(&ends.0) && fields[2].ends_with(&ends.1));
    own.next().is_none_or(|fields| fields[4].starts_with("00000000:"))
}

fn reset(stream: TcpStream) -> std::io::Result<()> {
    stream.set_zero_linger()
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if bytes.len() >= at + 4 + length.unwrap_or(0) {
                return Ok(());
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn bomb() -> &'static [u8] {
    static BOMB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BOMB.get_or_init(|| {
        let command = format!("head -c {HUGE} /dev/zero | gzip -9");
        std::process::Command::new("sh").args(["-c", &command]).output().unwrap().stdout
    })
}

fn certificate(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/relay/certificates").join(name)
}

/// Blocking, in threads: rustls alone knows no tokio.
fn serve_tls(name: &'static str) -> SocketAddr {
    let chain = vec![CertificateDer::from_pem_file(certificate(name)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate("key.pem")).unwrap();
    let settings = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let settings = Arc::new(settings);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let settings = Arc::clone(&settings);
            std::thread::spawn(move || {
                let session = rustls::ServerConnection::new(settings).unwrap();
                let mut stream = rustls::StreamOwned::new(session, stream);
                let mut request = [0; 16_384];
                // The head and the small body come together or one after the other; an answer may come early.
                if std::io::Read::read(&mut stream, &mut request).is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    std::io::Write::write_all(&mut stream, answer).ok();
                    while std::io::Read::read(&mut stream, &mut request).is_ok_and(|read| read > 0) {}
                }
            });
        }
    });
    address
}

/// Name, what it does, and what the record says of each of both tries; "" where either a limit of HTTP or the deadline
/// may be first.
const FAILURES: [(&str, Does, &str); 25] = [
    ("silent", Does::Nothing, "did not answer within 3s"),
    ("slow-head", Does::SaysSlowly(b"HTTP/1.1 200 OK\r\nx-slow: "), "did not answer within 3s"),
    ("interim-flood", Does::SaysAndGoesOn(HINTS, ENDLESS, HINTS), ""),
    ("header-flood", Does::SaysAndGoesOn(b"HTTP/1.1 200 OK\r\n", ENDLESS, b"x-a: aaaaaaaaaaaaaaaa\r\n"), ""),
    ("endless-header", Does::SaysAndGoesOn(b"HTTP/1.1 200 OK\r\nx-a: ", ENDLESS, &LETTERS), ""),
    ("reset-at-once", Does::ResetsAtOnce, ""),
    ("reset-in-tls", Does::ResetsInTls, ""),
    ("reset-after-request", Does::SaysAndResets(b""), "broke the connection off"),
    ("reset-in-status", Does::SaysAndResets(b"HTTP/1.1 2"), "broke the connection off"),
    ("reset-in-headers", Does::SaysAndResets(b"HTTP/1.1 200 OK\r\ncontent-"), "broke the connection off"),
    ("end-after-request", Does::Says(b""), "broke the connection off"),
    ("not-http", Does::Says(b"SSH-2.0-OpenSSH_9.2\r\n"), "something else than HTTP"),
    ("status-of-letters", Does::Says(b"HTTP/1.1 two OK\r\n\r\n"), "something else than HTTP"),
    ("status-of-two", Does::Says(b"HTTP/1.1 20 OK\r\n\r\n"), "something else than HTTP"),
    ("another-version", Does::Says(b"HTTP/9.9 200 OK\r\n\r\n"), "something else than HTTP"),
    (
        "two-lengths",
        Does::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        "something else",
    ),
    ("switching", Does::Says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"), ""),
    ("error-endless", Does::SaysAndGoesOn(b"HTTP/1.1 500 Oh\r\n\r\n", ENDLESS, &ZEROS), "answered 500"),
    (
        "error-huge",
        Does::SaysAndGoesOn(b"HTTP/1.1 500 Oh\r\ncontent-length: 100000000\r\n\r\n", HUGE, &ZEROS),
        "answered 500",
    ),
    ("error-bomb", Does::SaysAndBombs(b"HTTP/1.1 500 Oh\r\ncontent-encoding: gzip\r\n\r\n"), "answered 500"),
    ("error-slow", Does::SaysSlowly(b"HTTP/1.1 503 Oh\r\ncontent-length: 100000\r\n\r\n"), "answered 503"),
    ("error-reset", Does::SaysAndResets(b"HTTP/1.1 500 Oh\r\ncontent-length: 9\r\n\r\nhalf"), "answered 500"),
    ("unsigned", Does::HasCertificate("unsigned.pem"), "no TLS session"),
    ("expired", Does::HasCertificate("expired.pem"), "no TLS session"),
    ("other-name", Does::HasCertificate("other-name.pem"), "no TLS session"),
];

const SUCCESSES: [(&str, Does); 10] = [
    ("endless", Does::SaysAndGoesOn(b"HTTP/1.1 200 OK\r\n\r\n", ENDLESS, &ZEROS)),
    ("huge", Does::SaysAndGoesOn(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n", HUGE, &ZEROS)),
    ("bomb", Does::SaysAndBombs(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n")),
    ("slow-body", Does::SaysSlowly(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")),
    ("half-body", Does::Says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")),
    ("reset-in-body", Does::SaysAndResets(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")),
    ("without-length", Does::Says(b"HTTP/1.0 200 OK\r\n\r\nok")),
    (
        "hints-first",
        Does::Says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    ),
    ("bare-line", Does::Says(b"HTTP/1.1 200\r\n\r\n")),
    ("trusted", Does::HasCertificate("good.pem")),
];

/// The deadline of a try: short where it is meant to be met. The floods keep two cores busy for seconds, and who answers at
/// once must be heard all the same.
fn deadline(said: &str) -> &'static str {
    if said.is_empty() || said.contains("did not answer") { "3s" } else { "10s" }
}

fn endpoint(name: &str, does: Does, address: SocketAddr, deadline: &str) -> String {
    let scheme = does.scheme();
    format!(
        "[endpoints.{name}]\nurl = \"{scheme}://{address}/hook\"\nsecret = {SECRET:?}\nallow_http = true\n\
         allow_networks = [\"127.0.0.0/8\"]\ntimeout = {deadline:?}\n"
    )
}

/// The tries of an event at one endpoint, in their order, when there are so many.
async fn tries(memory: &Memory, event: &str, endpoint: &str, count: usize) -> Vec<Record> {
    within(&format!("{count} tries at {endpoint}"), async {
        loop {
            // Redis may take its time beside all the floods.
            let found = attempts::of_event(memory, event, &[endpoint.to_owned()]).await;
            let mut records = found.unwrap_or_default();
            if records.len() >= count {
                records.sort_by_key(|record| record.number);
                return records;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_receivers_get_their_tries_and_cost_nobody_anything() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let good = Receiver::start(|_, _| Reply::Status(200)).await;
    let inside = Receiver::start(|_, _| Reply::Status(200)).await;
    let target = format!("http://{}/hook", inside.address);
    let location: &'static str = target.leak();
    let redirecting = Receiver::start(move |_, _| Reply::With(307, "location", location)).await;
    let early = Does::SaysFirst(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let mut more = "[relay]\nretry_schedule = [\"50ms\"]\n".to_owned() + &good.settings("good", "");
    more += &redirecting.settings("redirecting", "");
    more += &endpoint("early", early, early.start().await, deadline(""));
    for (name, does, said) in FAILURES {
        more += &endpoint(name, does, does.start().await, deadline(said));
    }
    for (name, does) in SUCCESSES {
        more += &endpoint(name, does, does.start().await, deadline("2xx"));
    }
    let room = Room::open_without_relay("relay-worst", &more).await;
    let file = Process::settings(&settings(amqp_url().await, redis_url().await, &room.config.amqp.prefix, &more));
    let mut relay = Process::start_trusting(&file, &certificate("authority.pem"));
    let event = room.publish("default.applied").await;
    let memory = Memory::new(&room.config.redis).unwrap();

    let redirects = [("redirecting", "a redirect; they are not followed")];
    for (name, said) in FAILURES.map(|(name, _, said)| (name, said)).into_iter().chain(redirects) {
        let records = tries(&memory, &event, name, 2).await;
        assert_eq!(records.iter().map(|record| record.number).collect::<Vec<_>>(), [1, 2], "{name}: {records:?}");
        assert_eq!(records.iter().map(|record| record.fate.as_str()).collect::<Vec<_>>(), ["later", "dead"], "{name}");
        for record in records {
            assert!(record.reason.contains(said) && !record.reason.is_empty(), "{name}: {record:?}");
            assert!(record.answer.len() <= 3 * 512, "{name}: an answer is kept in part");
        }
    }
    for (name, _) in SUCCESSES {
        let records = tries(&memory, &event, name, 1).await;
        assert_eq!((records.len(), records[0].fate.as_str()), (1, "delivered"), "{name}: {records:?}");
    }
    // Early bytes may be taken for an answer or for a broken connection, but never hang.
    tries(&memory, &event, "early", 1).await;
    assert_eq!(inside.seen.borrow().len(), 0, "no redirect was followed");

    let later = room.publish("default.applied").await;
    assert_eq!(good.requests(2).await, [event, later]);
    let peak = relay.peak_memory();
    println!("peak memory of the relay with the worst receivers: {peak} kB");
    assert!(peak < 150_000, "{peak} kB, where one answer alone has 100 MB");
    relay.child.kill().await.unwrap();
    std::fs::remove_file(&file).unwrap();
    room.close().await;
}
