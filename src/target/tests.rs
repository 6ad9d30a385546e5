//! The target against the sandbox.

mod cognigy_v2;
mod wire;

use serde_json::json;

use super::*;
use crate::config::Config;
use crate::job::Scope;
use crate::sandbox::{self, ConflictStatus, Faults, Kind, Only, Operation, Rule, Sandbox, Settings, VersionForm};

const ID: &str = "conv_1";

fn bot(url: &str, more: &str) -> config::Bot {
    rustls::crypto::ring::default_provider().install_default().ok();
    let text = format!(
        "[bots.b]\nbase_url = \"{url}\"\nallow_http = true\nclient_id = \"sandbox\"\nclient_secret = \"sandbox-secret\"\n\
         conversation_id_pattern = \"^.*$\"\n{more}"
    );
    Config::parse(&text, []).unwrap().bots.remove("b").unwrap()
}

fn conversation(id: &str) -> ConversationId {
    ConversationId::new(id, &regex::Regex::new("(?s)^.*$").unwrap()).unwrap()
}

struct World {
    sandbox: Sandbox,
    bot: config::Bot,
    target: Target,
}

impl World {
    async fn new(settings: Settings) -> Self {
        Self::with(settings, "").await
    }

    async fn with(settings: Settings, more: &str) -> Self {
        let sandbox = sandbox::start(settings).await.unwrap();
        let bot = bot(&sandbox.url(), more);
        let target = Target::new(&bot).unwrap();
        Self { sandbox, bot, target }
    }

    async fn faulty(kind: Kind, rule: Rule) -> Self {
        Self::new(with_faults(Faults::none().with(kind, rule))).await
    }

    async fn read(&self) -> Read {
        self.target.read(&conversation(ID), None).await
    }

    async fn version(&self) -> Version {
        match self.read().await {
            Read::Observed(observed) => observed.version.unwrap(),
            Read::Failed(failure) => panic!("{failure}"),
        }
    }

    async fn write(&self, value: i64, if_match: Option<&Version>) -> Write {
        let name = Name::new(Scope::Session, "k");
        let body = encode(&self.bot, &conversation(ID), &[Change { name, value: Some(json!(value)) }]);
        self.target.write(&conversation(ID), body, if_match, None).await
    }

    /// The stored value.
    fn value(&self) -> Option<Value> {
        self.sandbox.conversation(ID)?.get(sandbox::Scope::Session, "k").cloned()
    }
}

fn settings() -> Settings {
    Settings { rate: 0.0, ..Settings::default() }
}

fn with_faults(faults: Faults) -> Settings {
    Settings { faults, ..settings() }
}

fn on(operation: Operation) -> Rule {
    Rule::times(1).only(Only { operations: vec![operation], ..Only::default() })
}

fn applied(write: Write) -> Option<Version> {
    match write {
        Write::Applied { version } => version,
        other => panic!("not applied: {other:?}"),
    }
}

