//! What the platform remembers of its conversations, and how a write changes it. Pure: no clock, no I/O.
//!
//! Rules: a write merges by (scope, key), what it does not name stays, `null` removes. Every change moves the
//! version by one, also a change to the same values. Earlier states are kept for a while, because a real platform
//! sometimes answers with one, or loads one again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Earlier states kept per conversation.
const PAST_STATES: usize = 8;

/// The scope of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every conversation of the bot sees it.
    Global,
    /// The default.
    Conversation,
    /// It belongs to the user.
    User,
    /// It belongs to the session.
    Session,
}

impl Scope {
    /// The name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Global => "global",
            Scope::Conversation => "conversation",
            Scope::User => "user",
            Scope::Session => "session",
        }
    }

    /// Reads the name as requests carry it.
    pub fn from_name(name: &str) -> Option<Scope> {
        [Scope::Global, Scope::Conversation, Scope::User, Scope::Session].into_iter().find(|scope| scope.name() == name)
    }
}

/// The variables of one conversation by key and scope.
pub type Context = BTreeMap<(Arc<str>, Scope), Arc<Value>>;

/// One variable that a write sets, or removes where there is no value.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The key.
    pub key: Arc<str>,
    /// The scope.
    pub scope: Scope,
    /// The new value; `None` removes.
    pub value: Option<Arc<Value>>,
}

/// One variable that a write changed, as the history keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// The scope.
    pub scope: Scope,
    /// The key.
    pub key: Arc<str>,
    /// The value before; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Arc<Value>>,
    /// The value after; absent where it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Arc<Value>>,
}

/// One conversation.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Moves with every write; starts at 1.
    pub version: u64,
    /// The variables.
    pub context: Arc<Context>,
    /// Earlier states, newest last.
    past: VecDeque<(u64, Arc<Context>)>,
}

impl Conversation {
    /// A new conversation: version 1, no variables.
    pub fn new() -> Self {
        Conversation { version: 1, context: Arc::new(Context::new()), past: VecDeque::new() }
    }

    /// Merges the changes and moves the version.
    pub fn merge(&mut self, changes: &[Change]) -> Vec<Changed> {
        self.remember();
        let context = Arc::make_mut(&mut self.context);
        let changed = changes
            .iter()
            .map(|change| {
                let at = (Arc::clone(&change.key), change.scope);
                let old = match &change.value {
                    Some(value) => context.insert(at, Arc::clone(value)),
                    None => context.remove(&at),
                };
                Changed { scope: change.scope, key: Arc::clone(&change.key), old, new: change.value.clone() }
            })
            .collect();
        self.version += 1;
        changed
    }

    /// Replaces everything, as a reset or another program would. Every variable that differs is in the answer.
    pub fn replace(&mut self, version: u64, context: Arc<Context>) -> Vec<Changed> {
        self.remember();
        let old = std::mem::replace(&mut self.context, context);
        self.version = version;
        difference(&old, &self.context)
    }

    /// The state `back` writes ago, or the oldest that is remembered; `None` if there is none.
    pub fn earlier(&self, back: usize) -> Option<(u64, Arc<Context>)> {
        let at = self.past.len().saturating_sub(back.max(1));
        self.past.get(at).cloned()
    }

    /// Whether the changes are already in the state, whoever made them.
    pub fn appears_applied(&self, changes: &[Change]) -> bool {
        changes.iter().all(|change| {
            self.context.get(&(Arc::clone(&change.key), change.scope)).map(Arc::as_ref)
                == change.value.as_ref().map(Arc::as_ref)
        })
    }

    fn remember(&mut self) {
        if self.past.len() == PAST_STATES {
            self.past.pop_front();
        }
        self.past.push_back((self.version, Arc::clone(&self.context)));
    }
}

impl Default for Conversation {
    fn default() -> Self {
        Conversation::new()
    }
}

