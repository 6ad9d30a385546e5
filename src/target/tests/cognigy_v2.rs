//! The dialect `cognigy-v2` against the sandbox, and its spelling against bare sockets.

use serde_json::json;

use super::wire::{TOKEN, canned, lines};
use super::{ID, applied, conversation, failed, settings, with_faults};
use crate::job::Scope;
use crate::sandbox::{self, Faults, Kind, Only, Operation, Rule, Sandbox, Settings};
use crate::target::*;

const SESSION: &str = "session/conv_1/u%2F1";
const PROFILE: &str = "profile/u%2F1";

fn bot(url: &str, more: &str) -> config::Bot {
    super::bot(url, &format!("dialect = \"cognigy-v2\"\nuser_id = \"u/1\"\n{more}"))
}

struct World {
    sandbox: Sandbox,
    bot: config::Bot,
    target: Target,
}

impl World {
    /// A platform that knows the user.
    async fn new(settings: Settings) -> Self {
        let sandbox = sandbox::start(settings).await.unwrap();
        let bot = bot(&sandbox.url(), "api_key = \"sandbox-key\"");
        let target = Target::new(&bot).unwrap();
        sandbox.seed(PROFILE, []);
        Self { sandbox, bot, target }
    }

    async fn version(&self) -> Version {
        match self.target.read(&conversation(ID), None).await {
            Read::Observed(observed) => observed.version.unwrap(),
            Read::Failed(failure) => panic!("{failure}"),
        }
    }

    async fn write(&self, changes: &[Change], seen: Option<&Version>) -> Write {
        let body = encode(&self.bot, &conversation(ID), changes);
        self.target.write(&conversation(ID), body, seen, None).await
    }

    /// The values of the session's `cart` and the user's `tier`.
    fn values(&self) -> (Option<Value>, Option<Value>) {
        let value = |id, scope, key| self.sandbox.conversation(id)?.get(scope, key).cloned();
        (value(SESSION, sandbox::Scope::Session, "cart"), value(PROFILE, sandbox::Scope::User, "tier"))
    }
}

fn cart() -> Change {
    Change { name: Name::new(Scope::Session, "cart"), value: Some(json!(149.5)) }
}

fn tier() -> Change {
    Change { name: Name::new(Scope::User, "tier"), value: Some(json!("premium")) }
}

#[tokio::test]
async fn requests_are_spelled_as_the_vendor_shows() {
    let profile = "HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{\"profile\":{}}";
    let empty = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let (url, serving) = canned(vec![profile, empty, empty]).await;
    let bot = bot(&url, "api_key = \"sesame\"");
    let body = encode(&bot, &conversation("a b/1"), &[cart(), tier()]);
    let write = Target::new(&bot).unwrap().write(&conversation("a b/1"), body, None, None).await;
    assert_eq!(write, Write::Applied { version: None });

    let requests = serving.await.unwrap();
    let [look, session, profile] = [0, 1, 2].map(|at| lines(&requests[at]));
    assert!(look.contains("GET /new/v2.0/profiles/u%2F1 HTTP/1.1") && look.contains("x-api-key: sesame"));
    assert!(requests[0].ends_with("\r\n\r\n") && !requests[0].contains("content-"), "a GET has no body: {look:?}");
    for line in [
        "POST /new/v2.0/sessions/a%20b%2F1/context/inject HTTP/1.1",
        "x-api-key: sesame",
        "accept: application/json",
        "content-type: application/json",
        r#"{"userId":"u/1","context":{"cart":149.5}}"#,
    ] {
        assert!(session.contains(line), "{line} in {session:?}");
    }
    for line in ["PATCH /new/v2.0/profiles/u%2F1 HTTP/1.1", r#"{"profile":{"tier":"premium"}}"#] {
        assert!(profile.contains(line), "{line} in {profile:?}");
    }
    assert!(!requests.concat().contains("api_key="), "a key in an address gets into logs");
}

#[tokio::test]
async fn client_credentials_are_taken_too() {
    let empty = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let (url, serving) = canned(vec![TOKEN, empty]).await;
    let bot = bot(&url, "");
    let body = encode(&bot, &conversation(ID), &[cart()]);
    applied(Target::new(&bot).unwrap().write(&conversation(ID), body, None, None).await);
    let requests = serving.await.unwrap();
    assert!(lines(&requests[0]).contains("POST /auth/oauth2/token HTTP/1.1"));
    assert!(!requests[0].contains("scope="));
    assert!(lines(&requests[1]).contains("authorization: Bearer t-1"));
}

