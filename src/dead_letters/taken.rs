//! What a command took off a queue, so that it knows it again.
//!
//! An ack has no answer. RabbitMQ can forget one that was sent just before the end of its channel, and lay the letter
//! down again in its place. A command that reports success while such letters are there would be wrong, so it looks
//! again until a look finds none of them. They are not published or recorded once more: that was confirmed.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::browse::{self, Browser, Looked};
use crate::broker::{Broker, Incoming, header};

/// Looks after which a queue that lays everything down again is given up.
const LOOKS: usize = 5;

/// The letters that were taken, and how many were left.
#[derive(Default)]
pub(super) struct Taken {
    taken: HashSet<Key>,
    /// Letters that could not be taken; another one may be the same in every byte.
    kept: HashSet<Key>,
    /// All that stay.
    left: u32,
}

/// Names one letter, not only its job: one that died again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 16]);

impl Key {
    pub(super) fn of(incoming: &Incoming) -> Self {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update(bytes.len().to_be_bytes());
            hash.update(bytes);
        };
        let message = &incoming.message;
        part(&message.body);
        part(message.message_id().unwrap_or_default().as_bytes());
        part(incoming.routing_key.as_bytes());
        // What the broker counts is different at each look.
        for (name, value) in message.headers().filter(|(name, _)| !header::COUNTED.contains(name)) {
            part(name.as_bytes());
            part(format!("{value:?}").as_bytes());
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hash.finalize()[..16]);
        Self(key)
    }
}

impl Taken {
    /// Notes a letter whose ack was sent.
    pub(super) fn take(&mut self, key: Key) {
        self.taken.insert(key);
    }

    /// Notes a letter that stays though it was to be taken.
    pub(super) fn keep(&mut self, key: Key) {
        self.kept.insert(key);
        self.left += 1;
    }

    /// Notes a letter that was not meant.
    pub(super) fn leave(&mut self) {
        self.left += 1;
    }

    /// Looks until nothing is there that was taken.
    ///
    /// # Errors
    /// The queue cannot be looked at, or lays letters down again and again.
    pub(super) async fn make_sure(&self, broker: &Broker, queue: &str) -> anyhow::Result<Looked> {
        for _ in 0..LOOKS {
            // These are those; only where new ones came must they be told apart.
            if browse::has(broker, queue, self.left).await? {
                return Ok(Looked::default());
            }
            let mut browser = Browser::open(broker, queue.to_owned()).await?;
            let mut again = 0;
            while let Some(incoming) = browser.next().await? {
                let key = Key::of(&incoming);
                if incoming.redelivered && self.taken.contains(&key) && !self.kept.contains(&key) {
                    again += 1;
                    incoming.ack().await.context("the connection broke; run it again")?;
                } else {
                    browser.leave(incoming.receipt);
                }
            }
            let looked = browser.close().await?;
            if again == 0 {
                return Ok(looked);
            }
        }
        bail!("RabbitMQ lays letters down again that were taken off queue {queue:?}; run it again")
    }
}