/// What was removed, added or changed between two states.
fn difference(old: &Context, new: &Context) -> Vec<Changed> {
    let removed = old.iter().filter(|(at, _)| !new.contains_key(*at)).map(|(at, value)| (at, Some(value), None));
    let set =
        new.iter().filter(|(at, value)| old.get(*at) != Some(*value)).map(|(at, value)| (at, old.get(at), Some(value)));
    removed
        .chain(set)
        .map(|((key, scope), old, new)| Changed {
            scope: *scope,
            key: Arc::clone(key),
            old: old.cloned(),
            new: new.cloned(),
        })
        .collect()
}

/// The context as `context-v1` shows it: an object per key, an array of them where the name lives in several scopes.
pub fn shown(context: &Context, omit_default_scope: bool) -> serde_json::Map<String, Value> {
    let mut object = serde_json::Map::new();
    for ((key, scope), value) in context {
        let mut entry = serde_json::Map::new();
        entry.insert("value".into(), Value::clone(value));
        if !(omit_default_scope && *scope == Scope::Conversation) {
            entry.insert("scope".into(), Value::String(scope.name().into()));
        }
        let entry = Value::Object(entry);
        match object.get_mut(&**key) {
            None => {
                object.insert(key.to_string(), entry);
            }
            Some(Value::Array(several)) => several.push(entry),
            Some(one) => *one = Value::Array(vec![one.take(), entry]),
        }
    }
    object
}

/// Reads the form of [`shown`]; the error names the key that is wrong.
pub fn from_shown(object: &serde_json::Map<String, Value>) -> Result<Context, String> {
    let mut context = Context::new();
    for (key, entry) in object {
        let entries = match entry {
            Value::Array(several) => several.as_slice(),
            one => std::slice::from_ref(one),
        };
        for entry in entries {
            let Some(value) = entry.get("value") else {
                return Err(format!("context.{key}: an object with `value` (and `scope`) is needed"));
            };
            let scope = match entry.get("scope").map(|scope| scope.as_str().and_then(Scope::from_name)) {
                None => Scope::Conversation,
                Some(Some(scope)) => scope,
                Some(None) => return Err(format!("context.{key}.scope: global, conversation, user or session")),
            };
            if !value.is_null() {
                context.insert((Arc::from(key.as_str()), scope), Arc::new(value.clone()));
            }
        }
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(scope: Scope, key: &str, value: Value) -> Change {
        Change { key: key.into(), scope, value: (!value.is_null()).then(|| Arc::new(value)) }
    }

    #[test]
    fn a_merge_leaves_alone_what_it_does_not_name_and_null_removes() {
        let mut conversation = Conversation::new();
        conversation.merge(&[change(Scope::User, "a", json!(1)), change(Scope::Session, "a", json!(2))]);
        let changed =
            conversation.merge(&[change(Scope::User, "a", json!(null)), change(Scope::Global, "b", json!("x"))]);
        assert_eq!(conversation.version, 3);
        assert_eq!(
            Value::Object(shown(&conversation.context, false)),
            json!({"a": {"value": 2, "scope": "session"}, "b": {"value": "x", "scope": "global"}})
        );
        assert_eq!(changed.first().map(|c| (c.old.as_deref().cloned(), c.new.is_none())), Some((Some(json!(1)), true)));
    }

    #[test]
    fn a_name_in_several_scopes_is_shown_as_an_array_and_reads_back() {
        let mut conversation = Conversation::new();
        conversation.merge(&[change(Scope::User, "a", json!(1)), change(Scope::Session, "a", json!([2]))]);
        let object = shown(&conversation.context, false);
        assert_eq!(object.get("a").and_then(Value::as_array).map(Vec::len), Some(2));
        assert_eq!(from_shown(&object).as_ref(), Ok(&*conversation.context));
    }

    #[test]
    fn earlier_states_are_bounded_and_the_oldest_answers_for_older() {
        let mut conversation = Conversation::new();
        assert!(conversation.earlier(1).is_none());
        for n in 0..20 {
            conversation.merge(&[change(Scope::User, "n", json!(n))]);
        }
        assert_eq!(conversation.earlier(1).map(|(version, _)| version), Some(20));
        assert_eq!(conversation.earlier(1000).map(|(version, _)| version), Some(13));
    }
}
