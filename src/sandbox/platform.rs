//! The platform itself: its conversations and its history under one lock, and the rest beside it.
//!
//! One lock for state and history together makes the order of the history the order of the effects. It is held for
//! the few microseconds of a merge, never over an await.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use regex::Regex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cognigy_v2;
use super::faults::{Active, Faults, mix};
use super::history::{Answer, Entry, Event, History, Writer};
use super::limits::{Bucket, Window};
use super::second_writer::SecondWriter;
use super::settings::{Settings, VersionForm};
use super::state::{Change, Changed, Context, Conversation};
use super::stats::{Stats, now_ms};
use super::token::Tokens;

/// What all connections share.
pub(super) struct Platform {
    pub settings: Settings,
    pub id_pattern: Regex,
    pub tokens: Tokens,
    pub stats: Stats,
    pub bucket: Mutex<Bucket>,
    pub window: Mutex<Window>,
    pub second_writer: watch::Sender<SecondWriter>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    pub next_request: AtomicU64,
    /// Conversations with a write in flight.
    pub writing: Mutex<HashSet<Arc<str>>>,
    faults: RwLock<Arc<Active>>,
    world: Mutex<World>,
}

/// The conversations and what happened to them.
pub(super) struct World {
    conversations: HashMap<Arc<str>, Slot>,
    /// In the order in which they came into being.
    ids: Vec<Arc<str>>,
    pub history: History,
    versions: Versions,
}

struct Slot {
    id: Arc<str>,
    conversation: Conversation,
    deleted: bool,
}

/// How versions look to clients.
#[derive(Clone, Copy)]
pub(super) struct Versions {
    form: VersionForm,
    seed: u64,
}

/// Whose doing an event is, and what is known of the request behind it.
#[derive(Clone, Default)]
pub(super) struct Origin {
    pub writer: Option<Writer>,
    pub request: u64,
    pub method: Option<Arc<str>>,
    pub if_match: Option<Arc<str>>,
    pub traceparent: Option<Arc<str>>,
    pub late: bool,
}

/// A write that was applied.
pub(super) struct Applied {
    /// Its place in the history.
    pub seq: u64,
    /// The version after it.
    pub after: u64,
}

/// Why a write was not applied.
pub(super) enum NotApplied {
    NotFound,
    /// The version is another one.
    Conflict {
        version: u64,
        appears_applied: bool,
    },
    /// The context would be too large, in bytes.
    TooLarge(usize),
}

