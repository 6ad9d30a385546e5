//! Which dead letters are meant. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Letter;
use crate::config::parse_duration;

/// Conditions that a letter must fulfil, all of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Filter {
    /// Reason code; may be given several times
    #[arg(long, value_name = "CODE")]
    pub reason: Vec<String>,
    /// Bot
    #[arg(long, value_name = "NAME")]
    pub bot: Option<String>,
    /// Conversation id
    #[arg(long, value_name = "ID")]
    pub conversation: Option<String>,
    /// Webhook endpoint
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<String>,
    /// HTTP status of the last attempt
    #[arg(long)]
    pub status: Option<u64>,
    /// Died longer ago than this (90s, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Died within this time (90s, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub newer_than: Option<Duration>,
    /// Text in the body or in the reason, in any case
    #[arg(long)]
    pub text: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is not a time such as 90s, 2h or 7d"))
}

impl Filter {
    /// Whether a letter fulfils all conditions.
    pub(super) fn matches(&self, letter: &Letter, body: &[u8], now: Timestamp) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        // A letter without a time counts as old.
        let age = letter.died_at.map(|died| now.duration_since(died));
        let older = |than: Duration| age.is_none_or(|age| age >= signed(than));
        let newer = |than: Duration| age.is_some_and(|age| age <= signed(than));
        (self.reason.is_empty() || self.reason.contains(&letter.reason))
            && is(&self.bot, &letter.bot)
            && is(&self.conversation, &letter.conversation)
            && is(&self.endpoint, &letter.endpoint)
            && (self.status.is_none() || self.status == letter.status)
            && self.older_than.is_none_or(older)
            && self.newer_than.is_none_or(newer)
            && self.text.as_ref().is_none_or(|text| has_text(text, letter, body))
    }

    /// Whether there is any condition.
    pub(super) fn is_empty(&self) -> bool {
        self.reason.is_empty()
            && self.bot.is_none()
            && self.conversation.is_none()
            && self.endpoint.is_none()
            && self.status.is_none()
            && self.older_than.is_none()
            && self.newer_than.is_none()
            && self.text.is_none()
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

fn has_text(text: &str, letter: &Letter, body: &[u8]) -> bool {
    let text = text.to_lowercase();
    String::from_utf8_lossy(body).to_lowercase().contains(&text) || letter.text.to_lowercase().contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> Letter {
        Letter {
            id: "a~1".into(),
            message_id: Some("a".into()),
            reason: "expired".into(),
            text: "the deadline passed".into(),
            certainty: None,
            bot: Some("default".into()),
            endpoint: None,
            conversation: Some("conv_1".into()),
            job_id: None,
            attempts: None,
            status: Some(503),
            trace_id: None,
            generation: 0,
            died_at: Some("2026-11-23T10:00:00Z".parse().unwrap()),
            first_seen: None,
            bytes: 0,
        }
    }

    #[test]
    fn every_condition_must_hold() {
        let now = "2026-11-23T12:00:00Z".parse().unwrap();
        let body = br#"{"a": "Premium"}"#;
        let matches = |filter: Filter| filter.matches(&letter(), body, now);
        let hours = |number: u64| Some(Duration::from_secs(3_600 * number));
        assert!(matches(Filter::default()) && Filter::default().is_empty());
        assert!(matches(Filter { reason: vec!["other".into(), "expired".into()], ..Filter::default() }));
        assert!(!matches(Filter { reason: vec!["other".into()], ..Filter::default() }));
        assert!(matches(Filter { bot: Some("default".into()), status: Some(503), ..Filter::default() }));
        assert!(!matches(Filter { bot: Some("default".into()), status: Some(500), ..Filter::default() }));
        assert!(!matches(Filter { endpoint: Some("x".into()), ..Filter::default() }));
        assert!(matches(Filter { older_than: hours(1), newer_than: hours(3), ..Filter::default() }));
        assert!(!matches(Filter { older_than: hours(3), ..Filter::default() }));
        assert!(!matches(Filter { newer_than: hours(1), ..Filter::default() }));
        assert!(matches(Filter { text: Some("pREMIUM".into()), ..Filter::default() }));
        assert!(matches(Filter { text: Some("DEADLINE".into()), ..Filter::default() }));
        assert!(!matches(Filter { text: Some("gold".into()), ..Filter::default() }));
    }
}
