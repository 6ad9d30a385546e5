//! The faults that both dialects meet between reading a request and applying it.

use super::answer::{Reply, problem};
use super::exchange::Exchange;
use super::faults::Kind;
use super::settings::ConflictStatus;

impl Exchange {
    /// What the platform does to a conversation on its own, before a request sees it.
    pub(super) fn before_touching(&self, id: &str) {
        if self.platform.world().get(id).is_none() {
            return;
        }
        if self.strikes(Kind::ResetConversation) {
            self.platform.world().reset(id, &self.platform_origin());
        }
        if self.strikes(Kind::Rollback) {
            let back = self.faults.faults.parameters.back;
            self.platform.world().rollback(id, back, &self.platform_origin());
        }
    }

    /// Whether a write that names these keys is refused without a look at its version.
    pub(super) fn refused_by_fault<'a>(&self, mut keys: impl Iterator<Item = &'a str>) -> Option<Reply> {
        let parameters = &self.faults.faults.parameters;
        let named = keys.find(|named| parameters.refused_keys.iter().any(|key| key == named));
        if let Some(key) = named
            && self.strikes(Kind::RefusedKey)
        {
            let detail = format!("{key}: this variable is not accepted");
            return Some(problem(self, parameters.refused_status, "variable_refused", &detail));
        }
        if self.strikes(Kind::Refusal409) {
            return Some(problem(self, 409, &parameters.refusal_code, "the conversation takes no writes"));
        }
        self.strikes(Kind::SpuriousConflict).then(|| self.conflict(false))
    }

    /// The answer to a write on another version; `swapped` has the other status.
    pub(super) fn conflict(&self, swapped: bool) -> Reply {
        let precondition_failed = match self.platform.settings.conflict {
            _ if self.v2 => false,
            ConflictStatus::Conflict => false,
            ConflictStatus::PreconditionFailed => true,
            ConflictStatus::Mixed => self.faults.next_draw().is_multiple_of(2),
        };
        let status = if precondition_failed != swapped { 412 } else { 409 };
        problem(self, status, "version_conflict", "the conversation is at another version")
    }
}
