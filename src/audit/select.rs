//! Which audit events are meant. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::config::parse_duration;

/// Conditions that an event must fulfil, all of them. A checkpoint fulfils those of time alone.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Select {
    /// Not before this time (2026-11-23T10:00:00Z), or this long ago (90s, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Timestamp>,
    /// Bot
    #[arg(long, value_name = "NAME")]
    pub bot: Option<String>,
    /// Verdict; may be given several times
    #[arg(long, value_parser = ["applied", "not_applied", "unknown"])]
    pub verdict: Vec<String>,
    /// Reason code; may be given several times
    #[arg(long, value_name = "CODE")]
    pub reason: Vec<String>,
    /// Conversation id
    #[arg(long, value_name = "ID")]
    pub conversation: Option<String>,
    /// Job id
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
}

/// A time, or how long ago.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    if let Some(ago) = parse_duration(text) {
        let now = Timestamp::now();
        return Ok(now.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH));
    }
    text.parse().map_err(|_| format!("{text:?} is neither a time such as 2026-11-23T10:00:00Z nor 90s, 2h, 7d ago"))
}

impl Select {
    /// Whether an event fulfils all conditions, and `until` too.
    pub(super) fn matches(&self, event: &Value, until: Option<Timestamp>) -> bool {
        let data = &event["data"];
        let is = |wanted: &Option<String>, found: &Value| wanted.is_none() || wanted.as_deref() == found.as_str();
        let one_of = |wanted: &[String], found: &Value| {
            wanted.is_empty() || found.as_str().is_some_and(|found| wanted.iter().any(|wanted| wanted == found))
        };
        let happened = event["time"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        // What does not say when it happened is shown rather than passed over.
        self.since.is_none_or(|since| happened.is_none_or(|time| time >= since))
            && until.is_none_or(|until| happened.is_none_or(|time| time < until))
            && is(&self.bot, &data["bot"])
            && one_of(&self.verdict, &data["verdict"])
            && one_of(&self.reason, &data["reason"]["code"])
            && is(&self.conversation, &data["conversation_id"])
            && is(&self.job, &data["job_id"])
    }

    /// From when on the stream must be read: what the broker stored then or later. The clocks of workers and
    /// broker may differ by this much.
    pub(super) fn read_from(&self) -> Option<Timestamp> {
        self.since.map(|since| since.checked_sub(SignedDuration::from_mins(5)).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_condition_must_hold() {
        let event = json!({"time": "2026-11-23T10:00:00.123Z", "data": {"bot": "a", "verdict": "not_applied",
            "reason": {"code": "expired"}, "conversation_id": "conv_1", "job_id": "j"}});
        let (before, after) = ("2026-11-23T10:00:00Z".parse().ok(), "2026-11-23T10:00:01Z".parse().ok());
        assert!(Select::default().matches(&event, None));
        let all = Select {
            since: before,
            bot: Some("a".into()),
            verdict: vec!["unknown".into(), "not_applied".into()],
            reason: vec!["expired".into()],
            conversation: Some("conv_1".into()),
            job: Some("j".into()),
        };
        assert!(all.matches(&event, after));
        assert!(!all.matches(&event, before));
        for other in [
            Select { since: after, ..all.clone() },
            Select { bot: Some("b".into()), ..all.clone() },
            Select { verdict: vec!["applied".into()], ..all.clone() },
            Select { reason: vec!["panicked".into()], ..all.clone() },
            Select { conversation: Some("conv_2".into()), ..all.clone() },
            Select { job: Some("k".into()), ..all.clone() },
        ] {
            assert!(!other.matches(&event, None), "{other:?}");
        }
    }

    #[test]
    fn a_time_is_a_time_or_how_long_ago() {
        assert_eq!(time("2026-11-23T10:00:00Z"), Ok("2026-11-23T10:00:00Z".parse().unwrap()));
        assert!(time("2h").unwrap() < Timestamp::now());
        assert!(time("yesterday").unwrap_err().contains("2h"));
    }
}
