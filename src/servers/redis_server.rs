//! A Redis as an ordinary child, beside whatever Redis the machine runs.
//!
//! It appends every write to its log before it answers, so that SIGKILL loses nothing, and has 10,000 databases,
//! so that each test can have its own.

use std::time::Duration;

use super::watched::{Scratch, Spec};
use super::{Kind, Scheme, find_program, free_port};

pub(super) static KIND: Kind = Kind {
    name: "Redis",
    variable: "REDIS_URL",
    package: "redis-server",
    image_variable: "REDIS_IMAGE",
    image: "redis:8",
    port: 6379,
    command: &["redis-server", "--save", "", "--appendonly", "yes", "--databases", "10000"],
    scheme: Scheme::Redis,
};

const PING_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn prepare(scratch: &Scratch) -> std::io::Result<Option<(Spec, u16)>> {
    let Some(server) = find_program("redis-server", &["/usr/bin/redis-server"]) else { return Ok(None) };
    let port = free_port()?;
    let directory = scratch.path();
    let mut command = vec![server.into()];
    command.extend(ARGUMENTS.iter().map(Into::into));
    command.extend(["--port".into(), port.to_string().into(), "--dir".into(), directory.into()]);
    let log = directory.join("redis.log");
    Ok(Some((Spec { command, log, scratch: Some(directory.to_owned()), ..Spec::default() }, port)))
}

/// No configuration file; everything that is ours is here.
const ARGUMENTS: &[&str] = &[
    "--bind",
    "127.0.0.1",
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "everysec",
    "--databases",
    "10000",
    "--daemonize",
    "no",
    "--protected-mode",
    "yes",
];

async fn connect(url: &str) -> Result<redis::aio::MultiplexedConnection, redis::RedisError> {
    redis::Client::open(url)?.get_multiplexed_async_connection().await
}

pub(super) async fn ping(url: &str) -> Result<(), String> {
    let ask = async {
        let mut connection = connect(url).await?;
        redis::cmd("PING").query_async::<()>(&mut connection).await
    };
    match tokio::time::timeout(PING_WITHIN, ask).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer to PING".to_owned()),
    }
}

pub(super) async fn wipe(url: &str) -> Result<(), redis::RedisError> {
    let mut connection = connect(url).await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await
}
