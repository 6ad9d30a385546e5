//! A RabbitMQ node as an ordinary child, beside whatever RabbitMQ the machine runs.
//!
//! Odd cases: Debian's wrapper in `/usr/sbin` insists on the user `rabbitmq`, so the unwrapped script is preferred;
//! `RUNNING_UNDER_SYSTEMD` makes that script *become* the Erlang VM, so that the child's process id is the broker's;
//! Erlang starts a daemon of its own (`epmd`) that outlives it, so the node gets a private one that does not.
//!
//! A node that is killed within three minutes of its first stream forgets that it coordinates streams, because that
//! fact waits in memory (measured on 3.10.8: each stream is "down or inaccessible" from then on). So a node that
//! will be killed declares a stream and is stopped properly once ([`declare_first_stream`]).

use std::time::Duration;

use super::watched::{Scratch, Spec};
use super::{Kind, Scheme, find_program, free_port};

pub(super) static KIND: Kind = Kind {
    name: "RabbitMQ",
    variable: "AMQP_URL",
    package: "rabbitmq-server",
    image_variable: "RABBITMQ_IMAGE",
    image: "rabbitmq:4",
    port: 5672,
    command: &[],
    scheme: Scheme::Amqp,
};

/// One handshake may hang on a server that has bound its port and is not up yet.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn prepare(scratch: &Scratch) -> std::io::Result<Option<(Spec, u16)>> {
    let server = find_program("rabbitmq-server", &["/usr/lib/rabbitmq/bin/rabbitmq-server"]);
    let epmd = find_program("epmd", &["/usr/bin/epmd", "/usr/lib/erlang/bin/epmd"]);
    let (Some(server), Some(epmd)) = (server, epmd) else { return Ok(None) };
    let (port, epmd_port, distribution) = (free_port()?, free_port()?, free_port()?);
    let directory = scratch.path();
    let configuration = directory.join("rabbitmq.conf");
    // A small write-ahead log starts faster and is removed faster than the default of 512 MB.
    std::fs::write(
        &configuration,
        format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             log.console = true\n\
             log.console.level = warning\n\
             log.file = false\n\
             disk_free_limit.absolute = 50MB\n\
             raft.wal_max_size_bytes = 67108864\n"
        ),
    )?;
    let plugins = directory.join("enabled_plugins");
    std::fs::write(&plugins, "[].\n")?;
    let env: Vec<(&str, std::ffi::OsString)> = vec![
        ("HOME", directory.into()),
        ("ERL_EPMD_PORT", epmd_port.to_string().into()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODENAME", format!("private-{port}@localhost").into()),
        ("RABBITMQ_DIST_PORT", distribution.to_string().into()),
        ("RABBITMQ_MNESIA_BASE", directory.join("data").into()),
        ("RABBITMQ_LOG_BASE", directory.join("log").into()),
        ("RABBITMQ_CONFIG_FILE", configuration.into()),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", directory.join("none.config").into()),
        ("RABBITMQ_CONF_ENV_FILE", directory.join("none.conf").into()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", plugins.into()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +SDio 4 -start_epmd false".into()),
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
    ];
    let spec = Spec {
        command: vec![server.into()],
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        env_remove: vec!["RABBITMQ_", "ERL_", "NOTIFY_SOCKET"],
        log: directory.join("rabbitmq.log"),
        helper: Some(format!("{} -port {epmd_port} -address 127.0.0.1", epmd.display())),
        container: None,
        scratch: Some(directory.to_owned()),
    };
    Ok(Some((spec, port)))
}

pub(super) async fn handshake(url: &str) -> Result<(), String> {
    let connect = lapin::Connection::connect(url, lapin::ConnectionProperties::default());
    match tokio::time::timeout(HANDSHAKE_WITHIN, connect).await {
        Ok(Ok(connection)) => {
            // The answer was the handshake; how the connection ends tells nothing more.
            let _ = connection.close(200, "ready".into()).await;
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer to the AMQP handshake".to_owned()),
    }
}

pub(super) async fn declare_first_stream(url: &str) -> Result<(), lapin::Error> {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    let mut arguments = lapin::types::FieldTable::default();
    arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("stream".into()));
    channel.queue_declare("first-stream".into(), options, arguments).await?;
    channel.queue_delete("first-stream".into(), lapin::options::QueueDeleteOptions::default()).await?;
    connection.close(200, "declared".into()).await
}
