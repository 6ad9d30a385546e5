//! What one receiver does costs the others nothing, and the relay no memory.

use super::*;

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

/// Answers every request with a status, headers and a body of 100 MB in pieces, or all of `body`.
async fn flood(status: u16, encoding: &'static str, body: Option<Bytes>) -> (SocketAddr, watch::Receiver<usize>) {
    let (requests, came) = watch::channel(0);
    let app =
        axum::Router::new().route(
            "/hook",
            axum::routing::post(move || {
                requests.send_modify(|count| *count += 1);
                let body = match body.clone() {
                    Some(body) => axum::body::Body::from(body),
                    None => {
                        let pieces = std::iter::repeat_n(Bytes::from_static(&[0; 65_536]), 1_600);
                        axum::body::Body::from_stream(futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>)))
                    }
                };
                async move {
                    (StatusCode::from_u16(status).unwrap(), [("content-encoding", encoding)], body).into_response()
                }
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, came)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_and_bombs_do_not_fill_the_relays_memory() {
    let bomb = std::process::Command::new("sh").args(["-c", "head -c 104857600 /dev/zero | gzip -9"]).output().unwrap();
    let (good, _) = flood(200, "identity", None).await;
    let (bad, mut to_bad) = flood(500, "identity", None).await;
    let (bomb, mut to_bomb) = flood(500, "gzip", Some(bomb.stdout.into())).await;
    let endpoint = |name: &str, address: SocketAddr| {
        format!(
            "[endpoints.{name}]\nurl = \"http://{address}/hook\"\nsecret = {SECRET:?}\nallow_http = true\n\
             allow_networks = [\"127.0.0.0/8\"]\nmax_in_flight = 50\n"
        )
    };
    let more =
        "[relay]\nretry_schedule = [\"10ms\", \"10ms\"]\nbreaker_open_for = \"10ms\"\nbreaker_open_max = \"10ms\"\n"
            .to_owned()
            + &endpoint("good", good)
            + &endpoint("bad", bad)
            + &endpoint("bomb", bomb);
    let room = Room::open("relay-flood", &more).await;
    room.stop.cancel();
    let text = settings(amqp_url().await, redis_url().await, &room.config.amqp.prefix, &more);
    let file = Process::settings(&text);
    let mut relay = Process::start(&file);
    room.publish_many(200).await;
    room.waiting("good", 0).await;
    for requests in [&mut to_bad, &mut to_bomb] {
        within("60 requests", requests.wait_for(|count| *count >= 60)).await.unwrap();
    }
    let peak = relay.peak_memory();
    println!("peak memory of the relay with 100 MB and a bomb: {peak} kB");
    // A hundred are in flight at a time: a single answer that were kept would show.
    assert!(peak < 150_000, "{peak} kB, where one answer alone has 100 MB");
    relay.child.kill().await.unwrap();
    std::fs::remove_file(&file).unwrap();
    within("the relay stops", room.relay).await.unwrap();
    room.broker.close().await;
}

/// Rounds of the measurement.
const ROUNDS: usize = 7;

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
    // Turn and turn about, since a machine is never as quiet in one minute as in the next.
    let mut p99s = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let calm = lags("relay-calm", &(settings.clone() + &spare), 50, 10, &well).await;
        let stormy = lags("relay-stormy", &(settings.clone() + &bad), 50, 10, &well).await;
        for (lags, p99s) in [calm, stormy].into_iter().zip(&mut p99s) {
            let found = percentiles(lags);
            println!("round {round}: p50, p95, p99 {found:.1?} ms");
            p99s.push(found[2]);
        }
    }
    let [calm, stormy] = p99s.map(|p99s| percentiles(p99s)[0]);
    let change = (stormy / calm - 1.0) * 100.0;
    println!("eight endpoints, median of the p99 of {ROUNDS} rounds: {calm:.1} ms with two more that are well,");
    println!("{stormy:.1} ms with one that hangs and one that fails: {change:+.1} %");
}
