//! What the relay makes of an answer.

use super::*;

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
async fn a_broken_receiver_stays_left_alone_across_restarts_until_an_operator_asks_for_a_probe() {
    let receiver = Receiver::start(|number, _| Reply::Status(if number < 5 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"50ms\"]\nbreaker_open_for = \"1h\"\n".to_owned()
        + &receiver.settings("one", "max_in_flight = 1");
    let mut room = Room::open("relay-breaker-restart", &more).await;
    let mut ids = room.publish_many(10).await;
    // Five failures: those events come back from their rung and wait with the others.
    receiver.requests(5).await;
    room.waiting("one", 10).await;
    room.restart_relay().await;
    ids.extend(room.publish_many(1).await);
    room.waiting("one", 11).await;
    assert_eq!(receiver.seen.borrow().len(), 5, "nothing was tried while it was open");
    assert!(!Memory::new(&room.config.redis).unwrap().enable("one").await.unwrap(), "it was not disabled");
    receiver.all_of(&ids).await;
    room.waiting("one", 0).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_gets_no_more_per_second_than_it_asked_for() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let room = Room::open("relay-rate", &receiver.settings("one", "requests_per_second = 20")).await;
    let ids = room.publish_many(31).await;
    receiver.requests(1).await;
    let begun = std::time::Instant::now();
    receiver.all_of(&ids).await;
    // Thirty more, two of which may come at once: at least 28 intervals of 50 ms.
    assert!(begun.elapsed() >= Duration::from_millis(1_300), "{:?}", begun.elapsed());
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_refuses_everything_does_not_fill_redis_with_records() {
    let receiver = Receiver::start(|_, _| Reply::Status(422)).await;
    let more = receiver.settings("one", "record_answers = false\nmax_in_flight = 100");
    let room = Room::open("relay-records", &more).await;
    room.publish_many(2_300).await;
    receiver.requests(2_300).await;
    let memory = Memory::new(&room.config.redis).unwrap();
    let length = async |list: &str| {
        let mut command = redis::cmd("LLEN");
        command.arg(memory.key(&format!("tries:{list}:one"))).query_async::<usize>(&mut memory.redis()).await.unwrap()
    };
    within("full records", async {
        while (length("all").await, length("troubled").await) != (1_000, 2_000) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let pattern = format!("{}*", memory.key("tries:"));
    let keys = redis::cmd("KEYS").arg(pattern).query_async::<Vec<String>>(&mut memory.redis()).await.unwrap();
    assert_eq!(keys.len(), 2, "no key per event: {keys:?}");
    let lives = redis::cmd("TTL").arg(&keys[0]).query_async::<i64>(&mut memory.redis()).await.unwrap();
    assert!((1..=7 * 86_400).contains(&lives), "{lives} s");
    room.close().await;
}
