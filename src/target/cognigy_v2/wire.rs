//! What goes over the wire: who a conversation is, the bodies of writes, a profile as it is read. Pure.
//!
//! A write to one place is encoded as exactly the body that is sent; one to both places as a list of the two bodies,
//! so that the limit of size holds for their sum.

use std::collections::BTreeMap;

use bytes::Bytes;
use regex::Regex;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::audit::hex;
use crate::config::Bot;
use crate::job::{ConversationId, Name, Scope, Version, is_key};
use crate::target::answer::{Answer, BodyEnd};
use crate::target::{Change, Detail, Failure, Observed};

/// The field of a profile by which a person says no.
const PREVENTS: &str = "prevent_data_collection";
/// How the body of a write to a profile begins.
const PROFILE_BODY: &[u8] = b"{\"profile\":";

/// Who a conversation is: the groups `session`, `user` and `profile` of `conversation_id_pattern`, where it has them.
/// Without, the conversation's id is the session's, `user_id` (else the id again) the user's, the user's the profile's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    pub session: &'a str,
    pub user: &'a str,
    pub profile: &'a str,
}

impl<'a> Address<'a> {
    pub fn of(pattern: &Regex, user_id: &'a str, conversation: &'a ConversationId) -> Self {
        let id = conversation.as_str();
        let groups = pattern.captures(id);
        let group = |name| groups.as_ref().and_then(|groups| groups.name(name)).map(|found| found.as_str());
        let user = group("user").unwrap_or(if user_id.is_empty() { id } else { user_id });
        Self { session: group("session").unwrap_or(id), user, profile: group("profile").unwrap_or(user) }
    }
}

#[derive(Serialize)]
struct SessionBody<'a> {
    #[serde(rename = "userId")]
    user_id: &'a str,
    context: BTreeMap<&'a str, Option<&'a Value>>,
}

#[derive(Serialize)]
struct ProfileBody<'a> {
    profile: BTreeMap<&'a str, Option<&'a Value>>,
}

/// The body of a write. The ledger goes to the profile, whatever its scope.
pub(in crate::target) fn encode(bot: &Bot, conversation: &ConversationId, changes: &[Change]) -> Bytes {
    let fields = |of_profile: bool| {
        let is_profiles = |name: &Name| name.scope == Scope::User || name.key == bot.ledger_key;
        let changes = changes.iter().filter(|change| is_profiles(&change.name) == of_profile);
        changes.map(|change| (change.name.key.as_str(), change.value.as_ref())).collect::<BTreeMap<_, _>>()
    };
    let user_id = Address::of(&bot.conversation_id_pattern, &bot.user_id, conversation).user;
    let session = SessionBody { user_id, context: fields(false) };
    let profile = ProfileBody { profile: fields(true) };
    let body = match (session.context.is_empty(), profile.profile.is_empty()) {
        (false, true) => serde_json::to_vec(&session),
        (true, false) => serde_json::to_vec(&profile),
        (false, false) => serde_json::to_vec(&(session, profile)),
        (true, true) => Ok(Vec::new()),
    };
    // Maps with text keys of values that came from JSON: nothing in them can fail to be written.
    body.unwrap_or_default().into()
}

/// The bodies of the requests of one write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    pub context: Option<Bytes>,
    pub profile: Option<Bytes>,
}

/// What [`encode`] put together. `None`: it was not that.
pub(super) fn parts(body: &Bytes) -> Option<Parts> {
    let bodies = match body.first()? {
        b'[' => {
            let bodies = serde_json::from_slice::<Vec<&RawValue>>(body).ok()?;
            bodies.into_iter().map(|part| body.slice_ref(part.get().as_bytes())).collect()
        }
        _ => vec![body.clone()],
    };
    let mut parts = Parts::default();
    for part in bodies {
        if part.starts_with(PROFILE_BODY) {
            parts.profile = Some(part);
        } else {
            parts.context = Some(part);
        }
    }
    Some(parts)
}

/// A profile as it was read.
#[derive(Debug)]
pub(in crate::target) struct Profile {
    /// Its fields as variables of scope `user`, and a fingerprint in the place of a version.
    pub observed: Observed,
    /// Whether the person said no.
    pub prevents_collection: bool,
}

/// The profile that a 2xx answer shows. One that is not understood is a failure, not an empty profile.
pub(in crate::target) fn profile(answer: &Answer, ledger_key: &str) -> Result<Profile, Failure> {
    let said = |text: &str| Detail { status: Some(answer.status.as_u16()), text: text.to_owned(), ..Detail::default() };
    match answer.end {
        BodyEnd::Complete => {}
        BodyEnd::TooLong => {
            return Err(Failure::Refused(said("the profile is longer than is read; raise max_payload_bytes")));
        }
        BodyEnd::Broken => return Err(Failure::Ambiguous(said("the answer was cut off"))),
    }
    let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body) else {
        return Err(Failure::Ambiguous(said("the answer is not JSON")));
    };
    let Some(Value::Object(fields)) = body.get_mut("profile").map(Value::take) else {
        return Err(Failure::Ambiguous(said("the answer has no profile")));
    };
    let prevents_collection = !matches!(fields.get(PREVENTS), None | Some(Value::Null | Value::Bool(false)));
    let version = Some(fingerprint(&fields));
    let variables = fields.into_iter().filter(|(key, value)| is_key(key) && !value.is_null()).map(|(key, value)| {
        let scope = if key == ledger_key { Scope::Conversation } else { Scope::User };
        (Name::new(scope, key), value)
    });
    Ok(Profile { observed: Observed { version, variables: variables.collect() }, prevents_collection })
}

