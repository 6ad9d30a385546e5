//! The gate of a bot, against the sandbox: pauses, breaker, budget.

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::config::Config;
use crate::job::{Name, Scope};
use crate::sandbox::{self, Faults, Kind, Only, Operation, Rule, Sandbox};
use crate::target::{Change, encode};

struct World {
    sandbox: Sandbox,
    bot: Arc<Bot>,
}

fn conversation() -> ConversationId {
    ConversationId::new("conv_1", &regex::Regex::new("^conv_[0-9a-f]+$").unwrap()).unwrap()
}

impl World {
    async fn new(more: &str) -> Self {
        let more = format!("requests_per_second = 10000\nburst = 100\n{more}");
        Self::with(sandbox::Settings { rate: 0.0, ..sandbox::Settings::default() }, &more).await
    }

    async fn with(settings: sandbox::Settings, more: &str) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let sandbox = sandbox::start(settings).await.unwrap();
        let text = format!(
            "[bots.b]\nbase_url = \"{}\"\nallow_http = true\nclient_id = \"sandbox\"\nclient_secret = \"sandbox-secret\"\n\
             breaker_open_for = \"50ms\"\n{more}",
            sandbox.url()
        );
        let config = Config::parse(&text, []).unwrap().bots.remove("b").unwrap();
        Self { sandbox, bot: Bot::new(config, RedisLink::absent(), None).unwrap() }
    }

    fn faults(&self, kind: Kind, rule: Rule) {
        self.sandbox.set_faults(Faults::none().with(kind, rule));
    }

    async fn read(&self) -> Spent<Read> {
        within("a read", self.bot.read(&conversation(), None)).await
    }

    async fn fails(&self, number: u32) {
        for _ in 0..number {
            assert!(matches!(self.read().await.answer, Read::Failed(Failure::Ambiguous(_))));
        }
    }

    async fn succeeds(&self) {
        let answer = self.read().await.answer;
        assert!(matches!(answer, Read::Observed(_)), "{answer:?}");
    }

    fn why(&self) -> Option<Why> {
        self.bot.holding().map(|holding| holding.why)
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within 30 s"),
    }
}

fn body_of(world: &World, value: String) -> Bytes {
    let change = Change { name: Name::new(Scope::User, "k"), value: Some(json!(value)) };
    encode(world.bot.config(), &conversation(), &[change])
}

fn operation(operation: Operation) -> Only {
    Only { operations: vec![operation], ..Only::default() }
}

#[tokio::test]
async fn a_429_pauses_the_bot_as_long_as_the_target_asks() {
    let world = World::new("").await;
    world.faults(Kind::Throttle, Rule::times(1).only(operation(Operation::Read)));
    let asked = Instant::now();
    assert!(matches!(world.read().await.answer, Read::Failed(Failure::Throttled { .. })));
    assert_eq!(world.why(), Some(Why::Throttled));
    world.succeeds().await;
    assert!(asked.elapsed() >= Duration::from_millis(900), "{:?}", asked.elapsed());
    assert_eq!(world.why(), None);
}

#[tokio::test]
async fn a_429_that_does_not_say_how_long_pauses_longer_each_time() {
    let world = World::new("").await;
    let pauses = [(None, 1_000), (None, 1_000), (Some(Duration::ZERO), 100)];
    for (retry_after, milliseconds) in pauses {
        assert_eq!(world.bot.throttled_for(retry_after).as_millis(), milliseconds);
        // The first begins the pause, the second is of a request that was under way.
        world.bot.limiter.pause_here(Duration::from_millis(milliseconds.try_into().unwrap()));
    }
    within("the end of the pause", world.bot.ready()).await;
    assert_eq!(world.bot.throttled_for(None).as_millis(), 2_000);
}

