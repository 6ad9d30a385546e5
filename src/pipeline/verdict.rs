//! How a job ends. Exactly one of: `applied`, `not_applied(reason)`, `unknown(reason)`.
//!
//! The reason codes are a closed list and a contract with subscribers; each is explained in
//! `deploy/RUNBOOK.md`.

use serde::Serialize;

/// Why a job was not applied, or why nobody can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The body is not one JSON document of reasonable depth with unique names.
    MalformedJson,
    /// A field is missing, unknown or of the wrong type.
    SchemaViolation,
    /// Neither `job_id` nor the message id.
    MissingJobId,
    /// `job_id` and the message id differ.
    JobIdMismatch,
    /// The conversation id does not fit the bot's pattern.
    InvalidConversationId,
    /// Not a name for a variable.
    InvalidKey,
    /// Not a scope.
    InvalidScope,
    /// Not an operation, or one that the bot's ledger setting forbids.
    InvalidOperation,
    /// Not a number, or one that cannot be computed exactly.
    InvalidNumber,
    /// Not a job id.
    InvalidJobId,
    /// The stored value is of a type that the operation does not work on.
    TypeMismatch,
    /// One value is over the limit.
    ValueTooLarge,
    /// The whole request body is over the limit.
    PayloadTooLarge,
    /// The deadline passed.
    Expired,
    /// Nobody configured the bot.
    UnknownBot,
    /// The bot's API cannot do it.
    UnsupportedByDialect,
    /// The target does not know the conversation.
    ConversationNotFound,
    /// The target refused the job.
    RefusedByTarget,
    /// `compare_set`, `min`/`max` or `base_version` did not hold.
    PreconditionFailed,
    /// Somebody else changed the same key, and the job says `on_conflict: fail`.
    Conflict,
    /// The conversation changed under every one of our tries.
    ConflictLimit,
    /// A placeholder resolved to nothing, and the job says `on_unresolved: fail`.
    UnresolvedPlaceholder,
    /// The target failed at every attempt.
    AttemptsExhausted,
    /// Our own code failed on this job.
    Panicked,
    /// A request may or may not have had its effect, and nothing can tell any more.
    AmbiguousWrite,
    /// The ledger no longer reaches back far enough to tell.
    LedgerOverrun,
    /// The conversation was cleared, and its ledger with it.
    ConversationReset,
    /// The ledger has a form that this version does not know.
    LedgerUnreadable,
}

impl Reason {
    /// All codes.
    pub const ALL: [Self; 28] = [
        Self::MalformedJson,
        Self::SchemaViolation,
        Self::MissingJobId,
        Self::JobIdMismatch,
        Self::InvalidConversationId,
        Self::InvalidKey,
        Self::InvalidScope,
        Self::InvalidOperation,
        Self::InvalidNumber,
        Self::InvalidJobId,
        Self::TypeMismatch,
        Self::ValueTooLarge,
        Self::PayloadTooLarge,
        Self::Expired,
        Self::UnknownBot,
        Self::UnsupportedByDialect,
        Self::ConversationNotFound,
        Self::RefusedByTarget,
        Self::PreconditionFailed,
        Self::Conflict,
        Self::ConflictLimit,
        Self::UnresolvedPlaceholder,
        Self::AttemptsExhausted,
        Self::Panicked,
        Self::AmbiguousWrite,
        Self::LedgerOverrun,
        Self::ConversationReset,
        Self::LedgerUnreadable,
    ];

    /// The code on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::SchemaViolation => "schema_violation",
            Self::MissingJobId => "missing_job_id",
            Self::JobIdMismatch => "job_id_mismatch",
            Self::InvalidConversationId => "invalid_conversation_id",
            Self::InvalidKey => "invalid_key",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidOperation => "invalid_operation",
            Self::InvalidNumber => "invalid_number",
            Self::InvalidJobId => "invalid_job_id",
            Self::TypeMismatch => "type_mismatch",
            Self::ValueTooLarge => "value_too_large",
            Self::PayloadTooLarge => "payload_too_large",
            Self::Expired => "expired",
            Self::UnknownBot => "unknown_bot",
            Self::UnsupportedByDialect => "unsupported_by_dialect",
            Self::ConversationNotFound => "conversation_not_found",
            Self::RefusedByTarget => "refused_by_target",
            Self::PreconditionFailed => "precondition_failed",
            Self::Conflict => "conflict",
            Self::ConflictLimit => "conflict_limit",
            Self::UnresolvedPlaceholder => "unresolved_placeholder",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Panicked => "panicked",
            Self::AmbiguousWrite => "ambiguous_write",
            Self::LedgerOverrun => "ledger_overrun",
            Self::ConversationReset => "conversation_reset",
            Self::LedgerUnreadable => "ledger_unreadable",
        }
    }

    /// The code of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// A reason with the sentence for a person and the place of the fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The code.
    pub code: Reason,
    /// What is wrong, what is allowed; never a value of a variable.
    pub text: String,
    /// JSON pointer (RFC 6901) into the job's body.
    pub pointer: Option<String>,
}

impl Rejection {
    /// A rejection that points nowhere.
    #[must_use]
    pub fn new(code: Reason, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), pointer: None }
    }

    /// A rejection of the field at `pointer`.
    #[must_use]
    pub fn at(code: Reason, pointer: impl Into<String>, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), pointer: Some(pointer.into()) }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pointer {
            Some(pointer) if !pointer.is_empty() => write!(f, "{} at {pointer}: {}", self.code.as_str(), self.text),
            _ => write!(f, "{}: {}", self.code.as_str(), self.text),
        }
    }
}

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It had its effect, exactly once.
    Applied,
    /// It had none and never will (in this replay generation).
    NotApplied(Rejection),
    /// It may or may not have had its effect.
    Unknown(Rejection),
}

impl Verdict {
    /// The verdict's name on the wire, second word of the routing key.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::NotApplied(_) => "not_applied",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Why, unless it was applied.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Applied => None,
            Self::NotApplied(rejection) | Self::Unknown(rejection) => Some(rejection),
        }
    }
}

/// What happened to one variable of an applied job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyResult {
    /// It was written.
    Written,
    /// Somebody else changed it, and theirs was kept.
    KeptTheirs,
    /// A `set` with a higher sequence had been there before.
    Superseded,
    /// It already was as the job wants it.
    Unchanged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_as_it_is_written() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }
}
