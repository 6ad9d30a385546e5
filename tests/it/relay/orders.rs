//! An endpoint that is `ordered` gets its events in the order of its queue, whatever fails and whoever ends.

use super::*;

const ORDERED: &str = "ordered = true\nmax_in_flight = 1";

async fn publish_in_order(room: &Room, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(room.publish("default.applied").await);
    }
    ids
}

/// The ids in the order in which they came first.
fn firsts(seen: &[String]) -> Vec<String> {
    let mut known = BTreeSet::new();
    seen.iter().filter(|id| known.insert((*id).clone())).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_holds_the_later_ones_in_its_place() {
    // More failures than the schedule has rungs, and fewer than open the breaker.
    let receiver = Receiver::start(|number, _| Reply::Status(if number < 4 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"20ms\"]\n".to_owned() + &receiver.settings("one", ORDERED);
    let room = Room::open("relay-ordered", &more).await;
    let ids = publish_in_order(&room, 3).await;
    let expected = [vec![ids[0].clone(); 5], ids[1..].to_vec()].concat();
    assert_eq!(receiver.requests(7).await, expected);
    room.waiting("one", 0).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_ordered_receiver_is_probed_with_the_event_that_holds_the_others() {
    let receiver = Receiver::start(|number, _| Reply::Status(if number < 9 { 503 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"20ms\"]\nbreaker_open_for = \"20ms\"\nbreaker_open_max = \"50ms\"\n"
        .to_owned()
        + &receiver.settings("one", ORDERED);
    let room = Room::open("relay-ordered-broken", &more).await;
    let ids = publish_in_order(&room, 3).await;
    let expected = [vec![ids[0].clone(); 10], ids[1..].to_vec()].concat();
    assert_eq!(receiver.requests(12).await, expected);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_refused_for_good_is_a_dead_letter_and_the_later_ones_go_on() {
    let receiver = Receiver::start(|number, _| Reply::Status(if number == 0 { 422 } else { 200 })).await;
    let room = Room::open("relay-ordered-refused", &receiver.settings("one", ORDERED)).await;
    let ids = publish_in_order(&room, 3).await;
    let letter = room.dead_letter().await;
    assert_eq!(letter.message.text(header::REASON), Some("refused_by_receiver"));
    assert_eq!(letter.message.message_id(), Some(ids[0].as_str()));
    letter.ack().await.unwrap();
    assert_eq!(receiver.requests(3).await, ids);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_may_come_back_more_often_than_a_crashing_one_and_keeps_its_place() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let mut room = Room::open("relay-ordered-returns", &receiver.settings("one", ORDERED)).await;
    room.stop.cancel();
    within("the relay stops", &mut room.relay).await.unwrap();
    let ids = publish_in_order(&room, 3).await;
    let options = Options { prefetch: 1, tag: "test".into(), ..Options::default() };
    let mut other = subscribe(&room.broker, &room.names.webhooks_of("one"), options).await.unwrap();
    for _ in 0..150 {
        let incoming = within("the head of the queue", other.next()).await.unwrap();
        assert_eq!(incoming.message.message_id(), Some(ids[0].as_str()));
        incoming.give_back().await.unwrap();
    }
    other.close().await;
    room.start_relay();
    assert_eq!(receiver.requests(3).await, ids);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_stays_held_across_restarts_until_an_operator_asks_for_a_try() {
    let receiver = Receiver::start(|number, _| Reply::Status(if number == 0 { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"1h\"]\n".to_owned() + &receiver.settings("one", ORDERED);
    let mut room = Room::open("relay-ordered-restart", &more).await;
    let mut ids = publish_in_order(&room, 2).await;
    receiver.requests(1).await;
    room.waiting("one", 2).await;
    room.restart_relay().await;
    ids.extend(publish_in_order(&room, 1).await);
    room.waiting("one", 3).await;
    let memory = Memory::new(&room.config.redis).unwrap();
    let held = memory.held().await.unwrap().remove("one").expect("Redis knows what holds the queue");
    assert_eq!((held.event.as_str(), held.tries), (ids[0].as_str(), 1));
    assert_eq!(receiver.seen.borrow().len(), 1, "nothing was tried while it was held");
    memory.enable("one").await.unwrap();
    let seen = receiver.requests(4).await;
    assert_eq!(seen[1..], ids);
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_survives_a_relay_that_is_killed_again_and_again() {
    // Some events fail once or twice, which opens no breaker.
    let fails = |number: usize, of_id: usize| match of_id {
        0 => number.is_multiple_of(5),
        1 => number.is_multiple_of(3),
        _ => false,
    };
    let receiver =
        Receiver::start(move |number, of_id| Reply::Status(if fails(number, of_id) { 500 } else { 200 })).await;
    let more = "[relay]\nretry_schedule = [\"20ms\", \"50ms\"]\n".to_owned() + &receiver.settings("one", ORDERED);
    let room = Room::open("relay-ordered-kill", &more).await;
    room.stop.cancel();
    let text = settings(amqp_url().await, redis_url().await, &room.config.amqp.prefix, &more);
    let file = Process::settings(&text);
    let mut relay = Process::start(&file);
    let mut ids = Vec::new();
    for kill in 0..8 {
        let before = receiver.seen.borrow().len();
        ids.extend(publish_in_order(&room, 20).await);
        receiver.requests(before + 3 + kill).await;
        relay.replace().await;
    }
    let seen = receiver.all_of(&ids.iter().cloned().collect()).await;
    room.waiting("one", 0).await;
    assert_eq!(firsts(&seen), ids);
    // Nor did any overtake one that had only failed so far.
    let mut tries = BTreeMap::<&String, usize>::new();
    let mut open = None;
    for (number, id) in seen.iter().enumerate() {
        assert!(open.is_none_or(|open| open == id), "{id} overtook one that had failed");
        let of_id = tries.entry(id).or_default();
        open = fails(number, *of_id).then_some(id);
        *of_id += 1;
    }
    relay.child.kill().await.unwrap();
    std::fs::remove_file(&file).unwrap();
    within("the relay stops", room.relay).await.unwrap();
    room.broker.close().await;
}

/// The steps of the runbook.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_becomes_ordered_by_one_of_another_name_and_nothing_is_lost() {
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let mut room = Room::open("relay-becomes-ordered", &receiver.settings("log", "")).await;
    let before = publish_in_order(&room, 2).await;
    receiver.requests(2).await;

    let prefix = room.config.amqp.prefix.clone();
    let whole = async |more: &str| settings(amqp_url().await, redis_url().await, &prefix, more);
    let file = Process::settings(&whole(&receiver.settings("log", ORDERED)).await);
    let (done, said) = operators::command(&file, &["topology", "apply"]).await;
    assert!(!done && said.contains("cannot begin or cease to be ordered while its queue is there"), "{said}");

    let both = receiver.settings("log", "") + &receiver.settings("log-ordered", ORDERED);
    let both = whole(&both).await;
    std::fs::write(&file, &both).unwrap();
    for step in [&["endpoints", "disable", "log-ordered"][..], &["topology", "apply"]] {
        let (done, said) = operators::command(&file, step).await;
        assert!(done, "{said}");
    }
    room.config = Config::parse(&both, []).unwrap();
    room.restart_relay().await;
    let meanwhile = publish_in_order(&room, 2).await;
    receiver.requests(4).await;
    room.waiting("log", 0).await;
    room.waiting("log-ordered", 2).await;

    let channel = within("a channel", room.broker.connection()).await.create_channel().await.unwrap();
    let options = lapin::options::QueueDeleteOptions::default();
    channel.queue_delete(room.names.webhooks_of("log").into(), options).await.unwrap();
    let after = whole(&receiver.settings("log-ordered", ORDERED)).await;
    std::fs::write(&file, &after).unwrap();
    room.config = Config::parse(&after, []).unwrap();
    room.restart_relay().await;
    let (done, said) = operators::command(&file, &["endpoints", "enable", "log-ordered"]).await;
    assert!(done, "{said}");
    let later = publish_in_order(&room, 2).await;
    let came = receiver.requests(8).await;
    // The other endpoint's have no order.
    let (without_order, ordered) = came.split_at(4);
    let all = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(all(without_order), all(&[before, meanwhile.clone()].concat()));
    assert_eq!(ordered, [meanwhile, later].concat());
    std::fs::remove_file(&file).unwrap();
    room.close().await;
}
