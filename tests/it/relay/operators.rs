//! What an operator does while the relay runs.

use super::*;

pub(super) async fn command(file: &std::path::Path, arguments: &[&str]) -> (bool, String) {
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
async fn a_test_explains_every_failure_in_a_sentence() {
    let refusing = Receiver::start(|_, _| Reply::Status(401)).await;
    let failing = Receiver::start(|_, _| Reply::Status(500)).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_address = silent.local_addr().unwrap();
    // Bound and never listened on, so that nobody else gets the port.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed_address = closed.local_addr().unwrap();
    let refusing_address = refusing.address;
    let cases = [
        ("name", "http://receiver.invalid/t0ken".to_owned(), "receiver.invalid cannot be resolved"),
        ("connect", format!("http://{closed_address}/t0ken"), "no connection"),
        ("tls", format!("https://{refusing_address}/t0ken"), "no TLS session"),
        ("time", format!("http://{silent_address}/t0ken"), "did not answer within 300ms (timeout)"),
        ("status", format!("http://{refusing_address}/hook"), "answered 401: it does not let us in"),
        ("path", format!("http://{refusing_address}/t0ken"), "answered 404: there is nothing at the path"),
        ("failure", format!("http://{}/hook", failing.address), "answered 500: it failed"),
        ("inside", "http://192.168.0.1/t0ken".to_owned(), "192.168.0.1 is refused: 192.168.0.0/16 is private"),
        ("named-inside", "http://localhost:1/t0ken".to_owned(), "allow_networks in [endpoints.named-inside]"),
    ];
    let text = cases.iter().map(|(name, url, _)| {
        let allowed = if *name == "named-inside" { "10.0.0.0/8" } else { "127.0.0.0/8" };
        format!(
            "[endpoints.{name}]\nurl = {url:?}\nsecret = {SECRET:?}\nallow_http = true\n\
             allow_networks = [{allowed:?}]\ntimeout = \"300ms\"\n"
        )
    });
    let file = Process::settings(&text.collect::<String>());
    for (name, url, said) in cases {
        let (done, shown) = command(&file, &["endpoints", "test", name]).await;
        assert!(!done && shown.contains(said), "{name} at {url}: {shown}");
        assert!(!shown.contains("t0ken"), "{name}: the path may be a credential: {shown}");
    }
    std::fs::remove_file(&file).unwrap();
}

/// A receiver that keeps what came for whoever verifies it.
async fn archive() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |headers: HeaderMap, body: Bytes| {
        sender.send((headers, body)).ok();
        async { StatusCode::OK }
    };
    let app = axum::Router::new().route("/hook", axum::routing::post(handler));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_keys_rotate_receivers_with_the_old_and_with_the_new_one_both_verify() {
    let (address, mut requests) = archive().await;
    let endpoint = |secrets: &str| {
        format!(
            "[endpoints.one]\nurl = \"http://{address}/hook\"\nallow_http = true\n\
             allow_networks = [\"127.0.0.0/8\"]\n{secrets}\n"
        )
    };
    let old_only = endpoint(&format!("secret = {SECRET:?}"));
    let mut room = Room::open("relay-rotation", &old_only).await;
    let prefix = room.config.amqp.prefix.clone();
    let whole = async |more: &str| settings(amqp_url().await, redis_url().await, &prefix, more);
    let file = Process::settings(&whole(&old_only).await);
    let (done, said) = command(&file, &["endpoints", "rotate", "one"]).await;
    assert!(done, "{said}");
    let new = said.split_whitespace().find(|word| word.starts_with("whsec_")).expect("a new secret").to_owned();
    let both = endpoint(&format!("secret = {new:?}\nprevious_secret = {SECRET:?}"));
    let new_only = endpoint(&format!("secret = {new:?}"));
    let steps = [
        (whole(&old_only).await, [true, false]),
        (whole(&both).await, [true, true]),
        (whole(&new_only).await, [false, true]),
    ];
    for (text, expected) in steps {
        std::fs::write(&file, &text).unwrap();
        room.config = Config::parse(&text, []).unwrap();
        room.restart_relay().await;
        let id = room.publish("default.applied").await;
        let (headers, body) = within("a request", requests.recv()).await.unwrap();
        let header = |name: &str| headers[name].to_str().unwrap();
        let (time, signatures) = (header("webhook-timestamp"), header("webhook-signature"));
        let now = jiff::Timestamp::now().as_second();
        let verified = [SECRET, &new].map(|secret| {
            Verifier::new([secret]).unwrap().verify(header("webhook-id"), time, signatures, &body, now).is_ok()
        });
        assert_eq!((header("webhook-id"), verified), (id.as_str(), expected));
        assert_eq!(signatures.split(' ').count(), expected.iter().filter(|verified| **verified).count());
    }
    // A second rotation has to wait for the end of the first.
    std::fs::write(&file, whole(&both).await).unwrap();
    let (done, said) = command(&file, &["endpoints", "rotate", "one"]).await;
    assert!(!done && said.contains("under way"), "{said}");
    std::fs::remove_file(&file).unwrap();
    room.close().await;
}
