//! A job as the pipeline knows it: already valid, every part of a type that cannot be wrong.
//!
//! The wire form (`schemas/job.v1.json`) is parsed by [`crate::pipeline::validate`], the one place that makes
//! these values from bytes.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;

use crate::pipeline::templates::Template;

/// Longest name of a variable, in bytes.
pub const MAX_KEY_BYTES: usize = 128;
/// Longest job id, in bytes.
pub const MAX_JOB_ID_BYTES: usize = 128;
/// Longest conversation id, in bytes.
pub const MAX_CONVERSATION_ID_BYTES: usize = 256;

/// Names that mean something to the JavaScript runtime of the bot platform.
const FORBIDDEN_KEYS: [&str; 3] = ["__proto__", "constructor", "prototype"];

/// Whether `text` can name a variable: ASCII letters, digits and underscore, no digit first, at most 128 bytes,
/// none of JavaScript's own names.
#[must_use]
pub fn is_key(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !text.is_empty()
        && text.len() <= MAX_KEY_BYTES
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(fits)
        && !FORBIDDEN_KEYS.contains(&text)
}

/// The producer's name of a job, stable over retries, redelivery and replay: 1–128 of `[A-Za-z0-9._:-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(Arc<str>);

impl JobId {
    /// The id, if `text` has its form.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        let valid = !text.is_empty() && text.len() <= MAX_JOB_ID_BYTES && text.chars().all(fits);
        valid.then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A conversation of one bot; its form is the bot's `conversation_id_pattern`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ConversationId(Arc<str>);

impl ConversationId {
    /// The id, if `text` fits the bot's pattern and is at most 256 bytes long.
    #[must_use]
    pub fn new(text: &str, pattern: &regex::Regex) -> Option<Self> {
        let valid = !text.is_empty() && text.len() <= MAX_CONVERSATION_ID_BYTES && pattern.is_match(text);
        valid.then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a variable lives. A plain name in a template means the first of these that has it, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The running session; wins over all others.
    Session,
    /// The user, over conversations.
    User,
    /// The conversation; what a variable without scope means.
    Conversation,
    /// The whole bot.
    Global,
}

impl Scope {
    /// All scopes by precedence.
    pub const BY_PRECEDENCE: [Self; 4] = [Self::Session, Self::User, Self::Conversation, Self::Global];

    /// The scope's name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::User => "user",
            Self::Conversation => "conversation",
            Self::Global => "global",
        }
    }

    /// The scope of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::BY_PRECEDENCE.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// What identifies a variable: the same key in two scopes is two variables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its scope.
    pub scope: Scope,
    /// Its key, of the form [`is_key`].
    pub key: String,
}

impl Name {
    /// The name of `key` in `scope`.
    #[must_use]
    pub fn new(scope: Scope, key: impl Into<String>) -> Self {
        Self { scope, key: key.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.scope.as_str(), self.key)
    }
}

/// The target's version of a conversation: opaque, echoed in `If-Match` exactly as it came.
///
/// Two versions are the same only if their texts are. Where both are numbers an order exists, which is used
/// for one thing: to notice that a conversation went backwards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(Arc<str>);

impl Version {
    /// Wraps the text that goes into `If-Match`.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text for `If-Match`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn number(&self) -> Option<u64> {
        self.0.trim_start_matches("W/").trim_matches('"').parse().ok()
    }

    /// Whether this version is certainly older than `other`: both are numbers, and this is the smaller one.
    #[must_use]
    pub fn is_before(&self, other: &Self) -> bool {
        matches!((self.number(), other.number()), (Some(mine), Some(other)) if mine < other)
    }

    /// The version as outcomes show it: a number where it is one, else the text.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self.0.parse::<u64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(&*self.0),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One injection job, valid in itself.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Where it writes.
    pub conversation: ConversationId,
    /// What it writes, in the order of the message; names are unique.
    pub variables: Vec<Variable>,
    /// Texts to render for the outcome event: name and template.
    pub templates: Vec<(String, Template)>,
    /// What to do about a key that somebody else changed since our last look.
    pub on_conflict: OnConflict,
    /// What to do about a placeholder that nothing resolves.
    pub on_unresolved: OnUnresolved,
    /// Past this instant nothing is sent any more.
    pub deadline: Timestamp,
    /// A `set` never replaces a `set` of the same variable with a higher sequence.
    pub sequence: Option<u64>,
    /// The producer's own `If-Match`.
    pub base_version: Option<Version>,
    /// Whether the job may share a PATCH with others.
    pub coalesce: bool,
}