/// Stands for the version that a profile does not have: tells two states apart, and has no order.
fn fingerprint(fields: &Map<String, Value>) -> Version {
    let text = serde_json::to_vec(fields).unwrap_or_default();
    Version::new(format!("profile-{}", &hex(&Sha256::digest(text))[..32]))
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;
    use hyper::header::HeaderMap;
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn bot(more: &str) -> Bot {
        let text = format!(
            "[bots.b]\ndialect = \"cognigy-v2\"\nbase_url = \"https://bot.example.com\"\napi_key = \"k\"\n{more}"
        );
        Config::parse(&text, []).unwrap().bots.remove("b").unwrap()
    }

    fn id(bot: &Bot, text: &str) -> ConversationId {
        ConversationId::new(text, &bot.conversation_id_pattern).unwrap()
    }

    fn change(scope: Scope, key: &str, value: Value) -> Change {
        Change { name: Name::new(scope, key), value: (!value.is_null()).then_some(value) }
    }

    #[test]
    fn each_place_gets_its_own_body_byte_for_byte() {
        let bot = bot("user_id = \"u-1\"");
        let id = id(&bot, "conv_1");
        let number: Value = serde_json::from_str("149.990").unwrap();
        let session = change(Scope::Session, "cart_total", number);
        let gone = change(Scope::Conversation, "gone", Value::Null);
        let tier = change(Scope::User, "tier", json!("premium"));
        let ledger = change(Scope::Conversation, "_injection_ledger", json!({"v": 1}));
        let context = r#"{"userId":"u-1","context":{"cart_total":149.990,"gone":null}}"#;
        let profile = r#"{"profile":{"_injection_ledger":{"v":1},"tier":"premium"}}"#;

        let body = encode(&bot, &id, &[session.clone(), gone.clone()]);
        assert_eq!(body, context);
        assert_eq!(parts(&body), Some(Parts { context: Some(context.into()), profile: None }));
        let body = encode(&bot, &id, &[tier.clone(), ledger.clone()]);
        assert_eq!(body, profile);
        assert_eq!(parts(&body), Some(Parts { context: None, profile: Some(profile.into()) }));
        let body = encode(&bot, &id, &[session, tier, gone, ledger]);
        assert_eq!(parts(&body), Some(Parts { context: Some(context.into()), profile: Some(profile.into()) }));
    }

    #[test]
    fn groups_of_the_pattern_tell_session_user_and_profile_apart() {
        let address = |more: &str, text: &str| {
            let bot = bot(more);
            let id = id(&bot, text);
            let Address { session, user, profile } = Address::of(&bot.conversation_id_pattern, &bot.user_id, &id);
            [session, user, profile].map(str::to_owned)
        };
        assert_eq!(address("", "conv_1"), ["conv_1", "conv_1", "conv_1"]);
        assert_eq!(address("user_id = \"u\"", "conv_1"), ["conv_1", "u", "u"]);
        let pattern = "conversation_id_pattern = '(?<user>[^/]+)/(?<session>[^/]+)(/(?<profile>[a-f0-9]{24}))?'";
        assert_eq!(address(pattern, "me@x.y/s 1"), ["s 1", "me@x.y", "me@x.y"]);
        let profile = "5ce7c2d833ea1e04d7e6c432";
        assert_eq!(address(pattern, &format!("me/s/{profile}")), ["s", "me", profile]);
    }

    fn read(body: &Value) -> Result<Profile, Failure> {
        let body = serde_json::to_vec(body).unwrap().into();
        let answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body, end: BodyEnd::Complete };
        profile(&answer, "_injection_ledger")
    }

    #[test]
    fn a_profile_is_the_variables_of_its_user_and_the_ledger() {
        let body = json!({"_id": "x", "active": true, "profile":
            {"tier": "gold", "gone": null, "odd-key": 1, "_injection_ledger": {"v": 1}}});
        let profile = read(&body).unwrap();
        let expected = BTreeMap::from([
            (Name::new(Scope::User, "tier"), json!("gold")),
            (Name::new(Scope::Conversation, "_injection_ledger"), json!({"v": 1})),
        ]);
        assert_eq!(profile.observed.variables, expected);
        let other = read(&json!({"profile": {"tier": "silver"}})).unwrap();
        assert_ne!(profile.observed.version, other.observed.version);
        for outage in [json!({}), json!([]), json!({"profile": null}), json!({"profile": []}), json!("x")] {
            assert!(matches!(read(&outage), Err(Failure::Ambiguous(_))), "{outage}");
        }
    }

    #[test]
    fn a_no_to_data_collection_is_believed_in_any_form() {
        for (flag, prevents) in
            [(json!(true), true), (json!("true"), true), (json!(1), true), (json!(false), false), (json!(null), false)]
        {
            assert_eq!(read(&json!({"profile": {PREVENTS: flag}})).unwrap().prevents_collection, prevents);
        }
        assert!(!read(&json!({"profile": {}})).unwrap().prevents_collection);
    }
}
