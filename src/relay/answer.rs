//! What a receiver's status means for the delivery and for the endpoint. A closed table, decided by the status
//! alone: a body may be slow, endless or broken, and a 2xx stays a success.

/// What follows from an answer, or from its absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// The receiver has the event.
    Delivered,
    /// Try again by the schedule.
    Retry,
    /// The receiver will not take this event, however often it is sent: a dead letter.
    GiveUp,
    /// The receiver is gone (410): disable the endpoint and keep its events.
    Disable,
}

/// The table. `retry_client_errors` is the endpoint's setting for the 4xx that say nothing about time.
#[must_use]
pub const fn react(status: u16, retry_client_errors: bool) -> Reaction {
    match status {
        200..=299 => Reaction::Delivered,
        410 => Reaction::Disable,
        408 | 425 | 429 => Reaction::Retry,
        400..=499 if !retry_client_errors => Reaction::GiveUp,
        // 3xx among them: a redirect is not followed, since it would lead past the address filter and take the
        // signed event to somebody whom nobody configured.
        _ => Reaction::Retry,
    }
}

/// The status in words, for people.
#[must_use]
pub fn explain(status: u16) -> String {
    match status {
        300..=399 => {
            format!("the receiver answered {status}, a redirect; they are not followed, so set its target as the url")
        }
        401 | 403 => format!(
            "the receiver answered {status}: it does not let us in; check its secret, headers and signature check"
        ),
        404 => "the receiver answered 404: there is nothing at the path of the url".to_owned(),
        410 => "the receiver answered 410: it is gone and wants no more events".to_owned(),
        413 => "the receiver answered 413: the event is too large for it".to_owned(),
        429 => "the receiver answered 429: it gets more than it takes; set requests_per_second".to_owned(),
        200..=299 => format!("the receiver answered {status}"),
        400..=499 => format!("the receiver answered {status}: it refuses the event"),
        500..=599 => format!("the receiver answered {status}: it failed"),
        _ => format!("the receiver answered {status}, which is no final answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_one_reaction() {
        for status in 0..=u16::MAX {
            let expected = |retry_client_errors: bool| match status {
                200..=299 => Reaction::Delivered,
                410 => Reaction::Disable,
                408 | 425 | 429 => Reaction::Retry,
                400..=499 => {
                    if retry_client_errors {
                        Reaction::Retry
                    } else {
                        Reaction::GiveUp
                    }
                }
                _ => Reaction::Retry,
            };
            assert_eq!(react(status, false), expected(false), "{status}");
            assert_eq!(react(status, true), expected(true), "{status}");
        }
    }

    #[test]
    fn every_status_is_explained_by_its_number() {
        for status in 100..=599 {
            assert!(explain(status).contains(&status.to_string()), "{status}");
        }
    }
}