/// One variable of a job.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Which.
    pub name: Name,
    /// What happens to it.
    pub operation: Operation,
}

/// What happens to a variable.
///
/// The table of each operation says what comes of it where the variable is absent (which is what a stored `null` is);
/// where its operand is `null`; where a value of another type is stored; where `min`, `max` or `max_items` is reached;
/// where somebody else changed the variable since our last look; and where the same job comes again right after.
///
/// - *written*, *deleted*, *unchanged* are what happens to the variable; a code is the reason for which the whole job is
///   refused.
/// - *policy*: the job's `on_conflict` decides, `overwrite` for the result of the operation on theirs. Where that is what
///   is there already, nothing is in conflict.
/// - *folds*: it is done to what they left, whatever the policy.
/// - *repeat*: the ledger names the job, so that nothing is done and the same outcome is told again.
///
/// A test reads these tables and holds each cell against the code.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Writes the value; `null` deletes.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | deleted | written | – | policy | unchanged |
    Set(Operand),
    /// Writes the value where the variable is absent.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | unchanged | unchanged | – | policy | unchanged |
    SetIfAbsent(Operand),
    /// Writes the value where the variable equals `expected`, else the job is refused.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | `precondition_failed` | deleted | `precondition_failed` | – | policy | repeat |
    CompareSet {
        /// What must be there; `null` is absence.
        expected: Value,
        /// What is written.
        value: Operand,
    },
    /// Adds to a number, exactly; outside the bounds the job is refused. An absent one starts at 0.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | `schema_violation` | `type_mismatch` | `precondition_failed` | folds | repeat |
    Increment {
        /// What is added.
        by: Decimal,
        /// The sum may not be less.
        min: Option<Decimal>,
        /// The sum may not be more.
        max: Option<Decimal>,
    },
    /// Adds an element at the end of a list; the oldest go beyond `max_items`. An absent one starts empty.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | written | `type_mismatch` | written | folds | repeat |
    Append {
        /// The element.
        value: Operand,
        /// Longest list.
        max_items: Option<usize>,
    },
    /// Adds an element that the list does not hold yet; the oldest go beyond `max_items`. An absent one starts empty.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | written | `type_mismatch` | written | folds | repeat |
    AddToSet {
        /// The element.
        value: Operand,
        /// Longest list.
        max_items: Option<usize>,
    },
    /// Takes every equal element out of a list.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | unchanged | unchanged | `type_mismatch` | – | folds | repeat |
    Remove(Value),
    /// Removes the variable.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | unchanged | – | deleted | – | policy | unchanged |
    Delete,
    /// RFC 7396: members replace those that are there, `null` removes, what is no object replaces all.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | deleted | written | – | policy | repeat |
    MergePatch(Value),
    /// Writes the number where it is larger.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | `schema_violation` | `type_mismatch` | – | folds | repeat |
    Max(Decimal),
    /// Writes the number where it is smaller.
    ///
    /// | absent | `null` given | another type | bound reached | changed by others | the job again |
    /// | --- | --- | --- | --- | --- | --- |
    /// | written | `schema_violation` | `type_mismatch` | – | folds | repeat |
    Min(Decimal),
}

/// A value, or the template that makes it.
#[derive(Debug, Clone)]
pub enum Operand {
    /// Given.
    Value(Value),
    /// Rendered from the state.
    Template(Template),
}

