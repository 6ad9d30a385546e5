//! Which faults there are, and when one strikes.
//!
//! A fault has a rule: a probability, or a count of times, and a filter. As JSON:
//!
//! ```json
//! { "applied_then_500": 0.015,
//!   "reset_after": {"count": 3},
//!   "throttle": {"probability": 0.1, "only": {"methods": ["PATCH"], "conversation": "^conv_a", "first_n": 50}},
//!   "parameters": {"retry_after": ["1", "date:2", "-5"]} }
//! ```
//!
//! A draw depends on the seed, the fault and how many requests the rule has been asked about, on nothing else: the
//! same requests in the same order meet the same faults. A rule is asked only where its fault could strike (the
//! count of `applied_then_500` is spent on writes that were really applied). The request header
//! `x-sandbox-fault: NAME[, NAME]` makes faults strike whatever their rules say.

use std::collections::BTreeMap;

use regex::Regex;
use serde::{Deserialize, Serialize, de};
use serde_json::Value;

mod rules;
#[cfg(test)]
mod tests;

pub(super) use self::rules::{Active, Asked, mix, pick};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A fault, in the order in which they are considered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[doc = $doc])+ $variant,)+ }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)+];

            /// The name in settings, statistics and the header.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)+ }
            }
        }
    };
}

kinds! {
    /// The request waits `latency_ms` before it is looked at; it is worked on even if its client goes away.
    Latency = "latency",
    /// No answer for `hang_ms` (0: until the client goes away); nothing is applied.
    HangBefore = "hang_before",
    /// The connection is reset; nothing is applied.
    ResetBefore = "reset_before",
    /// One of `statuses`; nothing is applied.
    ServerError = "server_error",
    /// 429 with the next of `retry_after`; nothing is applied.
    Throttle = "throttle",
    /// All tokens end, this request is answered 401.
    TokenRevoked = "token_revoked",
    /// 401 whatever the token.
    Unauthorized = "unauthorized",
    /// 403 whatever the token.
    Forbidden = "forbidden",
    /// 404, or 410 by `not_found_status`.
    NotFound = "not_found",
    /// The conversation is cleared and its version starts again, then the request is served.
    ResetConversation = "reset_conversation",
    /// The conversation goes back `back` writes, version and all, then the request is served.
    Rollback = "rollback",
    /// A PATCH that names one of `refused_keys` is refused with `refused_status`; with such keys set, always.
    RefusedKey = "refused_key",
    /// 409 with a code that names neither a version nor a conflict; nothing is applied.
    Refusal409 = "refusal_409",
    /// 409 or 412 although `If-Match` holds; nothing is applied.
    SpuriousConflict = "spurious_conflict",
    /// `late_apply_answer` now; the write is applied `late_apply_ms` later if its `If-Match` holds then.
    LateApply = "late_apply",
    /// `If-Match` fails but the change is in the state already: 200 instead of a conflict.
    LenientSuccess = "lenient_success",
    /// A conflict is answered 412 where 409 is set, and the other way round.
    SwappedConflict = "swapped_conflict",
    /// A read is answered with the state `back` writes ago.
    StaleRead = "stale_read",
    /// A read is answered with the values of now and the version of `back` writes ago.
    VersionRegression = "version_regression",
    /// The write is applied and answered with one of `statuses`.
    AppliedThen500 = "applied_then_500",
    /// The write is applied and the connection is reset.
    ResetAfter = "reset_after",
    /// The write is applied and not answered for `hang_ms` (0: until the client goes away).
    HangAfter = "hang_after",
    /// The write is applied and answered 204 without a body.
    EmptySuccess = "empty_success",
    /// The write is applied and its answer has no version.
    NoVersion = "no_version",
    /// The body of a successful answer breaks off in the middle.
    TruncatedBody = "truncated_body",
    /// The body of a successful answer is no JSON.
    MalformedJson = "malformed_json",
    /// The body of a successful answer has `huge_bytes` bytes (0: it never ends).
    HugeAnswer = "huge_answer",
    /// `cognigy-v2`: the write is acknowledged now and visible `buffered_ms` later.
    BufferedWrite = "buffered_write",
    /// `cognigy-v2`: the write is acknowledged and never applied.
    LostWrite = "lost_write",
}

impl Kind {
    /// Reads the name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// All rules and what they need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// The rules; a fault without a rule does not strike.
    pub rules: BTreeMap<Kind, Rule>,
    /// What the faults do where there is a choice.
    pub parameters: Parameters,
}

/// When a fault strikes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// From 0 to 1. Absent: 1 where there is a count, else 0.
    pub probability: Option<f64>,
    /// Times that it strikes at most.
    pub count: Option<u64>,
    /// The requests that it may strike.
    pub only: Only,
}

/// The requests that a fault may strike; what is empty or absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Only {
    /// Methods, in capitals.
    pub methods: Vec<String>,
    /// Operations: `read`, `write`, `token`. Without any: reads and writes.
    pub operations: Vec<Operation>,
    /// A regular expression on the conversation id.
    pub conversation: Option<String>,
    /// This many of the requests that pass the rest of the filter are spared first.
    pub skip_n: u64,
    /// Then only so many may be struck.
    pub first_n: Option<u64>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Reads a conversation or a profile.
    Read,
    /// Writes a conversation or a profile.
    Write,
    /// Asks for a token.
    Token,
    /// None of these.
    Other,
}

