use super::*;

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn sleeper(scratch: &Scratch) -> Watched {
    let command = vec!["sleep".into(), "600".into()];
    Watched::spawn(&Spec { command, log: scratch.path().join("log"), ..Spec::default() }).unwrap()
}

#[tokio::test]
async fn a_watched_child_ends_when_it_is_dropped() {
    let scratch = Scratch::new("watched").unwrap();
    let child = sleeper(&scratch);
    let pid = child.pid();
    assert!(alive(pid));
    drop(child);
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_watched_child_ends_when_its_parent_is_killed() {
    let scratch = Scratch::new("orphan").unwrap();
    let left = Scratch::new("left").unwrap();
    let spec = Spec {
        command: vec!["sleep".into(), "600".into()],
        log: scratch.path().join("log"),
        scratch: Some(left.path().to_owned()),
        ..Spec::default()
    };
    let child = Watched::spawn(&spec).unwrap();
    let pid = child.pid();
    child.hang_up();
    child.wait().await;
    assert!(!alive(pid));
    drop(child);
    assert!(!left.path().exists());
}

#[tokio::test]
async fn a_watched_child_tells_its_status() {
    let scratch = Scratch::new("status").unwrap();
    let command = vec!["sh".into(), "-c".into(), "echo last words; exit 7".into()];
    let child = Watched::spawn(&Spec { command, log: scratch.path().join("log"), ..Spec::default() }).unwrap();
    assert_eq!(child.wait().await, 7);
    assert_eq!(child.log_tail(), "last words");
}

#[tokio::test]
async fn signals_reach_a_watched_child() {
    let scratch = Scratch::new("signals").unwrap();
    let child = sleeper(&scratch);
    child.signal("TERM");
    assert_eq!(child.wait().await, 128 + 15);
}

#[tokio::test]
async fn a_private_redis_survives_kill_9_with_its_data() {
    let mut server = Redis::start_private().await.unwrap();
    let url = server.url().to_owned();
    let client = redis::Client::open(url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("SET").arg("kept").arg(1).query_async::<()>(&mut connection).await.unwrap();

    server.kill9().await.unwrap();
    assert!(client.get_multiplexed_async_connection().await.is_err());
    server.start_again().await.unwrap();
    assert_eq!(server.url(), url);
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let kept: Option<i64> = redis::cmd("GET").arg("kept").query_async(&mut connection).await.unwrap();
    assert_eq!(kept, Some(1));

    server.wipe().await.unwrap();
    let kept: Option<i64> = redis::cmd("GET").arg("kept").query_async(&mut connection).await.unwrap();
    assert_eq!(kept, None);
}

#[tokio::test]
async fn a_private_broker_survives_kill_9_with_its_queues_and_leaves_nothing_behind() {
    let mut broker = Broker::start_private().await.unwrap();
    declare(broker.url(), false).await.unwrap();
    broker.kill9().await.unwrap();
    assert!(rabbitmq::handshake(broker.url()).await.is_err());
    broker.start_again().await.unwrap();
    // A stream needs a moment to come back.
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    let back = async {
        while declare(broker.url(), true).await.is_err() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), back).await.unwrap();

    let run = broker.server.run.as_ref().unwrap();
    let (pid, directory) = (run.process.pid(), run._scratch.path().to_owned());
    assert!(alive(pid));
    broker.stop().await;
    assert!(!alive(pid));
    assert!(!directory.exists());
}

async fn declare(url: &str, passive: bool) -> Result<(), lapin::Error> {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for kind in ["quorum", "stream"] {
        let options = lapin::options::QueueDeclareOptions { durable: true, passive, ..Default::default() };
        let mut arguments = lapin::types::FieldTable::default();
        arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString(kind.into()));
        channel.queue_declare(kind.into(), options, arguments).await?;
    }
    connection.close(200, "done".into()).await
}