impl Operation {
    /// The operation's name on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Set(_) => "set",
            Self::SetIfAbsent(_) => "set_if_absent",
            Self::CompareSet { .. } => "compare_set",
            Self::Increment { .. } => "increment",
            Self::Append { .. } => "append",
            Self::AddToSet { .. } => "add_to_set",
            Self::Remove(_) => "remove",
            Self::Delete => "delete",
            Self::MergePatch(_) => "merge_patch",
            Self::Max(_) => "max",
            Self::Min(_) => "min",
        }
    }

    /// Whether doing it twice differs from doing it once, so that it is refused where there is no ledger.
    #[must_use]
    pub fn needs_ledger(&self) -> bool {
        match self {
            Self::Increment { .. } | Self::Append { .. } | Self::CompareSet { .. } => true,
            Self::Set(_)
            | Self::SetIfAbsent(_)
            | Self::AddToSet { .. }
            | Self::Remove(_)
            | Self::Delete
            | Self::MergePatch(_)
            | Self::Max(_)
            | Self::Min(_) => false,
        }
    }

    /// Whether the value that is there decides what is written or whether anything is: then the state must be
    /// read before.
    #[must_use]
    pub fn needs_value(&self) -> bool {
        !matches!(self, Self::Set(Operand::Value(_)) | Self::Delete)
    }

    /// The template that makes its operand, if one does.
    #[must_use]
    pub fn template(&self) -> Option<&Template> {
        match self {
            Self::Set(operand)
            | Self::SetIfAbsent(operand)
            | Self::CompareSet { value: operand, .. }
            | Self::Append { value: operand, .. }
            | Self::AddToSet { value: operand, .. } => match operand {
                Operand::Template(template) => Some(template),
                Operand::Value(_) => None,
            },
            Self::Increment { .. }
            | Self::Remove(_)
            | Self::Delete
            | Self::MergePatch(_)
            | Self::Max(_)
            | Self::Min(_) => None,
        }
    }
}

/// What a job wants done about a key that somebody else changed since our last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnConflict {
    /// Ours is written.
    #[default]
    Overwrite,
    /// Theirs stays.
    KeepTheirs,
    /// The job is refused.
    Fail,
}

/// What a job wants done about a placeholder that nothing resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnresolved {
    /// It stays as it is written.
    #[default]
    Keep,
    /// It becomes nothing.
    Empty,
    /// The job is refused.
    Fail,
}

impl Job {
    /// Whether doing it twice differs from doing it once, so that it is refused where there is no ledger.
    #[must_use]
    pub fn needs_ledger(&self) -> bool {
        self.variables.iter().any(|variable| variable.operation.needs_ledger())
    }

    /// Whether its entry belongs into the ledger where there is one: it must not happen twice, or what it does
    /// depends on the state, so that it could be refused the second time although the first had its effect.
    #[must_use]
    pub fn wants_ledger(&self) -> bool {
        let by_state = |operation: &Operation| {
            operation.needs_ledger()
                || operation.template().is_some()
                || matches!(
                    operation,
                    Operation::AddToSet { .. }
                        | Operation::Remove(_)
                        | Operation::MergePatch(_)
                        | Operation::Max(_)
                        | Operation::Min(_)
                )
        };
        self.base_version.is_some()
            || self.sequence.is_some()
            || self.on_conflict != OnConflict::Overwrite
            || self.variables.iter().any(|variable| by_state(&variable.operation))
    }

    /// Whether it can only be planned with the state of the conversation at hand.
    #[must_use]
    pub fn needs_values(&self) -> bool {
        !self.templates.is_empty()
            || self.wants_ledger()
            || self.variables.iter().any(|variable| variable.operation.needs_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_the_platform_takes() {
        for key in ["a", "_a", "A9_z", &"k".repeat(128)] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "9a", "a-b", "a.b", "ä", "a b", "__proto__", "constructor", "prototype", &"k".repeat(129)] {
            assert!(!is_key(key), "{key}");
        }
    }

    #[test]
    fn versions_go_back_only_where_they_are_numbers() {
        let before = |a: &str, b: &str| Version::new(a).is_before(&Version::new(b));
        assert!(before("9", "10") && before("\"9\"", "W/\"10\""));
        assert!(!before("10", "9") && !before("a", "b") && !before("9", "9"));
    }
}