/// What the faults do where there is a choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Least and most of the latency, in milliseconds. With `latency` set, or the most above 0, it strikes.
    pub latency_ms: [u64; 2],
    /// Statuses of `server_error` and `applied_then_500`, one drawn per request.
    pub statuses: Vec<u16>,
    /// How long a hanging request is kept; 0 is until the client goes away.
    pub hang_ms: u64,
    /// When a late write is tried.
    pub late_apply_ms: u64,
    /// How a late write is answered now: `status` (one of `statuses`), `hang` or `reset`.
    pub late_apply_answer: LateAnswer,
    /// How many writes ago `stale_read`, `version_regression` and `rollback` go.
    pub back: usize,
    /// `Retry-After` of `throttle`, in turn: any text as it is, `date:N` an HTTP date in N seconds, `absent` no header.
    pub retry_after: Vec<String>,
    /// Code of `refusal_409`.
    pub refusal_code: String,
    /// 404 or 410.
    pub not_found_status: u16,
    /// Keys whose presence makes a PATCH fail.
    pub refused_keys: Vec<String>,
    /// Status of such a refusal.
    pub refused_status: u16,
    /// Bytes of `huge_answer`; 0 never ends.
    pub huge_bytes: u64,
    /// When a buffered write becomes visible.
    pub buffered_ms: u64,
}

/// How a write that will be applied late is answered now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LateAnswer {
    /// With one of `statuses`.
    Status,
    /// Not before the client goes away.
    Hang,
    /// By a reset of the connection.
    Reset,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            latency_ms: [0, 0],
            statuses: vec![500, 502, 503, 504],
            hang_ms: 0,
            late_apply_ms: 200,
            late_apply_answer: LateAnswer::Status,
            back: 1,
            retry_after: vec!["1".into(), "date:1".into()],
            refusal_code: "conversation_closed".into(),
            not_found_status: 404,
            refused_keys: Vec::new(),
            refused_status: 400,
            huge_bytes: 64 << 20,
            buffered_ms: 2_000,
        }
    }
}

impl Rule {
    /// Strikes with this probability.
    pub fn probability(probability: f64) -> Rule {
        Rule { probability: Some(probability), ..Rule::default() }
    }

    /// Strikes so many times, then no more.
    pub fn times(count: u64) -> Rule {
        Rule { count: Some(count), ..Rule::default() }
    }

    /// Restricts the requests.
    pub fn only(self, only: Only) -> Rule {
        Rule { only, ..self }
    }

    fn effective_probability(&self, otherwise: f64) -> f64 {
        self.probability.unwrap_or(if self.count.is_some() { 1.0 } else { otherwise })
    }
}

impl Faults {
    /// None at all.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// Adds or replaces a rule.
    pub fn with(mut self, kind: Kind, rule: Rule) -> Faults {
        self.rules.insert(kind, rule);
        self
    }

    /// Changes the parameters.
    pub fn parameters(mut self, change: impl FnOnce(&mut Parameters)) -> Faults {
        change(&mut self.parameters);
        self
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// A sentence that names the field and what is allowed.
    pub fn from_json(text: &str) -> Result<Faults, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

impl Serialize for Faults {
    /// The full form: every fault, every parameter.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let off = Rule { probability: Some(0.0), ..Rule::default() };
        let rules = Kind::ALL.iter().map(|kind| (kind.name(), self.rules.get(kind).unwrap_or(&off)));
        let mut map = serde::Serializer::serialize_map(serializer, None)?;
        for (name, rule) in rules {
            serde::ser::SerializeMap::serialize_entry(&mut map, name, rule)?;
        }
        serde::ser::SerializeMap::serialize_entry(&mut map, "parameters", &self.parameters)?;
        serde::ser::SerializeMap::end(map)
    }
}

impl<'de> Deserialize<'de> for Faults {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = serde_json::Map::deserialize(deserializer)?;
        let mut faults = Faults::default();
        for (name, value) in object {
            if name == "parameters" {
                faults.parameters = field(&name, value)?;
                continue;
            }
            let kind = Kind::from_name(&name).ok_or_else(|| unknown(&name))?;
            let rule: Rule = match value {
                Value::Null => continue,
                Value::Number(probability) => Rule { probability: probability.as_f64(), ..Rule::default() },
                other => field(&name, other)?,
            };
            if !(0.0..=1.0).contains(&rule.effective_probability(0.0)) {
                return Err(de::Error::custom(format!("{name}: a probability is a number from 0 to 1")));
            }
            if let Some(error) = rule.only.conversation.as_deref().and_then(|pattern| Regex::new(pattern).err()) {
                return Err(de::Error::custom(format!("{name}.only.conversation: {error}")));
            }
            faults.rules.insert(kind, rule);
        }
        faults.parameters.check().map_err(de::Error::custom)?;
        Ok(faults)
    }
}

impl Parameters {
    fn check(&self) -> Result<(), String> {
        if self.latency_ms[0] > self.latency_ms[1] {
            return Err("parameters.latency_ms: [least, most]".into());
        }
        let statuses = self.statuses.iter().chain([&self.not_found_status, &self.refused_status]);
        match statuses.copied().find(|status| !(400..600).contains(status)) {
            Some(status) => Err(format!("parameters: a status of an error is from 400 to 599, not {status}")),
            None if self.statuses.is_empty() => Err("parameters.statuses: at least one".into()),
            None => Ok(()),
        }
    }
}

fn field<T: de::DeserializeOwned, E: de::Error>(name: &str, value: Value) -> Result<T, E> {
    serde_json::from_value(value).map_err(|error| E::custom(format!("{name}: {error}")))
}

fn unknown<E: de::Error>(name: &str) -> E {
    E::custom(unknown_fault(name))
}

/// The sentence for a name that is no fault.
pub(super) fn unknown_fault(name: &str) -> String {
    let nearest = Kind::ALL
        .iter()
        .map(|kind| (strsim::damerau_levenshtein(kind.name(), name), kind.name()))
        .min()
        .map_or("", |(_, nearest)| nearest);
    format!("{name:?} is no fault (the nearest is {nearest:?}); GET /_sandbox/faults lists them")
}
