//! Scripts that Redis runs by their hash, and learns where it does not know them.
//!
//! Like `redis::Script`, whose invocation keeps each key and argument in memory of its own and copies them into the
//! command then: two of them are run for each batch.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, ToRedisArgs};

/// A Lua script.
#[derive(Debug)]
pub struct Script(redis::Script);

/// A script with its keys and arguments.
#[derive(Debug)]
pub struct Invocation<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Script {
    /// A script of that text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(redis::Script::new(text))
    }

    /// Begins an invocation with all its keys (`KEYS`).
    #[must_use]
    pub fn on<K: ToRedisArgs>(&self, keys: &[K]) -> Invocation<'_> {
        let mut command = Cmd::with_capacity(16, 512);
        command.arg("EVALSHA").arg(self.0.get_hash()).arg(keys.len()).arg(keys);
        Invocation { script: self, command }
    }
}

impl Invocation<'_> {
    /// Adds an argument (`ARGV`).
    pub fn arg<T: ToRedisArgs>(&mut self, arg: T) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Runs it.
    pub(super) async fn run<T: FromRedisValue>(&self, connection: &mut MultiplexedConnection) -> Result<T, RedisError> {
        match self.command.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.script.0.load_async(connection).await?;
                self.command.query_async(connection).await
            }
            answer => answer,
        }
    }
}
