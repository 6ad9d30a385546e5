//! Takes away what the demo declared on servers that were given. Private servers go with everything in them.

use std::path::Path;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};

use crate::broker::topology::{Declaration, Part, plan};
use crate::config::Config;

/// Deletes every exchange and queue of the settings.
pub(super) async fn declared(settings: &Path, url: &str) -> anyhow::Result<()> {
    let config = Config::parse(&std::fs::read_to_string(settings)?, [])?;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    for declaration in plan(&config, Part::All) {
        match declaration {
            Declaration::Queue { name, .. } => {
                channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
            }
            Declaration::Exchange { name, .. } => {
                channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await?;
            }
            Declaration::Binding { .. } => {}
        }
    }
    connection.close(200, "cleared".into()).await?;
    Ok(())
}

/// Deletes every key that begins with the prefix.
pub(super) async fn keys(url: &str, prefix: &str) -> anyhow::Result<()> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1_000);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
        if !keys.is_empty() {
            redis::cmd("UNLINK").arg(keys).query_async::<()>(&mut connection).await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}
