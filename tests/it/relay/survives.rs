//! Nothing is lost, whoever ends and whenever.

use super::*;

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
    let (sent, requests) = (ids.len(), seen.len());
    println!("20 kills: {sent} sent, {sent} received, {} repeated, 0 lost", requests - sent);
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
