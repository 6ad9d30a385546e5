//! What one conversation looks like at one version: variables and ledger, as read or as we made it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::ledger::{Ledger, Unreadable};
use crate::job::{Name, Scope, Version};

/// The variables of a conversation, without the reserved one; none is `null`.
pub type Variables = BTreeMap<Name, Value>;

/// One conversation at one version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// The version that a write must name; `None` only where the target has none.
    pub version: Option<Version>,
    /// What is known of it.
    pub contents: Contents,
    /// Whether it was read after the batch that is planned was taken. What an older one says may have been
    /// overtaken, so nothing may be concluded from it without a conditional write.
    pub fresh: bool,
    /// When it was noticed that the conversation was cleared or went backwards since we knew it.
    pub reset: Option<Timestamp>,
}

/// What is known of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Contents {
    /// Its version alone: enough for plain sets.
    VersionOnly,
    /// All of it.
    Full {
        /// The variables.
        variables: Arc<Variables>,
        /// The ledger.
        ledger: Result<Ledger, Unreadable>,
    },
}

/// What is remembered of a conversation from before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Known {
    /// The version that we saw or made last.
    pub version: Option<Version>,
    /// Whether there was a ledger.
    pub had_ledger: bool,
}

impl Snapshot {
    /// The snapshot that a full read at `now` makes; `known` is what we knew before.
    #[must_use]
    pub fn read(
        version: Option<Version>,
        mut variables: Variables,
        ledger_key: &str,
        known: Option<&Known>,
        now: Timestamp,
    ) -> Self {
        let value = variables.remove(&Name::new(Scope::Conversation, ledger_key));
        let ledger = Ledger::parse(value.as_ref());
        // Whoever put it there, a reserved variable is nobody's value.
        variables.retain(|name, value| name.key != ledger_key && !value.is_null());
        let reset = known.is_some_and(|known| is_reset(known, version.as_ref(), value.is_some()));
        let reset = reset.then_some(now);
        Self { version, contents: Contents::Full { variables: Arc::new(variables), ledger }, fresh: true, reset }
    }

    /// A conversation of which the version alone is known; `None`: not even that, and the target has none.
    #[must_use]
    pub fn of_version(version: Option<Version>) -> Self {
        Self { version, contents: Contents::VersionOnly, fresh: false, reset: None }
    }

    /// The ledger, where it is known and readable.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.contents {
            Contents::Full { ledger: Ok(ledger), .. } => Some(ledger),
            Contents::Full { ledger: Err(Unreadable), .. } | Contents::VersionOnly => None,
        }
    }

    /// The variables, where they are known.
    #[must_use]
    pub fn variables(&self) -> Option<&Arc<Variables>> {
        match &self.contents {
            Contents::VersionOnly => None,
            Contents::Full { variables, .. } => Some(variables),
        }
    }

    /// What to remember of it.
    #[must_use]
    pub fn known(&self) -> Known {
        let had_ledger = match &self.contents {
            Contents::VersionOnly => false,
            Contents::Full { ledger, .. } => !ledger.as_ref().is_ok_and(Ledger::is_empty),
        };
        Known { version: self.version.clone(), had_ledger }
    }
}

/// Whether a conversation that we knew was cleared or went backwards: its ledger is gone although there was
/// one, or its version is an older one.
#[must_use]
pub fn is_reset(known: &Known, version: Option<&Version>, has_ledger: bool) -> bool {
    let backwards = match (version, &known.version) {
        (Some(now), Some(before)) => now.is_before(before),
        _ => false,
    };
    backwards || (known.had_ledger && !has_ledger)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(version: &str, had_ledger: bool) -> Known {
        Known { version: Some(Version::new(version)), had_ledger }
    }

    #[test]
    fn a_reset_is_a_lost_ledger_or_a_version_that_went_back() {
        let now = Version::new("5");
        assert!(is_reset(&known("6", false), Some(&now), false));
        assert!(is_reset(&known("4", true), Some(&now), false));
        assert!(!is_reset(&known("4", true), Some(&now), true));
        assert!(!is_reset(&known("5", false), Some(&now), false));
        assert!(!is_reset(&known("\"etag-b\"", false), Some(&Version::new("\"etag-a\"")), false));
    }

    #[test]
    fn the_reserved_variable_is_no_variable() {
        let entries = [
            (Scope::Conversation, "_l", json!({"v": 1})),
            (Scope::User, "_l", json!(1)),
            (Scope::User, "a", json!(1)),
            (Scope::User, "b", Value::Null),
        ];
        let variables = entries.map(|(scope, key, value)| (Name::new(scope, key), value)).into_iter().collect();
        let snapshot = Snapshot::read(Some(Version::new("1")), variables, "_l", None, Timestamp::UNIX_EPOCH);
        assert_eq!(snapshot.variables().unwrap().keys().map(|name| name.key.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
