//! Endpoints that are in the settings no more, while their queues still get and keep events: taken out by mistake, or
//! by somebody who did not know that the queue stays bound.
//!
//! The broker cannot be asked for its queues over AMQP, so Redis remembers every endpoint that a relay has served, until
//! its queue is deleted. Without Redis nothing is known of them; their events wait all the same. A queue that somebody
//! consumes is another relay's, with other settings.

use std::collections::BTreeMap;

use super::memory::Memory;
use crate::broker::Broker;
use crate::broker::topology::{self, Names};

/// An endpoint that was taken out of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Events in its queue.
    pub waiting: u32,
    /// What to do about it, in a sentence.
    pub advice: String,
}

/// Looks for them by name. `is_configured` says which names are in the settings.
///
/// # Errors
/// Redis or the broker cannot be asked.
pub async fn find(
    memory: &Memory,
    broker: &Broker,
    names: &Names,
    is_configured: impl Fn(&str) -> bool,
) -> anyhow::Result<BTreeMap<String, Removed>> {
    let mut removed = BTreeMap::new();
    for endpoint in memory.served().await?.into_iter().filter(|name| !is_configured(name)) {
        let queue = names.webhooks_of(&endpoint);
        match topology::depth(&*broker.connection().await, &queue).await? {
            None => memory.forget(&endpoint).await?,
            Some(depth) if depth.consumers > 0 => {}
            Some(depth) => {
                let advice = format!(
                    "{endpoint} is not in the settings, but its queue still takes events: put [endpoints.{endpoint}] \
                     back, or delete the queue {queue}"
                );
                removed.insert(endpoint, Removed { waiting: depth.ready, advice });
            }
        }
    }
    Ok(removed)
}
