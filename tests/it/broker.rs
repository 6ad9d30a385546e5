//! The broker's side keeps its word: what is declared, what a confirm means, and that connections come back.

use context_injector::broker::topology::{self, Names, Part};
use context_injector::broker::{
    Broker, Mandatory, Message, Offset, Options, PublishError, Publisher, State, Subscription, header, subscribe,
};
use context_injector::servers;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::{amqp_url, config, unique_prefix, within};

struct Room {
    broker: Broker,
    publisher: Publisher,
    names: Names,
}

async fn room(name: &str, more: &str) -> Room {
    let config = config(amqp_url().await, &unique_prefix(name), more);
    let plan = topology::plan(&config, Part::All);
    let broker = Broker::start_declaring(&config.amqp, name, plan, CancellationToken::new());
    within("a connection", broker.connection()).await;
    Room { publisher: Publisher::new(&broker), names: Names::new(&config.amqp.prefix), broker }
}

impl Room {
    async fn subscribe(&self, queue: &str, from: Option<Offset>) -> Subscription {
        let options = Options { prefetch: 100, tag: "test".into(), from };
        within("a subscription", subscribe(&self.broker, queue, options)).await.unwrap()
    }

    async fn publish(&self, exchange: &str, key: &str, body: &str) -> Result<(), PublishError> {
        let message = Message::new(body.to_owned()).with_message_id(body);
        within("a confirm", self.publisher.publish(exchange, key, &message, Mandatory::Yes)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_to_its_bots_queue_and_one_for_nobody_to_the_unroutable_ones() {
    let room = room("routes", "").await;
    room.publish(&room.names.jobs(), "default", "a").await.unwrap();
    room.publish(&room.names.jobs(), "nobody", "b").await.unwrap();
    for (queue, body, key) in
        [(room.names.jobs_of("default"), "a", "default"), (room.names.jobs_unroutable(), "b", "nobody")]
    {
        let mut subscription = room.subscribe(&queue, None).await;
        let incoming = within(&queue, subscription.next()).await.unwrap();
        assert_eq!((&incoming.message.body[..], incoming.routing_key.as_str()), (body.as_bytes(), key));
        incoming.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_gives_the_message_back_to_its_bot() {
    let room = room("rung", "[retry]\nschedule = [\"50ms\"]\n").await;
    let rung = room.names.jobs_retry(std::time::Duration::from_millis(50));
    room.publish(&rung, "default", "later").await.unwrap();
    let mut subscription = room.subscribe(&room.names.jobs_of("default"), None).await;
    let incoming = within("the message", subscription.next()).await.unwrap();
    assert_eq!(incoming.routing_key, "default");
    let again = incoming.message.republish();
    assert!(incoming.message.header("x-death").is_some() && again.header("x-death").is_none());
    incoming.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_queue_takes_is_an_error_of_that_message_and_of_no_other() {
    let room = room("unroutable", "").await;
    let queue = room.names.jobs_dead();
    let published = (0..500).map(async |number: u32| {
        let lost = number % 7 == 3;
        let key = if lost { format!("{queue}.not-there.{number}") } else { queue.clone() };
        (lost, room.publish("", &key, &number.to_string()).await)
    });
    for (lost, result) in join_all(published).await {
        match result {
            Ok(()) => assert!(!lost, "confirmed though no queue took it"),
            Err(PublishError::Unroutable { .. }) => assert!(lost, "stored, but reported as unroutable"),
            Err(error) => panic!("{error:?}"),
        }
    }
    let connection = room.broker.connection().await;
    let depth = topology::depth(&connection, &queue).await.unwrap().unwrap();
    assert_eq!(usize::try_from(depth.ready).unwrap(), (0..500).filter(|number| number % 7 != 3).count());
    let unseen = Message::new("x");
    let free = room.publisher.publish("", "nobody.at.all", &unseen, Mandatory::No).await;
    assert!(free.is_ok(), "{free:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_breaks_is_replaced() {
    let room = room("replaced", "").await;
    let error = room.publish("no.such.exchange", "x", "lost").await.unwrap_err();
    assert!(matches!(error, PublishError::Broken(_)) && error.is_transient(), "{error:?}");
    room.publish("", &room.names.jobs_dead(), "kept").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_or_dropped_comes_again_in_order() {
    let room = room("again", "").await;
    for number in 0..6 {
        room.publish(&room.names.jobs(), "default", &number.to_string()).await.unwrap();
    }
    let queue = room.names.jobs_of("default");
    let mut subscription = room.subscribe(&queue, None).await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(within("a job", subscription.next()).await.unwrap());
    }
    subscription.cancel().await;
    let first = held.remove(0);
    first.ack().await.unwrap();
    let dropped = held.pop();
    for incoming in held {
        incoming.give_back().await.unwrap();
    }
    drop(dropped);
    assert!(within("the end", subscription.next()).await.is_none());
    let mut subscription = room.subscribe(&queue, None).await;
    for number in 1..6 {
        let incoming = within("a job", subscription.next()).await.unwrap();
        assert_eq!(incoming.message.message_id(), Some(number.to_string().as_str()));
        assert!(incoming.redelivered);
        incoming.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_together_covers_nothing_that_is_held_given_back_or_left() {
    let room = room("together", "").await;
    let published =
        (0..90).map(async |number: u32| room.publish(&room.names.jobs(), "default", &number.to_string()).await);
    assert!(join_all(published).await.iter().all(Result::is_ok));
    let queue = room.names.jobs_of("default");
    let mut subscription = room.subscribe(&queue, None).await;
    let mut rest = Vec::new();
    for place in 0..90 {
        let incoming = within("a job", subscription.next()).await.unwrap();
        rest.push((place, incoming.message.message_id().unwrap_or_default().to_owned(), incoming));
    }
    // Out of order, as jobs end; 7 has no common factor with 90, so each has a place of its own.
    rest.sort_by_key(|(place, _, _)| (place * 7 + 13) % 90);
    let (mut expected, mut held, mut taken) = (std::collections::BTreeSet::new(), Vec::new(), 0);
    for (place, id, incoming) in rest {
        match place {
            20 => held.push(incoming),
            40 => {
                incoming.give_back().await.unwrap();
                // The prefetch of 100 has room for it: it comes again at once.
                let again = within("the one given back", subscription.next()).await.unwrap();
                assert_eq!((again.message.message_id(), again.redelivered), (Some(id.as_str()), true));
                held.push(again);
            }
            60 => incoming.receipt.leave(),
            _ => {
                incoming.receipt.ack_soon();
                taken += 1;
                continue;
            }
        }
        expected.insert(id);
    }
    assert_eq!((taken, expected.len()), (87, 3));
    let closing = subscription.close();
    within("the close", closing).await;
    let mut subscription = room.subscribe(&queue, None).await;
    let mut came = std::collections::BTreeSet::new();
    // The broker may lose acknowledgements that come right before the end of their channel: such a job comes again too.
    while !came.is_superset(&expected) {
        let incoming = within("a job", subscription.next()).await.unwrap();
        assert!(incoming.redelivered);
        came.insert(incoming.message.message_id().unwrap_or_default().to_owned());
        incoming.ack().await.unwrap();
    }
    assert!(came.len() < 90, "nothing was acknowledged");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_stream_can_be_read_again_and_again() {
    let room = room("stream", "").await;
    for number in 0..3 {
        room.publish(&room.names.outcomes(), "default.applied", &number.to_string()).await.unwrap();
    }
    for _ in 0..2 {
        let mut subscription = room.subscribe(&room.names.audit(), Some(Offset::First)).await;
        for number in 0..3 {
            let incoming = within("an outcome", subscription.next()).await.unwrap();
            assert_eq!(incoming.message.body, number.to_string());
            assert_eq!(incoming.message.integer(header::STREAM_OFFSET), Some(number));
            // A nack would end the whole connection.
            incoming.give_back().await.unwrap();
        }
    }
    assert!(room.broker.connection().await.status().connected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_another_argument_is_named_with_both_values_and_the_way_out() {
    let prefix = unique_prefix("mismatch");
    let url = amqp_url().await;
    let old = config(url, &prefix, "[audit]\nmax_age = \"1h\"\n");
    let new = config(url, &prefix, "[audit]\nmax_age = \"2h\"\n");
    let broker = Broker::start(&old.amqp, "mismatch", CancellationToken::new());
    let connection = within("a connection", broker.connection()).await;
    topology::declare(&connection, &topology::plan(&old, Part::All)).await.unwrap();
    topology::declare(&connection, &topology::plan(&old, Part::All)).await.unwrap();
    let error = topology::declare(&connection, &topology::plan(&new, Part::All)).await.unwrap_err().to_string();
    let expected = format!(
        "queue \"{prefix}.audit\" has x-max-age = \"3600s\" in RabbitMQ, but the settings want \"7200s\": let it \
         run empty and delete it, or set the value back, or use another amqp.prefix"
    );
    assert_eq!(error, expected);

    let findings = topology::check(&connection, &topology::plan(&new, Part::All)).await.unwrap();
    let different = findings.iter().filter(|finding| finding.state != topology::Match::Same).collect::<Vec<_>>();
    assert_eq!(different.len(), 1, "{different:?}");
    assert_eq!(different[0].to_string(), expected);

    let stuck =
        Broker::start_declaring(&new.amqp, "mismatch", topology::plan(&new, Part::All), CancellationToken::new());
    let mut state = stuck.state();
    let sentence = |state: &State| matches!(state, State::Connecting { why } if *why == expected);
    within("the sentence as state", state.wait_for(sentence)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_a_wrong_vhost_are_said_without_the_secret() {
    let url = url::Url::parse(amqp_url().await).unwrap();
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let user = format!("{}:{}", url.username(), url.password().unwrap());
    for (address, expected) in [
        (format!("amqp://guest:hunter2@{host}/%2f"), "refuses the user name or password"),
        (format!("amqp://{user}@{host}/nowhere"), "refuses the virtual host"),
        ("amqp://a:hunter2@127.0.0.1:1/%2f".to_owned(), "cannot reach RabbitMQ at amqp://127.0.0.1:1"),
    ] {
        let config = config(&address, "x", "");
        let broker = Broker::start(&config.amqp, "wrong", CancellationToken::new());
        let mut state = broker.state();
        let said = |state: &State| matches!(state, State::Connecting { why } if why.contains(expected));
        let state = within(expected, state.wait_for(said)).await.unwrap().clone();
        assert!(!format!("{state:?}").contains("hunter2"), "{state:?}");
        broker.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_the_broker_all_goes_on_and_what_was_confirmed_is_there() {
    let mut server = servers::Broker::start_private().await.unwrap();
    let config = config(server.url(), &unique_prefix("kill"), "");
    let names = Names::new(&config.amqp.prefix);
    let mut plan = topology::plan(&config, Part::All);
    // RabbitMQ 3.10 cannot recover the first stream of its life if it is killed within seconds of declaring it.
    plan.retain(|declaration| !format!("{declaration:?}").contains(&names.audit()));
    let broker = Broker::start_declaring(&config.amqp, "kill", plan, CancellationToken::new());
    let publisher = Publisher::new(&broker);
    let queue = names.jobs_of("default");
    let mut subscription =
        within("a subscription", subscribe(&broker, &queue, Options { prefetch: 10, tag: "kill".into(), from: None }))
            .await
            .unwrap();
    let publish = async |body: &str| {
        publisher.publish(&names.jobs(), "default", &Message::new(body.to_owned()), Mandatory::Yes).await
    };
    publish("one").await.unwrap();
    let held = within("the first job", subscription.next()).await.unwrap();

    server.kill9().await.unwrap();
    let error = within("an error", publish("lost")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(within("the end of the subscription", subscription.next()).await.is_none());
    assert!(held.ack().await.is_err(), "an ack on a dead channel is not a success");
    let mut state = broker.state();
    within("the loss", state.wait_for(|state| *state != State::Ready)).await.unwrap();

    server.start_again().await.unwrap();
    within("the return", state.wait_for(|state| *state == State::Ready)).await.unwrap();
    within("a confirm", publish("two")).await.unwrap();
    let options = Options { prefetch: 10, tag: "kill".into(), from: None };
    let mut subscription = within("a subscription", subscribe(&broker, &queue, options)).await.unwrap();
    for body in ["one", "two"] {
        let incoming = within(body, subscription.next()).await.unwrap();
        assert_eq!(incoming.message.body, body);
        incoming.ack().await.unwrap();
    }
}
