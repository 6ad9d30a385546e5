//! What an operator does while the relay runs.

use super::*;

async fn command(file: &std::path::Path, arguments: &[&str]) -> (bool, String) {
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
