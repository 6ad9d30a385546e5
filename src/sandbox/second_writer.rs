//! Somebody else, who writes into the same conversations and knows nothing of us.

use std::sync::Arc;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::faults::{mix, pick};
use super::history::Writer;
use super::platform::{Origin, Platform};
use super::state::{Change, Scope};

/// Most and least writes per second that it is held to.
const MAX_RATE: f64 = 10_000.0;
const MIN_RATE: f64 = 0.001;

/// What the second writer does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecondWriter {
    /// Whether it writes.
    pub enabled: bool,
    /// Writes per second, over all conversations, from 0.001 to 10,000; 0 is none.
    pub writes_per_second: f64,
    /// The keys that it changes, in turn; `user.tier` is a key with its scope, without one it is `conversation`.
    /// Each write sets one of them to a number that grows by one with every write.
    pub keys: Vec<String>,
    /// Where it writes.
    pub conversations: Conversations,
}

/// Which conversations the second writer changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversations {
    /// Those that exist at the time of the write (of `context-v1`); as JSON `"existing"`.
    Existing,
    /// These; as JSON a list.
    These(Vec<String>),
}

impl Default for SecondWriter {
    fn default() -> Self {
        SecondWriter {
            enabled: false,
            writes_per_second: 20.0,
            keys: vec!["other_writer".into()],
            conversations: Conversations::Existing,
        }
    }
}

impl Serialize for Conversations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Conversations::Existing => serializer.serialize_str("existing"),
            Conversations::These(ids) => ids.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Conversations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("conversations: \"existing\" or a list of ids");
        match Value::deserialize(deserializer)? {
            Value::String(word) if word == "existing" => Ok(Conversations::Existing),
            Value::Array(ids) => {
                let ids: Option<Vec<String>> = ids.iter().map(|id| id.as_str().map(str::to_owned)).collect();
                ids.map(Conversations::These).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

/// Changes what the second writer does, from now on: no write by the old settings comes later.
pub(super) fn change(platform: &Platform, settings: SecondWriter) {
    let world = platform.world();
    platform.second_writer.send_replace(settings);
    drop(world);
}

/// Writes until the sandbox stops; follows the settings as they change.
pub(super) async fn run(platform: Arc<Platform>) {
    let mut settings = platform.second_writer.subscribe();
    let mut count = 0;
    loop {
        let now = settings.borrow_and_update().clone();
        if !now.enabled || now.keys.is_empty() || now.writes_per_second <= 0.0 {
            tokio::select! {
                () = platform.stop.cancelled() => return,
                _ = settings.changed() => continue,
            }
        }
        let pause = Duration::from_secs_f64(1.0 / now.writes_per_second.clamp(MIN_RATE, MAX_RATE));
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = platform.stop.cancelled() => return,
                _ = settings.changed() => break,
                () = sleep_until(next) => {
                    count += 1;
                    write(&platform, &now, count);
                    // What was missed while the machine was busy is not made up for.
                    next = (next + pause).max(Instant::now());
                }
            }
        }
    }
}

fn write(platform: &Platform, settings: &SecondWriter, count: u64) {
    let draw = mix(platform.settings.seed ^ 0x02_57_12, count);
    let Some(key) = usize::try_from(count).ok().and_then(|count| settings.keys.get(count % settings.keys.len())) else {
        return;
    };
    let (scope, key) = match key.split_once('.') {
        Some((scope, key)) => (Scope::from_name(scope).unwrap_or(Scope::Conversation), key),
        None => (Scope::Conversation, key.as_str()),
    };
    let change = Change { key: Arc::from(key), scope, value: Some(Arc::new(Value::from(count))) };
    let origin = Origin { writer: Some(Writer::Second), ..Origin::default() };
    let mut world = platform.world();
    // Who is told to stop has stopped when the order is answered: settings change under the same lock.
    if *platform.second_writer.borrow() != *settings {
        return;
    }
    let id = match &settings.conversations {
        Conversations::Existing => {
            pick(world.ids(), draw).map(|id| id.to_string()).filter(|id| platform.id_pattern.is_match(id))
        }
        Conversations::These(ids) => pick(ids, draw).cloned(),
    };
    let Some(id) = id else { return };
    let written = world.write(&id, platform.creates(&id), &[change], &origin, None).is_ok();
    drop(world);
    if written {
        platform.stats.add(|counts| counts.second_writer_writes += 1);
    }
}
