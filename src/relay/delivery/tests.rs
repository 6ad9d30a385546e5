//! Receivers that behave like the worst of the internet, each with the promised reaction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::relay::signature::Verifier;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Of a try that is to end by it.
const DEADLINE: Duration = Duration::from_millis(400);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// Longer than any test may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that treats every connection by `behave`. Returns its address and the number of connections so far.
async fn server<F, Fut>(behave: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(behave(stream));
        }
    });
    (address, connections)
}

/// Reads one request: its head in lower case and its body.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if bytes.len() >= at + 4 + length.unwrap_or(0) {
                return Ok((head, bytes[at + 4..].to_vec()));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Ends a connection by a reset instead of an orderly end.
fn reset(stream: TcpStream) -> std::io::Result<()> {
    // Linger of zero: what is unsent is thrown away and the peer gets RST.
    stream.set_zero_linger()?;
    drop(stream);
    Ok(())
}

/// An endpoint whose limits of time a test on a busy machine does not reach.
fn endpoint(url: &str) -> Endpoint {
    rustls::crypto::ring::default_provider().install_default().ok();
    let text = format!(
        "[endpoints.test]\nurl = {url:?}\nsecret = {SECRET:?}\nallow_http = true\nallow_networks = [\"127.0.0.1/32\"]\n\
         timeout = \"15s\"\nconnect_timeout = \"15s\"\nheaders = {{ authorization = \"Bearer sesame\" }}\n"
    );
    crate::config::Config::parse(&text, []).unwrap().endpoints.remove("test").unwrap()
}

/// An endpoint whose try ends soon, for those who say nothing.
fn hasty(url: &str) -> Endpoint {
    Endpoint { timeout: DEADLINE, ..endpoint(url) }
}

fn receiver(address: SocketAddr) -> Receiver {
    Receiver::new(&endpoint(&format!("http://{address}/hooks/t0ken"))).unwrap()
}

fn event() -> Event {
    let body = r#"{"id":"4f2a","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    Event::read(Bytes::from(body)).unwrap()
}

async fn send(receiver: &Receiver) -> Tried {
    tokio::time::timeout(LIMIT, receiver.send(&event())).await.expect("a try ends by its deadline")
}

fn status(tried: &Tried) -> u16 {
    match &tried.ending {
        Ending::Answered { status, .. } => *status,
        Ending::Failed(failure) => panic!("no answer: {failure}"),
    }
}

fn failure(tried: Tried) -> Failure {
    match tried.ending {
        Ending::Failed(failure) => failure,
        Ending::Answered { status, .. } => panic!("answered {status}"),
    }
}

async fn drain(tried: Tried) {
    let rest = tried.rest.expect("a success has a rest");
    tokio::time::timeout(LIMIT, rest.drain()).await.expect("draining ends by the deadline");
}

#[tokio::test]
async fn a_request_is_signed_whole_and_offers_no_encoding() {
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let (address, _) = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            sender.send(read_request(&mut stream).await?).ok();
            stream.write_all(OK).await
        }
    })
    .await;
    let tried = send(&receiver(address)).await;
    assert_eq!(status(&tried), 200);
    let (head, body) = requests.recv().await.unwrap();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.map(str::to_owned)
    };
    assert!(head.starts_with("post /hooks/t0ken http/1.1"), "{head}");
    assert_eq!(header("content-type").as_deref(), Some("application/cloudevents+json"));
    assert_eq!(header("webhook-id").as_deref(), Some("4f2a"));
    assert_eq!(header("authorization").as_deref(), Some("bearer sesame"));
    assert_eq!(header("accept-encoding"), None);
    assert_eq!(header("traceparent").unwrap(), event().traceparent.unwrap());
    assert_eq!(body, event().body);
    // The head was lowered, the signature is base64: sign again for the time in it.
    let time = header("webhook-timestamp").unwrap();
    let signature = Signer::new(&SECRET.into(), None).unwrap().sign("4f2a", time.parse().unwrap(), &body);
    assert_eq!(header("webhook-signature").unwrap(), signature.to_lowercase());
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert_eq!(Verifier::new([SECRET]).unwrap().verify("4f2a", &time, &signature, &body, now), Ok(()));
}

