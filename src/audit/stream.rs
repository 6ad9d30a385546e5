//! Reading the audit stream.
//!
//! A stream is read with acks, never nacks (a nack ends the whole connection), and knows no end: RabbitMQ 3.10
//! counts no messages of one. So the end is asked for by a second look at its last chunk, which comes in one
//! burst; what is written after that look is not read by those who read to the end.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;

use crate::broker::topology::depth;
use crate::broker::{Broker, Offset, Options, Subscription, header, subscribe};

/// Messages under way to us.
const PREFETCH: u16 = 500;
/// How long a stream that has messages may need to give the first of its last chunk.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long a chunk that is being delivered may be quiet.
const QUIET: Duration = Duration::from_millis(300);
/// How long a stream that has more may deliver nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Reads a stream from somewhere on; after a lost connection it goes on where it was.
pub(super) struct Reader<'a> {
    broker: &'a Broker,
    stream: String,
    from: Offset,
    subscription: Option<Subscription>,
}

impl<'a> Reader<'a> {
    /// Looks whether the stream is there.
    pub(super) async fn open(broker: &'a Broker, stream: String, from: Offset) -> anyhow::Result<Self> {
        let connection = broker.connection().await;
        let found = depth(&connection, &stream).await.with_context(|| format!("cannot look at stream {stream:?}"))?;
        if found.is_none() {
            bail!("there is no stream {stream:?} in RabbitMQ; `context-injector topology apply` declares it");
        }
        Ok(Self { broker, stream, from, subscription: None })
    }

    /// The next message and its offset; waits for it.
    pub(super) async fn next(&mut self) -> anyhow::Result<(u64, Bytes)> {
        loop {
            let mut subscription = match self.subscription.take() {
                Some(subscription) => subscription,
                None => self.subscribe(self.from).await?,
            };
            let Some(incoming) = subscription.next().await else { continue };
            let offset = incoming.message.integer(header::STREAM_OFFSET).unwrap_or_default();
            let body = incoming.message.body.clone();
            // Where the channel is gone, the next look finds out.
            let _ = incoming.ack().await;
            self.subscription = Some(subscription);
            if matches!(self.from, Offset::At(from) if offset < from) {
                continue;
            }
            self.from = Offset::At(offset + 1);
            return Ok((offset, body));
        }
    }

    /// Gives `each` what there is up to the end that the stream has now.
    pub(super) async fn read_to_end(
        &mut self,
        mut each: impl FnMut(u64, &Bytes) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(end) = self.last_offset().await? else { return Ok(()) };
        loop {
            let Ok(next) = tokio::time::timeout(SILENCE_LIMIT, self.next()).await else {
                // From a time on that is after the last event there is nothing to come.
                if matches!(self.from, Offset::Since(_)) {
                    return Ok(());
                }
                bail!("stream {:?} delivers nothing; is RabbitMQ short of memory or disk?", self.stream);
            };
            let (offset, body) = next?;
            if offset <= end {
                each(offset, &body)?;
            }
            if offset >= end {
                return Ok(());
            }
        }
    }

    async fn last_offset(&self) -> anyhow::Result<Option<u64>> {
        let mut subscription = self.subscribe(Offset::Last).await?;
        let (mut end, mut wait) = (None, FIRST_WAIT);
        while let Ok(Some(incoming)) = tokio::time::timeout(wait, subscription.next()).await {
            end = incoming.message.integer(header::STREAM_OFFSET);
            let _ = incoming.ack().await;
            wait = QUIET;
        }
        subscription.close().await;
        Ok(end)
    }

    async fn subscribe(&self, from: Offset) -> anyhow::Result<Subscription> {
        let options = Options { prefetch: PREFETCH, tag: "audit".to_owned(), from: Some(from) };
        let subscription = subscribe(self.broker, &self.stream, options).await;
        subscription.with_context(|| format!("cannot read stream {:?}", self.stream))
    }
}