#[tokio::test]
async fn session_and_profile_are_written_and_the_profile_can_be_read() {
    let world = World::new(settings()).await;
    applied(world.write(&[cart(), tier()], None).await);
    assert_eq!(world.values(), (Some(json!(149.5)), Some(json!("premium"))));
    let Read::Observed(observed) = world.target.read(&conversation(ID), None).await else { panic!("not read") };
    assert_eq!(observed.variables, [(tier().name, json!("premium"))].into());
    assert!(observed.version.is_some());
}

#[tokio::test]
async fn a_profile_that_changed_since_it_was_read_is_a_conflict_and_nothing_is_sent() {
    let world = World::new(settings()).await;
    let seen = world.version().await;
    world.sandbox.change(PROFILE, [(sandbox::Scope::User, "other", json!(1))]);
    assert_eq!(world.write(&[cart(), tier()], Some(&seen)).await, Write::Conflict);
    assert_eq!(world.values(), (None, None));
    let seen = world.version().await;
    applied(world.write(&[tier()], Some(&seen)).await);
}

#[tokio::test]
async fn who_prevents_data_collection_is_left_alone() {
    let world = World::new(settings()).await;
    world.sandbox.change(PROFILE, [(sandbox::Scope::User, "prevent_data_collection", json!(true))]);
    let failure = failed(world.write(&[cart(), tier()], None).await);
    assert!(matches!(failure, Failure::Refused(_)), "{failure:?}");
    assert!(failure.to_string().contains("prevent_data_collection"), "{failure}");
    assert_eq!(world.values(), (None, None), "not the session either: a job is written whole or not at all");
    applied(world.write(&[cart()], None).await);
}

/// What the write to the profile does after the one to the session has succeeded.
async fn second_fails(kind: Kind) -> (Failure, World) {
    let only = Only { operations: vec![Operation::Write], skip_n: 1, ..Only::default() };
    let world = World::new(with_faults(Faults::none().with(kind, Rule::times(1).only(only)))).await;
    (failed(world.write(&[cart(), tier()], None).await), world)
}

#[tokio::test]
async fn after_the_first_of_two_requests_nothing_is_called_without_effect() {
    for (kind, written) in [
        (Kind::ServerError, None),
        (Kind::Throttle, None),
        (Kind::Forbidden, None),
        (Kind::SpuriousConflict, None),
        (Kind::ResetBefore, None),
        (Kind::AppliedThen500, Some(json!("premium"))),
    ] {
        let (failure, world) = second_fails(kind).await;
        assert!(matches!(failure, Failure::Ambiguous(_)), "{kind:?}: {failure:?}");
        assert!(failure.to_string().contains("the context was written"), "{failure}");
        assert_eq!(world.values(), (Some(json!(149.5)), written), "{kind:?}");
        applied(world.write(&[cart(), tier()], None).await);
    }
    let (failure, world) = second_fails(Kind::NotFound).await;
    assert!(matches!(failure, Failure::HalfDone(_)), "{failure:?}");
    assert_eq!(failure.detail().code.as_deref(), Some("1002"));
    assert_eq!(world.values(), (Some(json!(149.5)), None));
}

#[tokio::test]
async fn a_look_that_fails_leaves_no_doubt() {
    for kind in [Kind::ServerError, Kind::ResetBefore, Kind::MalformedJson, Kind::TruncatedBody] {
        let only = Only { operations: vec![Operation::Read], ..Only::default() };
        let world = World::new(with_faults(Faults::none().with(kind, Rule::times(1).only(only)))).await;
        let failure = failed(world.write(&[cart(), tier()], None).await);
        assert!(matches!(failure, Failure::NotSent(_)), "{kind:?}: {failure:?}");
        assert_eq!(world.values(), (None, None));
    }
}

#[tokio::test]
async fn the_numbers_of_the_vendor_s_errors_are_kept() {
    for (kind, status, code) in [(Kind::NotFound, 404, "1002"), (Kind::Throttle, 429, "2429")] {
        let only = Only { operations: vec![Operation::Write], ..Only::default() };
        let world = World::new(with_faults(Faults::none().with(kind, Rule::times(1).only(only)))).await;
        let failure = failed(world.write(&[cart()], None).await);
        let detail = failure.detail();
        assert_eq!((detail.status, detail.code.as_deref()), (Some(status), Some(code)), "{failure:?}");
        assert!(detail.trace_id.is_some());
    }
}

#[tokio::test]
async fn each_request_but_the_first_is_charged() {
    let world = World::new(settings()).await;
    for (changes, charged) in [(vec![cart()], 0), (vec![tier()], 1), (vec![cart(), tier()], 2)] {
        let mut again = 0;
        let charge = || {
            again += 1;
            std::future::ready(())
        };
        let body = encode(&world.bot, &conversation(ID), &changes);
        let write = world.target.write_charged(&conversation(ID), body, None, None, charge).await;
        assert_eq!((write, again), (Write::Applied { version: None }, charged), "{changes:?}");
    }
}
