//! The record of tries, for people: the last ones of each endpoint, and beside them the last ones that failed or
//! came after a failure, so that a busy endpoint's successes do not push them out. Kept in Redis, off the delivery's
//! path: a full channel or an absent Redis costs records (counted), never a delivery.
//!
//! Bounds: 1,000 tries and 2,000 troubled ones an endpoint, of about 1 kB, for 7 days after the last; 512 bytes of an
//! answer, none where `record_answers` is false. There is no key per event: a receiver that refuses everything would
//! fill Redis with them.

use std::time::Duration;

use jiff::Timestamp;
use redis::{AsyncCommands as _, RedisResult};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::decision::{Fate, Reason, explain_ending};
use super::delivery::{Ending, Tried};
use super::memory::Memory;

/// Tries kept of an endpoint.
const KEPT: isize = 1_000;
/// Tries kept of an endpoint that failed, or came after a failure.
const KEPT_TROUBLED: isize = 2_000;
/// How long.
const KEPT_SECONDS: i64 = 7 * 86_400;
/// Records that wait to be written.
const WAITING: usize = 1_024;
/// Records written in one round trip.
const BATCH: usize = 64;

/// One try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it ended.
    pub at: Timestamp,
    /// The endpoint.
    pub endpoint: String,
    /// The event's id.
    pub event: String,
    /// Its number, the first is 1.
    pub number: u32,
    /// Whether it was a probe of a broken endpoint.
    pub probe: bool,
    /// The status, where there was an answer.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What became of the event: `delivered`, `later`, `held`, `parked`, `disabled`, `dead`.
    pub fate: String,
    /// Why, in a sentence; empty for a success.
    pub reason: String,
    /// First bytes of an answer that was no success.
    pub answer: String,
}

impl Record {
    /// Writes down a try that ended now.
    #[must_use]
    pub fn of(endpoint: &str, event: &str, number: u32, probe: bool, tried: &Tried, fate: &Fate) -> Self {
        let status = match tried.ending {
            Ending::Answered { status, .. } => Some(status),
            Ending::Failed(_) => None,
        };
        let fate_word = match fate {
            Fate::Delivered => "delivered",
            Fate::Later(_) => "later",
            Fate::Held(_) => "held",
            Fate::Parked => "parked",
            Fate::Disable => "disabled",
            Fate::Dead(Reason::AttemptsExhausted | Reason::NotAnEvent | Reason::RefusedByReceiver) => "dead",
        };
        Self {
            at: Timestamp::now(),
            endpoint: endpoint.to_owned(),
            event: event.to_owned(),
            number,
            probe,
            status,
            took_ms: u64::try_from(tried.took.as_millis()).unwrap_or(u64::MAX),
            fate: fate_word.to_owned(),
            reason: if *fate == Fate::Delivered { String::new() } else { explain_ending(&tried.ending) },
            answer: String::from_utf8_lossy(&tried.excerpt).into_owned(),
        }
    }
}

/// Takes records without ever waiting.
#[derive(Debug, Clone)]
pub struct Recorder(mpsc::Sender<Record>);

impl Recorder {
    /// Starts the task that writes; it ends with the last clone.
    #[must_use]
    pub fn start(memory: Option<Memory>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        if let Some(memory) = memory {
            tokio::spawn(write(memory, receiver));
        }
        Self(sender)
    }

    /// Takes a record, or drops it where too many wait.
    pub fn note(&self, record: Record) {
        if self.0.try_send(record).is_err() {
            metrics::counter!(crate::metrics::WEBHOOK_RECORDS_DROPPED).increment(1);
        }
    }
}

async fn write(memory: Memory, mut records: mpsc::Receiver<Record>) {
    let mut batch = Vec::new();
    while records.recv_many(&mut batch, BATCH).await > 0 {
        let written = u64::try_from(batch.len()).unwrap_or(0);
        if store(&memory, &batch).await.is_err() {
            metrics::counter!(crate::metrics::WEBHOOK_RECORDS_DROPPED).increment(written);
            // Redis is away: do not ask it for every record.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        batch.clear();
    }
}

async fn store(memory: &Memory, records: &[Record]) -> RedisResult<()> {
    let mut pipe = redis::pipe();
    for record in records {
        let Ok(text) = serde_json::to_string(record) else { continue };
        let mut keep = |key: String, kept: isize| {
            pipe.lpush(&key, &text).ignore().ltrim(&key, 0, kept - 1).ignore().expire(&key, KEPT_SECONDS).ignore();
        };
        keep(memory.key(&all(&record.endpoint)), KEPT);
        if record.number > 1 || record.fate != "delivered" {
            keep(memory.key(&troubled(&record.endpoint)), KEPT_TROUBLED);
        }
    }
    pipe.query_async(&mut memory.redis()).await
}

/// The last tries of an endpoint, newest first.
///
/// # Errors
/// Redis cannot be asked.
pub async fn of_endpoint(memory: &Memory, endpoint: &str, limit: isize) -> RedisResult<Vec<Record>> {
    read(memory, &all(endpoint), limit).await
}

/// The tries of an event, newest first, at all the endpoints named.
///
/// # Errors
/// Redis cannot be asked.
pub async fn of_event(memory: &Memory, event: &str, endpoints: &[String]) -> RedisResult<Vec<Record>> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        for (list, kept) in [(all(endpoint), KEPT), (troubled(endpoint), KEPT_TROUBLED)] {
            let records = read(memory, &list, kept).await?;
            found.extend(records.into_iter().filter(|record| record.event == event));
        }
    }
    found.sort_by(|one, other| other.at.cmp(&one.at).then_with(|| one.endpoint.cmp(&other.endpoint)));
    found.dedup();
    Ok(found)
}

fn all(endpoint: &str) -> String {
    format!("tries:all:{endpoint}")
}

fn troubled(endpoint: &str) -> String {
    format!("tries:troubled:{endpoint}")
}

async fn read(memory: &Memory, key: &str, limit: isize) -> RedisResult<Vec<Record>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let texts: Vec<String> = memory.redis().lrange(memory.key(key), 0, limit - 1).await?;
    Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
}