#[tokio::test]
async fn a_broken_target_opens_the_breaker_and_probes_close_it() {
    let world = World::new("").await;
    world.faults(Kind::ServerError, Rule::probability(1.0).only(operation(Operation::Read)));
    world.fails(20).await;
    assert_eq!((world.why(), world.bot.phase()), (Some(Why::BreakerOpen), Phase::Open));
    let sent = || world.sandbox.stats().requests.values().sum::<u64>();
    let before = sent();
    assert!(timeout(Duration::from_millis(5), world.bot.permit()).await.is_err(), "no request goes");
    assert_eq!(sent(), before);
    world.sandbox.set_faults(Faults::none());
    within("the time for probes", world.bot.ready()).await;
    for _ in 0..5 {
        world.succeeds().await;
    }
    assert_eq!(world.bot.phase(), Phase::Ramping);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_not_used_is_the_next_ones_for_a_short_while() {
    let settings = sandbox::Settings { rate: 0.0, ..sandbox::Settings::default() };
    let bot = World::with(settings, "requests_per_second = 1\nburst = 1").await.bot;
    let start = Instant::now();
    for _ in 0..100 {
        drop(bot.permit().await);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    let mut used = bot.permit().await;
    let _ = used.use_up();
    drop(used);
    let next = bot.permit().await;
    assert!(start.elapsed() >= Duration::from_millis(999), "{:?}", start.elapsed());
    assert!(next.is_fresh());
    tokio::time::advance(Duration::from_millis(20)).await;
    assert!(!next.is_fresh());
    drop(next);
    drop(bot.permit().await);
    assert!(start.elapsed() >= Duration::from_millis(1_999), "{:?}", start.elapsed());
}

/// So many requests at once, all used.
async fn spends(bot: &Arc<Bot>, number: usize) {
    for mut permit in bot.permits(number).await {
        let _ = permit.use_up();
    }
    // What is bought ahead is bought by a task of its own.
    tokio::task::yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn while_there_is_far_more_budget_than_is_used_permits_are_at_hand() {
    let settings = sandbox::Settings { rate: 0.0, ..sandbox::Settings::default() };
    let bot = World::with(settings, "requests_per_second = 10000\nburst = 1000").await.bot;
    assert!(bot.permit_at_hand().is_none(), "nobody has used any yet");
    spends(&bot, 20).await;
    let mut at_hand = 0;
    while let Some(mut permit) = bot.permit_at_hand() {
        let _ = permit.use_up();
        at_hand += 1;
    }
    assert_eq!(at_hand, 20, "as many as were used lately");
    // Those at hand, grown older, and all that may go at once then, are the burst and no more.
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    spends(&bot, 100).await;
    tokio::time::advance(Duration::from_millis(19)).await;
    let (start, mut at_once) = (Instant::now(), 0);
    while start.elapsed() == Duration::ZERO {
        let mut permit = bot.permit().await;
        let _ = permit.use_up();
        at_once += usize::from(start.elapsed() == Duration::ZERO);
    }
    // 20 ms of places were taken 19 ms ago.
    assert_eq!(at_once, 1_000 - 125 - 10 + 100, "100 were at hand, 125 of the burst are kept for those");
    tokio::time::advance(Duration::from_secs(1)).await;
    spends(&bot, 20).await;
    tokio::time::advance(Duration::from_millis(20)).await;
    assert!(bot.permit_at_hand().is_none(), "they are too old");
    spends(&bot, 20).await;
    bot.limiter.pause_here(Duration::from_millis(1));
    assert!(bot.permit_at_hand().is_none(), "the bot is paused");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_used_up_is_not_bought_ahead() {
    let settings = sandbox::Settings { rate: 0.0, ..sandbox::Settings::default() };
    let bot = World::with(settings, "requests_per_second = 1000\nburst = 40").await.bot;
    spends(&bot, 40).await;
    assert!(bot.permit_at_hand().is_none());
    let start = Instant::now();
    spends(&bot, 1).await;
    assert!(start.elapsed() <= Duration::from_millis(2), "the place is the next one: {:?}", start.elapsed());
}

#[tokio::test]
async fn refusals_and_conflicts_do_not_open_the_breaker() {
    let world = World::new("").await;
    let body = body_of(&world, "x".repeat(20_000));
    for _ in 0..25 {
        let write = world.bot.write(&conversation(), body.clone(), None, None).await.answer;
        assert!(matches!(write, Write::Failed(Failure::Refused(_))), "{write:?}");
    }
    let stale = Version::new("12345");
    let body = body_of(&world, "x".to_owned());
    for _ in 0..25 {
        assert_eq!(world.bot.write(&conversation(), body.clone(), Some(&stale), None).await.answer, Write::Conflict);
    }
    assert_eq!(world.bot.phase(), Phase::Closed);
}

#[tokio::test]
async fn a_probe_that_is_cancelled_makes_room_for_another() {
    let world = World::new("").await;
    world.faults(Kind::ServerError, Rule::probability(1.0).only(operation(Operation::Read)));
    world.fails(20).await;
    world.sandbox.set_faults(Faults::none());
    within("the time for probes", world.bot.ready()).await;
    let mut probes = Vec::new();
    for _ in 0..5 {
        probes.push(within("a probe", world.bot.permit()).await);
    }
    assert!(timeout(Duration::from_millis(20), world.bot.permit()).await.is_err(), "five probes are under way");
    let next = world.bot.permit();
    tokio::pin!(next);
    assert!(futures_util::poll!(&mut next).is_pending());
    probes.pop();
    let next = within("room for another", next).await;
    next.report(Sign::Healthy);
    assert_eq!(world.bot.phase(), Phase::HalfOpen, "one success and four under way");
}

#[tokio::test]
async fn wrong_credentials_pause_the_bot() {
    let world = World::new("").await;
    world.faults(Kind::Forbidden, Rule::times(1));
    assert!(matches!(world.read().await.answer, Read::Failed(Failure::Credentials(_))));
    assert_eq!(world.why(), Some(Why::Credentials));
    assert!(timeout(Duration::from_millis(20), world.bot.permit()).await.is_err(), "no request goes");
    assert_eq!(world.bot.phase(), Phase::Closed);
}

#[tokio::test]
async fn a_request_that_is_sent_again_for_its_token_is_charged_again() {
    let world = World::new("").await;
    assert_eq!(world.read().await.requests, 1);
    world.sandbox.revoke_tokens();
    assert_eq!(world.read().await.requests, 2);
    assert_eq!(world.sandbox.stats().reads, 3);
}

#[tokio::test]
async fn the_budget_keeps_the_target_from_asking_for_a_pause() {
    // Without a budget 60 at once would be too many; a machine that stops for a second bunches what was sent evenly.
    let settings = sandbox::Settings { rate: 50.0, burst: 55, ..sandbox::Settings::default() };
    let world = World::with(settings, "requests_per_second = 50\nburst = 5").await;
    world.succeeds().await;
    let reads = (0..60).map(|_| world.read());
    for spent in futures_util::future::join_all(reads).await {
        assert!(matches!(spent.answer, Read::Observed(_)), "{:?}", spent.answer);
    }
    assert_eq!(world.sandbox.stats().rate_limited, 0);
}

#[tokio::test]
async fn its_calls_can_be_spawned() {
    let world = World::new("").await;
    let bot = Arc::clone(&world.bot);
    let read = tokio::spawn(async move { bot.read(&conversation(), Some("00-x")).await.answer });
    assert!(matches!(read.await.unwrap(), Read::Observed(_)));
    let bot = Arc::clone(&world.bot);
    let body = body_of(&world, "x".to_owned());
    let write = tokio::spawn(async move { bot.write(&conversation(), body, None, None).await.answer });
    assert!(matches!(write.await.unwrap(), Write::Applied { .. }));
}