#[tokio::test]
async fn connections_are_used_again() {
    let (address, connections) = server(|mut stream| async move {
        loop {
            read_request(&mut stream).await?;
            stream.write_all(OK).await?;
        }
    })
    .await;
    let receiver = receiver(address);
    for _ in 0..5 {
        drain(send(&receiver).await).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_is_cut_off_by_the_deadline() {
    let (address, _) = server(|mut stream| async move {
        read_request(&mut stream).await?;
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
            stream.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
    .await;
    let receiver = Receiver::new(&hasty(&format!("http://{address}/"))).unwrap();
    let tried = send(&receiver).await;
    assert!(tried.took >= DEADLINE);
    assert!(matches!(failure(tried), Failure::TimedOut { .. }));
}

#[tokio::test]
async fn a_success_with_a_body_that_never_ends_is_a_success_at_once() {
    let (address, _) = server(|mut stream| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx").await?;
        std::future::pending().await
    })
    .await;
    let mut tried = send(&receiver(address)).await;
    assert_eq!(status(&tried), 200);
    // The deadline of the try holds for the rest too: nearer by hand, or this test would take as long.
    tried.rest.as_mut().expect("a success has a rest").deadline = Instant::now() + DEADLINE;
    drain(tried).await;
}

/// How many bytes a server could send of a body that never ends (or of 100 MB, which is the same).
async fn bytes_taken(head: &'static [u8], chunk: &'static [u8]) -> (Tried, usize) {
    let (sender, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let (address, _) = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            read_request(&mut stream).await?;
            let mut total = 0;
            stream.write_all(head).await?;
            while total < 100_000_000 && stream.write_all(chunk).await.is_ok() {
                total += chunk.len();
            }
            sender.send(total).ok();
            Ok(())
        }
    })
    .await;
    let mut tried = send(&receiver(address)).await;
    if let Some(rest) = tried.rest.take() {
        tokio::time::timeout(LIMIT, rest.drain()).await.expect("draining ends");
    }
    (tried, tokio::time::timeout(LIMIT, sent.recv()).await.expect("the connection ends").unwrap())
}

#[tokio::test]
async fn endless_and_huge_answers_cost_their_connection_and_no_memory() {
    static ZEROS: [u8; 16_384] = [0; 16_384];
    for head in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 100000000\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\n\r\n",
    ] {
        let (tried, sent) = bytes_taken(head, &ZEROS).await;
        assert!(matches!(status(&tried), 200 | 500));
        // What the sockets' buffers hold on both sides, and no more.
        assert!(sent < 20_000_000, "{sent} bytes were taken");
        assert!(tried.excerpt.len() <= EXCERPT_BYTES);
    }
}

#[tokio::test]
async fn a_compressed_answer_stays_compressed() {
    // The head of a gzip stream that would inflate a thousandfold.
    static BOMB: [u8; 1_024] = {
        let mut bytes = [0; 1_024];
        bytes[0] = 0x1f;
        bytes[1] = 0x8b;
        bytes
    };
    let (tried, _) = bytes_taken(b"HTTP/1.1 500 Oh\r\ncontent-encoding: gzip\r\n\r\n", &BOMB).await;
    assert_eq!(status(&tried), 500);
    assert_eq!(&tried.excerpt[..2], [0x1f, 0x8b]);
}

#[tokio::test]
async fn endless_headers_end_with_the_connection() {
    let (address, _) = server(|mut stream| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
        while stream.write_all(b"x-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await.is_ok() {}
        Ok(())
    })
    .await;
    assert!(matches!(failure(send(&receiver(address)).await), Failure::Broken { .. }));
}