impl Platform {
    /// Sets up everything; nothing runs yet.
    pub fn new(settings: Settings) -> Result<Arc<Platform>, regex::Error> {
        let now = Instant::now();
        Ok(Arc::new(Platform {
            id_pattern: Regex::new(&settings.conversation_id_pattern)?,
            tokens: Tokens::new(settings.seed),
            stats: Stats::default(),
            bucket: Mutex::new(Bucket::new(settings.rate, settings.burst, now)),
            window: Mutex::new(Window::new(settings.v2.requests, settings.v2.window, now)),
            second_writer: watch::Sender::new(settings.second_writer.clone()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            next_request: AtomicU64::new(1),
            writing: Mutex::default(),
            faults: RwLock::new(Active::new(settings.faults.clone(), settings.seed)),
            world: Mutex::new(World {
                conversations: HashMap::new(),
                ids: Vec::new(),
                history: History::new(settings.history_entries, settings.history_bytes),
                versions: Versions { form: settings.version_form, seed: settings.seed },
            }),
            settings,
        }))
    }

    /// State and history. Never keep it over an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The faults of now.
    pub fn faults(&self) -> Arc<Active> {
        Arc::clone(&self.faults.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces all faults; their counters start again.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.write().unwrap_or_else(PoisonError::into_inner) = Active::new(faults, self.settings.seed);
    }

    /// Whether a conversation of this id comes into being when it is touched.
    pub fn creates(&self, id: &str) -> bool {
        self.settings.auto_create && (cognigy_v2::is_name(id) || self.id_pattern.is_match(id))
    }
}

impl World {
    /// The conversation, brought into being where that is allowed.
    pub fn touch(&mut self, id: &str, create: bool) -> Option<&mut Conversation> {
        self.slot(id, create).filter(|slot| !slot.deleted).map(|slot| &mut slot.conversation)
    }

    fn slot(&mut self, id: &str, create: bool) -> Option<&mut Slot> {
        if !self.conversations.contains_key(id) {
            if !create {
                return None;
            }
            let id: Arc<str> = Arc::from(id);
            let slot = Slot { id: Arc::clone(&id), conversation: Conversation::new(), deleted: false };
            self.ids.push(Arc::clone(&id));
            self.conversations.insert(id, slot);
        }
        self.conversations.get_mut(id)
    }

    /// The conversation, if it is there.
    pub fn get(&self, id: &str) -> Option<&Conversation> {
        self.conversations.get(id).filter(|slot| !slot.deleted).map(|slot| &slot.conversation)
    }

    /// Ids and versions of all that are there.
    pub fn list(&self) -> Vec<(Arc<str>, u64)> {
        let there = |id: &Arc<str>| Some((Arc::clone(id), self.get(id)?.version));
        self.ids.iter().filter_map(there).collect()
    }

    /// Ids of all that ever were, in order.
    pub fn ids(&self) -> &[Arc<str>] {
        &self.ids
    }

    /// Applies a write whose precondition holds.
    ///
    /// `limit` bounds the bytes of the whole context, as JSON.
    pub fn write(
        &mut self,
        id: &str,
        create: bool,
        changes: &[Change],
        origin: &Origin,
        limit: Option<usize>,
    ) -> Result<Applied, NotApplied> {
        let versions = self.versions;
        let Some(slot) = self.slot(id, create).filter(|slot| !slot.deleted) else { return Err(NotApplied::NotFound) };
        let conversation = &mut slot.conversation;
        let before = conversation.version;
        if let Some(if_match) = origin.if_match.as_deref()
            && !versions.matches(if_match, id, before)
        {
            let appears_applied = conversation.appears_applied(changes);
            return Err(NotApplied::Conflict { version: before, appears_applied });
        }
        if let Some(limit) = limit {
            let mut trial = Context::clone(&conversation.context);
            for change in changes {
                let at = (Arc::clone(&change.key), change.scope);
                match &change.value {
                    Some(value) => trial.insert(at, Arc::clone(value)),
                    None => trial.remove(&at),
                };
            }
            let bytes = trial.iter().map(|((key, _), value)| key.len() + 4 + value.to_string().len()).sum();
            if bytes > limit {
                return Err(NotApplied::TooLarge(bytes));
            }
        }
        let changed = conversation.merge(changes);
        let (id, after) = (Arc::clone(&slot.id), conversation.version);
        let seq = self.record(Event::Write, &id, before, after, changed, origin);
        Ok(Applied { seq, after })
    }

    /// Clears a conversation; its version starts again. False where there is none.
    pub fn reset(&mut self, id: &str, origin: &Origin) -> bool {
        self.replace(id, Event::Reset, origin, |_| Some((1, Arc::default())))
    }

    /// Loads the state `back` writes ago again, version and all. False where there is none.
    pub fn rollback(&mut self, id: &str, back: usize, origin: &Origin) -> bool {
        self.replace(id, Event::Rollback, origin, |conversation| conversation.earlier(back))
    }

    /// Replaces the whole context, as another program would; the version moves on. Brings it into being, or back.
    pub fn put(&mut self, id: &str, context: Context, origin: &Origin) {
        if let Some(slot) = self.slot(id, true) {
            slot.deleted = false;
        }
        self.replace(id, Event::Put, origin, |conversation| Some((conversation.version + 1, Arc::new(context))));
    }

    /// Deletes a conversation: it does not come into being again on its own. False where there is none.
    pub fn delete(&mut self, id: &str, origin: &Origin) -> bool {
        let deleted =
            self.replace(id, Event::Delete, origin, |conversation| Some((conversation.version + 1, Arc::default())));
        if let Some(slot) = self.conversations.get_mut(id) {
            slot.deleted = true;
        }
        deleted
    }

    fn replace(
        &mut self,
        id: &str,
        event: Event,
        origin: &Origin,
        by: impl FnOnce(&Conversation) -> Option<(u64, Arc<Context>)>,
    ) -> bool {
        let Some(slot) = self.conversations.get_mut(id).filter(|slot| !slot.deleted) else { return false };
        let Some((version, context)) = by(&slot.conversation) else { return false };
        let (id, before) = (Arc::clone(&slot.id), slot.conversation.version);
        let changed = slot.conversation.replace(version, context);
        self.record(event, &id, before, version, changed, origin);
        true
    }

    fn record(
        &mut self,
        event: Event,
        id: &Arc<str>,
        before: u64,
        after: u64,
        changes: Vec<Changed>,
        origin: &Origin,
    ) -> u64 {
        let writer = origin.writer.unwrap_or(Writer::Client);
        self.history.push(Entry {
            seq: 0,
            at_ms: now_ms(),
            event,
            writer,
            request: origin.request,
            method: origin.method.clone(),
            conversation: Some(Arc::clone(id)),
            if_match: origin.if_match.clone(),
            traceparent: origin.traceparent.clone(),
            version_before: Some(before),
            version_after: Some(after),
            shown_before: Some(self.versions.shown(id, before).into()),
            shown_after: Some(self.versions.shown(id, after).into()),
            changes,
            late: origin.late,
            faults: Vec::new(),
            answer: if writer == Writer::Client { Answer::Pending } else { Answer::NoRequest },
        })
    }

    /// How versions look.
    pub fn versions(&self) -> Versions {
        self.versions
    }
}

impl Versions {
    /// The form.
    pub fn form(self) -> VersionForm {
        self.form
    }

    /// A version as clients see it, without quotes.
    pub fn shown(self, id: &str, version: u64) -> String {
        match self.form {
            VersionForm::ContextVersion | VersionForm::Version | VersionForm::Both => version.to_string(),
            VersionForm::Opaque | VersionForm::Etag => {
                let seed = id.bytes().fold(self.seed, |seed, byte| mix(seed, u64::from(byte)));
                format!("k{:x}", mix(seed, version))
            }
        }
    }

    /// Whether an `If-Match` names this version: bare, quoted, `*`, or one of a list. A weak tag never does.
    pub fn matches(self, if_match: &str, id: &str, version: u64) -> bool {
        let shown = self.shown(id, version);
        if_match.split(',').map(str::trim).any(|tag| {
            tag == "*" || tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag) == shown
        })
    }
}

#[cfg(test)]
mod tests;