fn failed(write: Write) -> Failure {
    match write {
        Write::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn versions_of_every_form_guard_writes_and_both_conflicts_are_conflicts() {
    let forms =
        [VersionForm::ContextVersion, VersionForm::Version, VersionForm::Opaque, VersionForm::Etag, VersionForm::Both];
    for version_form in forms {
        for conflict in [ConflictStatus::Conflict, ConflictStatus::PreconditionFailed] {
            let world = World::new(Settings { version_form, conflict, require_if_match: true, ..settings() }).await;
            let first = world.version().await;
            let second = applied(world.write(1, Some(&first)).await).expect("the answer has the version");
            assert_eq!(world.write(2, Some(&first)).await, Write::Conflict, "{version_form:?} {conflict:?}");
            applied(world.write(3, Some(&second)).await);
            assert_eq!(world.value(), Some(json!(3)));
        }
    }
}

#[tokio::test]
async fn a_read_shows_what_was_written() {
    let world = World::new(settings()).await;
    let change = |scope, key: &str, value| Change { name: Name::new(scope, key), value };
    let changes = [
        change(Scope::User, "tier", Some(json!("premium"))),
        change(Scope::Session, "list", Some(json!(["a", {"b": [1]}]))),
        change(Scope::Conversation, "gone", None),
    ];
    let version = world.version().await;
    let body = encode(&world.bot, &conversation(ID), &changes);
    applied(world.target.write(&conversation(ID), body, Some(&version), None).await);
    let Read::Observed(observed) = world.read().await else { panic!("not read") };
    let expected = changes.into_iter().filter_map(|change| Some((change.name, change.value?))).collect();
    assert_eq!(observed.variables, expected);
}

#[tokio::test]
async fn a_token_that_the_target_no_longer_takes_is_replaced_once() {
    let world = World::new(settings()).await;
    let version = world.version().await;
    world.sandbox.revoke_tokens();
    applied(world.write(1, Some(&version)).await);
    assert_eq!(world.sandbox.stats().token_requests, 2);
}

#[tokio::test]
async fn one_token_serves_all_tasks_and_a_revoked_one_is_replaced_by_one_of_them() {
    let world = World::new(settings()).await;
    let read_many = async || {
        let reads = (0..40).map(|_| world.read());
        for read in futures_util::future::join_all(reads).await {
            assert!(matches!(read, Read::Observed(_)), "{read:?}");
        }
    };
    read_many().await;
    assert_eq!(world.sandbox.stats().token_requests, 1);
    world.sandbox.revoke_tokens();
    read_many().await;
    assert_eq!(world.sandbox.stats().token_requests, 2);
}

#[tokio::test]
async fn a_token_that_expires_is_replaced_in_time() {
    // Used for half of its second at most: then the target never sees an old one.
    let world = World::new(Settings { token_ttl: Duration::from_secs(1), ..settings() }).await;
    let tokens = || world.sandbox.stats().token_requests;
    while tokens() < 3 {
        assert!(matches!(world.read().await, Read::Observed(_)));
        tokio::task::yield_now().await;
    }
    assert_eq!(world.sandbox.stats().unauthenticated, 0);
}

#[tokio::test]
async fn credentials_that_are_not_taken_are_told_from_an_outage_and_not_shown() {
    let world = World::with(settings(), "").await;
    let mut bot = world.bot.clone();
    bot.client_secret = Some("wrong-sesame".to_owned().into());
    let target = Target::new(&bot).unwrap();
    let Read::Failed(failure) = target.read(&conversation(ID), None).await else { panic!("it was taken") };
    assert!(matches!(failure, Failure::Credentials(_)), "{failure:?}");
    assert_eq!((failure.detail().status, failure.detail().code.as_deref()), (Some(401), Some("invalid_client")));
    assert!(!format!("{failure} {failure:?} {target:?}").contains("sesame"));

    for kind in [Kind::Unauthorized, Kind::Forbidden] {
        let world = World::faulty(kind, Rule::probability(1.0)).await;
        assert!(matches!(failed(world.write(1, None).await), Failure::Credentials(_)), "{kind:?}");
        let sent = world.sandbox.stats().writes;
        assert_eq!(sent, if kind == Kind::Unauthorized { 2 } else { 1 });
    }
}

#[tokio::test]
async fn a_token_end_point_that_is_down_is_an_outage_without_effect() {
    let token = || Only { operations: vec![Operation::Token], ..Only::default() };
    for kind in [Kind::ServerError, Kind::ResetBefore, Kind::Throttle] {
        let world = World::faulty(kind, Rule::times(1).only(token())).await;
        let failure = failed(world.write(1, None).await);
        assert!(matches!(failure, Failure::NotSent(_)), "{kind:?}: {failure:?}");
    }
}

#[tokio::test]
async fn nobody_waits_for_a_token_twice() {
    let token = Only { operations: vec![Operation::Token], ..Only::default() };
    let world = World::faulty(Kind::ServerError, Rule::probability(1.0).only(token)).await;
    for read in futures_util::future::join_all((0..40).map(|_| world.read())).await {
        assert!(matches!(read, Read::Failed(Failure::NotSent(_))), "{read:?}");
    }
    let posts = world.sandbox.stats().requests.into_iter().filter(|(name, _)| name.starts_with("POST"));
    assert_eq!(posts.map(|(_, number)| number).sum::<u64>(), 1, "who waited shares the failure");
}

#[tokio::test]
async fn a_429_says_how_long_in_either_form() {
    let forms = ["7", "date:7", "absent", "-1", "31536000", "soon"].map(str::to_owned).to_vec();
    let faults = Faults::none().with(
        Kind::Throttle,
        Rule::probability(1.0).only(Only { operations: vec![Operation::Write], ..Only::default() }),
    );
    let world = World::new(with_faults(faults.parameters(|parameters| parameters.retry_after = forms))).await;
    let mut waits = Vec::new();
    for _ in 0..6 {
        let Failure::Throttled { retry_after, .. } = failed(world.write(1, None).await) else { panic!("no 429") };
        waits.push(retry_after.map(|wait| wait.as_secs()));
    }
    assert!(matches!(waits[1], Some(6..=8)), "{waits:?}");
    waits.remove(1);
    assert_eq!(waits, [Some(7), None, None, Some(300), None]);
}

#[tokio::test]
async fn what_may_have_been_applied_is_ambiguous_and_what_was_refused_is_not() {
    let write = || Only { operations: vec![Operation::Write], ..Only::default() };
    for (kind, has_effect) in [
        (Kind::ServerError, false),
        (Kind::ResetBefore, false),
        (Kind::HangBefore, false),
        (Kind::AppliedThen500, true),
        (Kind::ResetAfter, true),
        (Kind::HangAfter, true),
    ] {
        let faults = Faults::none().with(kind, Rule::times(1).only(write()));
        let world = World::with(with_faults(faults), "request_timeout = \"300ms\"").await;
        let version = world.version().await;
        let failure = failed(world.write(1, Some(&version)).await);
        assert!(matches!(failure, Failure::Ambiguous(_)), "{kind:?}: {failure:?}");
        assert_eq!(world.value(), has_effect.then(|| json!(1)), "{kind:?}");
        // The same bytes with the same precondition are always safe.
        let again = world.write(1, Some(&version)).await;
        assert_eq!(again == Write::Conflict, has_effect, "{kind:?}: {again:?}");
        assert_eq!(world.value(), Some(json!(1)));
    }
    let world = World::faulty(Kind::Refusal409, on(Operation::Write)).await;
    assert!(matches!(failed(world.write(1, None).await), Failure::Refused(_)));
    let world = World::faulty(Kind::NotFound, on(Operation::Write)).await;
    assert!(matches!(failed(world.write(1, None).await), Failure::NotFound(_)));
}

#[tokio::test]
async fn a_write_whose_answer_is_spoilt_was_applied() {
    let kinds = [Kind::EmptySuccess, Kind::NoVersion, Kind::TruncatedBody, Kind::MalformedJson, Kind::HugeAnswer];
    for kind in kinds {
        let world = World::faulty(kind, on(Operation::Write)).await;
        let version = world.version().await;
        assert_eq!(applied(world.write(1, Some(&version)).await), None, "{kind:?}");
        assert_eq!(world.value(), Some(json!(1)), "{kind:?}");
    }
}

#[tokio::test]
async fn a_read_whose_answer_is_spoilt_failed() {
    for (kind, huge_bytes) in
        [(Kind::TruncatedBody, 0), (Kind::MalformedJson, 0), (Kind::HugeAnswer, 0), (Kind::HugeAnswer, 64 << 20)]
    {
        let faults = Faults::none().with(kind, on(Operation::Read));
        let world = World::new(with_faults(faults.parameters(|parameters| parameters.huge_bytes = huge_bytes))).await;
        let Read::Failed(failure) = world.read().await else { panic!("{kind:?} was believed") };
        match kind {
            Kind::HugeAnswer => assert!(matches!(failure, Failure::Refused(_)), "{failure:?}"),
            _ => assert!(matches!(failure, Failure::Ambiguous(_)), "{failure:?}"),
        }
    }
}

#[tokio::test]
async fn a_refusal_names_status_code_and_trace_id() {
    let world = World::with(settings(), "").await;
    let change = Change { name: Name::new(Scope::User, "k"), value: Some(json!("x".repeat(20_000))) };
    let body = encode(&world.bot, &conversation(ID), &[change]);
    let failure = failed(world.target.write(&conversation(ID), body, None, None).await);
    let Failure::Refused(detail) = &failure else { panic!("{failure:?}") };
    assert_eq!(detail.status, Some(400));
    assert!(detail.code.is_some() && detail.trace_id.is_some(), "{detail:?}");
    assert!(!failure.to_string().contains("xxx"));
}

#[tokio::test]
async fn without_tls_where_it_is_asked_for_nothing_is_sent() {
    let world = World::new(settings()).await;
    let target = Target::new(&bot(&world.sandbox.url().replace("http:", "https:"), "")).unwrap();
    let Read::Failed(failure) = target.read(&conversation(ID), None).await else { panic!("it was read") };
    assert!(matches!(failure, Failure::NotSent(_)), "{failure:?}");

    // Whoever accepts and then says nothing is not connected.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let target = Target::new(&bot(&url, "connect_timeout = \"100ms\"")).unwrap();
    let Read::Failed(failure) = target.read(&conversation(ID), None).await else { panic!("it was read") };
    assert!(matches!(failure, Failure::NotSent(_)), "{failure:?}");
    assert!(failure.to_string().ends_with("no connection within 100ms"), "{failure}");
}

#[tokio::test]
async fn connections_are_reused() {
    let world = World::new(settings()).await;
    for _ in 0..20 {
        world.version().await;
    }
    assert!(world.sandbox.stats().connections <= 2, "{}", world.sandbox.stats().connections);
}

#[tokio::test]
async fn a_budget_is_charged_for_the_second_request_and_only_for_that() {
    let world = World::new(settings()).await;
    let mut again = 0;
    let charge = || {
        again += 1;
        std::future::ready(())
    };
    world.target.read_charged(&conversation(ID), None, charge).await;
    assert_eq!(again, 0);
    world.sandbox.revoke_tokens();
    let charge = || {
        again += 1;
        std::future::ready(())
    };
    world.target.read_charged(&conversation(ID), None, charge).await;
    assert_eq!(again, 1);
}