#[tokio::test]
async fn a_reset_at_any_phase_before_the_status_is_a_failure_and_after_it_changes_nothing() {
    const ANSWERS: [&[u8]; 4] =
        [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\ncontent-", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"];
    for (phase, answer) in ANSWERS.into_iter().enumerate() {
        let (address, _) = server(move |mut stream| async move {
            read_request(&mut stream).await?;
            stream.write_all(answer).await?;
            stream.flush().await?;
            if phase < 3 {
                return reset(stream);
            }
            // A reset would throw away what is still on its way.
            stream.shutdown().await
        })
        .await;
        let tried = send(&receiver(address)).await;
        if phase == 3 {
            assert_eq!(status(&tried), 200);
            drain(tried).await;
        } else {
            assert!(matches!(failure(tried), Failure::Broken { .. }), "phase {phase}");
        }
    }
    let (address, _) = server(|stream| async move { reset(stream) }).await;
    assert!(matches!(failure(send(&receiver(address)).await), Failure::Broken { .. } | Failure::Connect { .. }));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (inner, reached) = server(|mut stream| async move { stream.write_all(OK).await }).await;
    for code in [301, 302, 303, 307, 308] {
        let (address, _) = server(move |mut stream| async move {
            read_request(&mut stream).await?;
            let answer =
                format!("HTTP/1.1 {code} Moved\r\nlocation: http://{inner}/latest\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await
        })
        .await;
        assert_eq!(status(&send(&receiver(address)).await), code);
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_before_the_request_was_read_counts() {
    let (address, _) = server(|mut stream| async move {
        stream.write_all(OK).await?;
        read_request(&mut stream).await.map(|_| ())
    })
    .await;
    // The client may also take the early bytes for a broken connection: then it is a failure, and never a hang.
    let tried = send(&receiver(address)).await;
    assert!(matches!(tried.ending, Ending::Answered { status: 200, .. } | Ending::Failed(Failure::Broken { .. })));
}

#[tokio::test]
async fn interim_answers_are_not_the_answer() {
    let (address, _) = server(|mut stream| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n").await
    })
    .await;
    assert_eq!(status(&send(&receiver(address)).await), 204);
}

#[tokio::test]
async fn retry_after_is_read_in_both_forms() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(120));
    for (value, range) in [("7".to_owned(), 7..=7), (date, 110..=120)] {
        let (address, _) = server(move |mut stream| {
            let answer = format!("HTTP/1.1 429 Slow\r\nretry-after: {value}\r\ncontent-length: 4\r\n\r\nslow");
            async move {
                read_request(&mut stream).await?;
                stream.write_all(answer.as_bytes()).await
            }
        })
        .await;
        let tried = send(&receiver(address)).await;
        assert_eq!(tried.excerpt, "slow");
        match tried.ending {
            Ending::Answered { status: 429, retry_after: Some(wait) } => {
                assert!(range.contains(&wait.as_secs()), "{wait:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn each_failure_is_told_in_a_sentence_without_the_url() {
    let (silent, _) = server(|stream| async move {
        tokio::time::sleep(LIMIT).await;
        drop(stream);
        Ok(())
    })
    .await;
    let (ssh, _) = server(|mut stream| async move {
        read_request(&mut stream).await?;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await
    })
    .await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let (plain, _) = server(|mut stream| async move {
        stream.read_u8().await?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await
    })
    .await;
    // Longer than a label may be (RFC 1035, 2.3.4): refused without asking a name server, which a machine may lack.
    let name = "n".repeat(64) + ".invalid";
    let connects_hastily = |url: &str| Endpoint { connect_timeout: DEADLINE / 2, ..endpoint(url) };
    for (url, endpoint, code, said) in [
        (
            format!("http://{silent}/t0ken"),
            &hasty as &dyn Fn(&str) -> Endpoint,
            "timeout",
            "did not answer within 400ms",
        ),
        (format!("https://{silent}/t0ken"), &connects_hastily, "connect", "nothing answers within 200ms"),
        (format!("http://{ssh}/t0ken"), &endpoint, "broken", "something else than HTTP"),
        (format!("http://{closed}/t0ken"), &endpoint, "connect", "refused"),
        (format!("https://{plain}/t0ken"), &endpoint, "tls", "no TLS session"),
        (format!("http://{name}/t0ken"), &endpoint, "dns", ".invalid cannot be resolved"),
    ] {
        let failure = failure(send(&Receiver::new(&endpoint(&url)).unwrap()).await);
        let text = failure.to_string();
        assert_eq!(failure.code(), code, "{url}: {text}");
        assert!(text.contains(said) && !text.contains("t0ken"), "{url}: {text}");
    }
}

#[test]
fn an_address_that_is_refused_is_named_without_the_rest_of_the_url() {
    let text = Receiver::new(&endpoint("http://[::1]:1/t0ken")).expect_err("a loopback address").to_string();
    assert!(text.starts_with("endpoints.test.url: the address ::1 is refused"), "{text}");
    assert!(!text.contains("t0ken"), "{text}");
}

#[tokio::test]
async fn a_name_that_turns_inwards_is_refused_and_a_vetted_connection_is_kept() {
    let (address, connections) = server(|mut stream| async move {
        for _ in 0..2 {
            read_request(&mut stream).await?;
            stream.write_all(OK).await?;
        }
        Ok(())
    })
    .await;
    let endpoint = endpoint(&format!("http://rebinding.example:{}/", address.port()));
    let filter = AddressFilter::new("test", &endpoint.allow_networks);
    let answers = vec![vec!["127.0.0.1".parse().unwrap()], vec!["127.0.0.2".parse().unwrap()]];
    let receiver = Receiver::with_resolver(&endpoint, VettedResolver::scripted(filter, answers)).unwrap();
    for _ in 0..2 {
        drain(send(&receiver).await).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "no second look-up while the connection lives");
    let refused = loop {
        // The end of the first connection may not have arrived yet; that try then fails as broken.
        match failure(send(&receiver).await) {
            Failure::Broken { .. } => {}
            other => break other,
        }
    };
    assert_eq!(refused.code(), "refused_address");
    assert!(refused.to_string().contains("127.0.0.2") && refused.to_string().contains("allow_networks"), "{refused}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let with = |from: &str, to: &str| {
        let mut endpoint = endpoint("http://127.0.0.1:1/t0ken");
        match from {
            "secret" => endpoint.secret = to.into(),
            "previous_secret" => endpoint.previous_secret = Some(to.into()),
            header => drop(endpoint.headers.insert(header.to_owned(), to.into())),
        }
        Receiver::new(&endpoint).expect_err("unusable").to_string()
    };
    assert!(with("secret", "hunter2").starts_with("endpoints.test.secret does not begin with whsec_ or whsk_"));
    assert!(with("previous_secret", "whsec_hunter2").starts_with("endpoints.test.previous_secret has"));
    assert!(with("Webhook-Id", "hunter2").starts_with("endpoints.test.headers.Webhook-Id is set by the relay"));
}

/// A certificate that nobody signed, for somebody else, valid until 2124; and its key.
const STRANGERS_CERTIFICATE: &str = "MIIBpjCCAU2gAwIBAgIUUK+qGjHw+mOeDoFRTb5ynwZG9e4wCgYIKoZIzj0EAwIwGjEYMBYGA1UEAwwPc29tZW9uZS5leGFtcGxlMCAXDTI2MTEyNDExMDM0OFoYDzIxMjYxMDMxMTEwMzQ4WjAaMRgwFgYDVQQDDA9zb21lb25lLmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAT8QpckOPqX6gTbYEfxMA9L1lUPCeUGE8tqLOUlxNQ8l1WIY03rIrlNSa6A+qZ8NGzZwJ8cLmcOwrTlGhNnxySVo28wbTAdBgNVHQ4EFgQU+3fcaflsZh5haGk8L7eiQStX2U4wHwYDVR0jBBgwFoAU+3fcaflsZh5haGk8L7eiQStX2U4wDwYDVR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgg9zb21lb25lLmV4YW1wbGUwCgYIKoZIzj0EAwIDRwAwRAIgUaFczx+BgAIejOIqWswvCEGd4I2hmxMvHvLwHt6OpmACICfv8BSrJbusLIaMJx+DXLD48GWLai30hBvBaefkK+te";
const STRANGERS_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQge2tsag5LPhKqTx6t/g2eVrft2RaEEakaph34FiG453mhRANCAAT8QpckOPqX6gTbYEfxMA9L1lUPCeUGE8tqLOUlxNQ8l1WIY03rIrlNSa6A+qZ8NGzZwJ8cLmcOwrTlGhNnxySV";

#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_refused_before_anything_is_sent() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let decode = |text: &str| base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    let certificate = rustls::pki_types::CertificateDer::from(decode(STRANGERS_CERTIFICATE));
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(decode(STRANGERS_KEY).into());
    let settings =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let settings = Arc::new(settings);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Blocking, in a thread of its own: rustls alone knows no tokio.
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut session = rustls::ServerConnection::new(settings).unwrap();
        while session.is_handshaking() && session.complete_io(&mut stream).is_ok() {}
        let mut request = Vec::new();
        std::io::Read::read_to_end(&mut rustls::Stream::new(&mut session, &mut stream), &mut request).ok();
        request
    });
    let receiver = Receiver::new(&endpoint(&format!("https://{address}/t0ken"))).unwrap();
    let failure = failure(send(&receiver).await);
    assert_eq!(failure.code(), "tls", "{failure}");
    assert!(failure.to_string().contains("certificate"), "{failure}");
    assert_eq!(served.join().unwrap(), b"", "nothing was sent");
}
