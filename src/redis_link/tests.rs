//! What is kept in Redis, against a real one: the link, leases, the shared budget, the retry line, evictions.

use std::time::Duration;

use redis::AsyncCommands as _;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::*;
use crate::config::Config;
use crate::job::{ConversationId, JobId, Version};
use crate::ladder::Ladder;
use crate::lease::{self, Contention, Hold, PastVerdict, Record};
use crate::limiter::{Limiter, Sources};
use crate::pipeline::evicted::{Evicted, Memory};
use crate::pipeline::ledger::{LowWater, Mark};
use crate::pipeline::place::Place;
use crate::pipeline::verdict::Reason;
use crate::servers;
use crate::witness;

/// A Redis of the test's own; `None` (said on standard error) on a machine without one.
pub(crate) async fn private_redis() -> Option<(servers::Redis, Arc<RedisLink>)> {
    match servers::Redis::start_private().await {
        Ok(server) => {
            let link = link_to(&server);
            link.wait_until(true).await;
            Some((server, link))
        }
        Err(error @ servers::Error::NotFound { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn link_to(server: &servers::Redis) -> Arc<RedisLink> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let prefix = Uuid::new_v4().simple().to_string();
    RedisLink::start(&config::Redis { url: SecretUrl::new(server.url()), prefix }).unwrap()
}

/// A second worker: another connection to the same keys.
fn second(server: &servers::Redis, first: &RedisLink) -> Arc<RedisLink> {
    let settings = config::Redis { url: SecretUrl::new(server.url()), prefix: first.prefix.clone() };
    RedisLink::start(&settings).unwrap()
}

async fn commands(server: &servers::Redis) -> MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn conversation(id: &str) -> ConversationId {
    ConversationId::new(id, &regex::Regex::new("^conv_[0-9a-f]+$").unwrap()).unwrap()
}

fn bot(more: &str) -> config::Bot {
    let text = format!("[bots.b]\nbase_url = \"https://b.example\"\nclient_id = \"i\"\nclient_secret = \"s\"\n{more}");
    Config::parse(&text, []).unwrap().bots.remove("b").unwrap()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within 30 s"),
    }
}

async fn ping(link: &RedisLink) -> Result<i64, Away> {
    link.call(&Script::new("return 7").on::<&str>(&[])).await
}

#[tokio::test]
async fn the_link_notices_that_redis_went_away_and_that_it_is_back() {
    let Some((mut server, link)) = private_redis().await else { return };
    assert_eq!(ping(&link).await, Ok(7));
    server.kill9().await.unwrap();
    assert_eq!(ping(&link).await, Err(Away));
    within("away", link.wait_until(false)).await;
    server.start_again().await.unwrap();
    within("back", link.wait_until(true)).await;
    assert_eq!(ping(&link).await, Ok(7));
}

#[tokio::test]
async fn a_redis_that_hangs_is_away_and_costs_later_callers_nothing() {
    let Some((server, link)) = private_redis().await else { return };
    server.suspend().unwrap();
    within("away", link.wait_until(false)).await;
    // Known to be away: the call does not even start. A second of it would be a time-out.
    assert_eq!(timeout(Duration::from_millis(500), ping(&link)).await, Ok(Err(Away)));
    server.resume().unwrap();
    within("back", link.wait_until(true)).await;
}

#[tokio::test]
async fn a_redis_that_is_not_there_at_the_start_is_used_when_it_comes() {
    let Some((mut server, _)) = private_redis().await else { return };
    server.kill9().await.unwrap();
    let link = link_to(&server);
    assert_eq!(within("an answer", ping(&link)).await, Err(Away));
    server.start_again().await.unwrap();
    within("connected", link.wait_until(true)).await;
}

#[tokio::test]
async fn a_key_of_another_kind_harms_only_its_own_caller() {
    let Some((server, link)) = private_redis().await else { return };
    let key = link.key("lease", "b:conv_1");
    let _: () = commands(&server).await.lpush(&key, "x").await.unwrap();
    let lease = lease::acquire(&link, "b", &conversation("conv_1"), Contention::GoOn, &[]).await;
    assert_ne!(lease.hold(), Hold::Held);
    assert!(link.is_here());
    assert_eq!(ping(&link).await, Ok(7));
}

#[tokio::test]
async fn one_holds_the_lease_and_the_other_goes_on_without() {
    let Some((server, link)) = private_redis().await else { return };
    let (other, id) = (second(&server, &link), conversation("conv_1"));
    let held = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    assert_eq!((held.hold(), held.recorded()), (Hold::Held, None));
    let without = lease::acquire(&other, "b", &id, Contention::GoOn, &[]).await;
    assert_eq!(without.hold(), Hold::HeldByAnother);
    let elsewhere = lease::acquire(&other, "b", &conversation("conv_2"), Contention::GoOn, &[]).await;
    assert_eq!(elsewhere.hold(), Hold::Held);
    without.release(Record::Set(&Version::new("\"8\"")), &[]).await;
    let still = lease::acquire(&other, "b", &id, Contention::GoOn, &[]).await;
    assert_eq!(still.hold(), Hold::HeldByAnother, "who had no lease gave none back");
    assert_eq!(still.recorded(), Some(&Version::new("\"8\"")), "but wrote the version");
    held.release(Record::Drop, &[]).await;
    let next = lease::acquire(&other, "b", &id, Contention::GoOn, &[]).await;
    assert_eq!((next.hold(), next.recorded()), (Hold::Held, None));
}

#[tokio::test]
async fn a_lease_is_waited_out_where_nothing_else_guards_the_write() {
    let Some((server, link)) = private_redis().await else { return };
    let (other, id) = (second(&server, &link), conversation("conv_1"));
    let held = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    let waiting = tokio::spawn({
        let id = id.clone();
        async move { lease::acquire(&other, "b", &id, Contention::WaitOut, &[]).await.hold() }
    });
    // Longer than the one who goes on without waits.
    let without = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    assert_eq!(without.hold(), Hold::HeldByAnother);
    assert!(!waiting.is_finished());
    held.release(Record::Keep, &[]).await;
    assert_eq!(within("the lease", waiting).await.unwrap(), Hold::Held);
}

#[tokio::test]
async fn a_held_lease_is_renewed_and_a_lost_one_is_noticed() {
    let Some((server, link)) = private_redis().await else { return };
    let (id, key) = (conversation("conv_1"), link.key("lease", "b:conv_1"));
    let lease = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    let mut redis = commands(&server).await;
    // As if most of its time had passed; only a renewal makes it longer again.
    let _: () = redis.pexpire(&key, 8_000).await.unwrap();
    let working = std::pin::pin!(std::future::pending::<()>());
    let watched = async {
        while redis.pttl::<_, i64>(&key).await.unwrap() < 8_500 {
            tokio::task::yield_now().await;
        }
        let _: () = redis.set(&key, "another's").await.unwrap();
        while !lease.is_lost() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("renewed and lost", async {
        tokio::select! { () = lease.during(working) => {}, () = watched => {} }
    })
    .await;
    lease.release(Record::Keep, &[]).await;
    assert_eq!(redis.get::<_, String>(&key).await.unwrap(), "another's");
}

#[tokio::test]
async fn without_redis_work_goes_on_without_a_lease() {
    let lease = lease::acquire(&RedisLink::absent(), "b", &conversation("conv_1"), Contention::WaitOut, &[]).await;
    assert_eq!(lease.hold(), Hold::RedisAway);
    lease.release(Record::Set(&Version::new("1")), &[]).await;
}

/// The least time that `requests` take at 200 a second with two at once.
const LEAST: fn(u32) -> Duration = |requests| Duration::from_millis(5) * (requests - 2);
const RATE: &str = "requests_per_second = 200\nburst = 2";

#[tokio::test]
async fn two_workers_share_one_budget() {
    let Some((server, link)) = private_redis().await else { return };
    let other = second(&server, &link);
    other.wait_until(true).await;
    let workers = [Limiter::new(&bot(RATE), link, None), Limiter::new(&bot(RATE), other, None)];
    let start = Instant::now();
    let calls = (0..100).map(|number: usize| workers[number % 2].acquire(1));
    futures_util::future::join_all(calls).await;
    assert!(start.elapsed() >= LEAST(100), "{:?}", start.elapsed());
}

#[tokio::test]
async fn changing_over_between_redis_and_the_process_adds_no_budget() {
    let Some((mut server, link)) = private_redis().await else { return };
    let limiter = Limiter::new(&bot(RATE), Arc::clone(&link), None);
    let take = async |number: u32| {
        for _ in 0..number {
            limiter.acquire(1).await;
        }
    };
    let start = Instant::now();
    take(20).await;
    server.kill9().await.unwrap();
    take(20).await;
    assert!(!link.is_here());
    server.start_again().await.unwrap();
    within("back", link.wait_until(true)).await;
    let back = Instant::now();
    take(20).await;
    assert!(back - start >= LEAST(40));
    assert!(back.elapsed() >= LEAST(20));
}

#[tokio::test]
async fn bots_of_one_source_share_its_budget_over_workers_and_without_redis() {
    let Some((server, link)) = private_redis().await else { return };
    let other = second(&server, &link);
    other.wait_until(true).await;
    let bot = |name: &str| {
        format!("[bots.{name}]\nbase_url = \"https://b.example\"\nclient_id = \"i\"\nclient_secret = \"s\"")
    };
    let roomy = "source = \"s\"\nrequests_per_second = 10000\n";
    let settings = format!("{}\n{roomy}{}\n{roomy}[sources.s]\nrequests = 20\nper = \"1s\"", bot("one"), bot("two"));
    let config = Config::parse(&settings, []).unwrap();
    let [one, two] = ["one", "two"].map(|name| &config.bots[name]);
    let limiter = |bot: &config::Bot, sources: &Sources, link: &Arc<RedisLink>| {
        Limiter::new(bot, Arc::clone(link), sources.of(bot))
    };
    let absent = RedisLink::absent();
    let alone = Sources::new(&config, &absent);
    for limiters in [
        [limiter(one, &Sources::new(&config, &link), &link), limiter(two, &Sources::new(&config, &other), &other)],
        [limiter(one, &alone, &absent), limiter(two, &alone, &absent)],
    ] {
        let start = Instant::now();
        futures_util::future::join_all((0..41).map(|number: usize| limiters[number % 2].acquire(1))).await;
        // Two at once, and then one in each nineteenth of a second.
        assert!(start.elapsed() >= Duration::from_micros(39 * 52_632), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_pause_holds_all_workers_and_a_shorter_one_does_not_end_it() {
    let Some((server, link)) = private_redis().await else { return };
    let other = second(&server, &link);
    other.wait_until(true).await;
    let (one, two) = (Limiter::new(&bot(RATE), link, None), Limiter::new(&bot(RATE), other, None));
    let start = Instant::now();
    one.pause(Duration::from_millis(400)).await;
    one.pause(Duration::from_millis(10)).await;
    assert!(one.paused_until().is_some());
    futures_util::future::join(one.acquire(1), two.acquire(1)).await;
    assert!(start.elapsed() >= Duration::from_millis(395), "{:?}", start.elapsed());
    assert_eq!((one.paused_until(), two.paused_until()), (None, None));
}

#[tokio::test]
async fn with_redis_later_jobs_follow_the_earlier_ones_whoever_works() {
    let Some((server, link)) = private_redis().await else { return };
    crate::ladder::tests::later_jobs_follow(&Ladder::new(Arc::clone(&link)), "b").await;
    let ladder = Ladder::new(Arc::clone(&link));
    crate::ladder::tests::a_place_without_a_job_holds_others_up_for_one_round(&ladder, "other").await;
    let (before, after) = (Ladder::new(Arc::clone(&link)), Ladder::new(second(&server, &link)));
    crate::ladder::tests::who_comes_back_together_keeps_the_line(&before, &after, "two").await;
    crate::ladder::tests::who_is_new_stays_behind_who_was_new_before(&after, "three").await;
    crate::ladder::tests::who_waits_on_a_longer_rung_is_not_gone(&ladder, "four").await;
    // Redis knows as little of them as the worker.
    let without = Ladder::new(RedisLink::absent());
    crate::ladder::tests::who_comes_back_brings_the_place_along(&without, &after, "five").await;

    let (one, two) = (Ladder::new(Arc::clone(&link)), Ladder::new(second(&server, &link)));
    let (id, job) = (conversation("conv_2"), |name| JobId::new(name).unwrap());
    one.climb("b", &id, &job("first"), 2, Duration::from_secs(5)).await;
    assert_eq!(two.standings("b", &id, &[(&job("second"), None)]).await[0], Some(2));
    let lease = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    assert!(two.concerns("b", &id, &lease));
    two.step_off("b", &id, &job("first")).await;
    assert_eq!(one.standings("b", &id, &[(&job("second"), None)]).await[0], None, "what the other stepped off is off");
    lease.release(Record::Keep, &[]).await;
    let lease = lease::acquire(&link, "b", &id, Contention::GoOn, &[]).await;
    assert!(!two.concerns("b", &id, &lease));
}

#[tokio::test]
async fn the_line_outlives_the_loss_of_redis() {
    let Some((mut server, link)) = private_redis().await else { return };
    let (ladder, id, job) = (Ladder::new(Arc::clone(&link)), conversation("conv_1"), |name| JobId::new(name).unwrap());
    ladder.climb("b", &id, &job("first"), 0, Duration::from_secs(5)).await;
    server.kill9().await.unwrap();
    within("away", link.wait_until(false)).await;
    assert_eq!(ladder.standings("b", &id, &[(&job("second"), None)]).await[0], Some(0));
    ladder.climb("b", &id, &job("second"), 0, Duration::from_secs(5)).await;
    server.start_again().await.unwrap();
    within("back", link.wait_until(true)).await;
    server.wipe().await.unwrap();
    assert_eq!(
        ladder.standings("b", &id, &[(&job("third"), None)]).await[0],
        Some(0),
        "what was taken in the outage counts on"
    );
    ladder.step_off("b", &id, &job("second")).await;
    assert_eq!(ladder.standings("b", &id, &[(&job("third"), None)]).await[0], None);
}

#[tokio::test]
async fn a_climb_that_reaches_redis_too_late_moves_nobody_back() {
    let Some((mut server, link)) = private_redis().await else { return };
    let (ladder, id, job) = (Ladder::new(Arc::clone(&link)), conversation("conv_1"), |name| JobId::new(name).unwrap());
    let [first, second] = ["first", "second"].map(job);
    server.kill9().await.unwrap();
    within("away", link.wait_until(false)).await;
    for name in [&first, &second] {
        ladder.climb("b", &id, name, 0, Duration::from_secs(5)).await;
    }
    server.start_again().await.unwrap();
    within("back", link.wait_until(true)).await;
    ladder.climb("b", &id, &second, 0, Duration::from_secs(5)).await;
    // The first one's climb, given up in the outage, arrives now: as by somebody who remembers nothing.
    Ladder::new(Arc::clone(&link)).climb("b", &id, &first, 0, Duration::from_secs(5)).await;
    assert_eq!(ladder.standings("b", &id, &[(&second, None)]).await, [Some(0)]);
    assert_eq!(ladder.standings("b", &id, &[(&first, None)]).await, [None]);
    let other = Ladder::new(Arc::clone(&link));
    assert_eq!(other.standings("b", &id, &[(&first, None)]).await, [None], "and Redis knows it now");
    assert_eq!(other.standings("b", &id, &[(&second, None)]).await, [Some(0)]);
}

#[tokio::test]
async fn what_was_taken_without_redis_is_told_when_it_is_back() {
    let Some((mut server, link)) = private_redis().await else { return };
    let (ladder, id, job) = (Ladder::new(Arc::clone(&link)), conversation("conv_1"), |name| JobId::new(name).unwrap());
    let elsewhere = second(&server, &link);
    let other = Ladder::new(Arc::clone(&elsewhere));
    server.kill9().await.unwrap();
    within("away", link.wait_until(false)).await;
    let climbed = ladder.climb("b", &id, &job("first"), 1, Duration::from_secs(5)).await;
    server.start_again().await.unwrap();
    within("back", elsewhere.wait_until(true)).await;
    let seen = async { while other.standings("b", &id, &[(&job("later"), None)]).await != [Some(1)] {} };
    tokio::select! {
        () = ladder.tell_redis_what_it_missed() => unreachable!("it never ends"),
        () = within("a line that the other worker sees", seen) => {}
    }
    // What somebody else knows better stays.
    let again = other.climb("b", &id, &job("first"), 2, Duration::from_secs(5)).await;
    assert_eq!(again.to_string().rsplit(':').next(), climbed.to_string().rsplit(':').next(), "the place is kept");
    assert_eq!(other.standings("b", &id, &[(&job("later"), None)]).await, [Some(2)]);
}

#[tokio::test]
async fn evictions_are_recalled_by_the_count_of_the_ledger() {
    let Some((server, link)) = private_redis().await else { return };
    let id = conversation("conv_1");
    let reach = |evicted, at| LowWater { evicted, at };
    let recall = async |evicted| witness::recall(&link, "b", &id, evicted).await;
    let memory = |text: &str, evicted, since| {
        let marks = text.split(' ').map(|mark| Mark::from_text(mark.to_owned())).collect();
        Some(Evicted::restore(marks, evicted, since))
    };
    assert_eq!(recall(2).await, None);
    witness::record(&link, "b", &id, &["a", "b"], None, reach(2, 100)).await;
    assert_eq!(recall(2).await, memory("a b", 2, None));
    // Two PATCHes are tried from one ledger; either may be the one that gets through.
    witness::record(&link, "b", &id, &["c"], Some(reach(2, 100)), reach(3, 110)).await;
    witness::record(&link, "b", &id, &["c", "d"], Some(reach(2, 100)), reach(4, 110)).await;
    for evicted in [2, 3, 4] {
        assert_eq!(recall(evicted).await, memory("a b c d", evicted, None));
    }
    // Somebody evicted without recording.
    assert_eq!(recall(7).await, None);
    witness::record(&link, "b", &id, &["h"], Some(reach(7, 130)), reach(8, 140)).await;
    assert_eq!(recall(8).await, memory("a b c d h", 8, Some(130)));
    server.wipe().await.unwrap();
    assert_eq!(recall(8).await, None);
}

#[tokio::test]
async fn a_full_memory_lets_the_oldest_evictions_go_and_says_so() {
    let Some((_server, link)) = private_redis().await else { return };
    let id = conversation("conv_1");
    let names = (0..witness::MAX_MARKS).map(|number| format!("m{number:05}")).collect::<Vec<_>>();
    let names = names.iter().map(String::as_str).collect::<Vec<_>>();
    let reach = |evicted, at| Some(LowWater { evicted, at });
    let record = async |marks: &[&str], before, after: Option<LowWater>| {
        witness::record(&link, "b", &id, marks, before, after.unwrap()).await;
    };
    record(&names[..5_000], None, reach(5_000, 100)).await;
    record(&names[5_000..], reach(5_000, 100), reach(10_000, 200)).await;
    let all = witness::recall(&link, "b", &id, 10_000).await.unwrap();
    assert!(all.is_complete(reach(10_000, 200)));
    for number in 0..40 {
        record(&[&format!("more{number}")], reach(10_000 + number, 300), reach(10_001 + number, 300)).await;
    }
    let (all, low) = (witness::recall(&link, "b", &id, 10_040).await.unwrap(), reach(10_040, 300));
    assert_eq!(all.len(), witness::MAX_MARKS);
    let find = |mark: &str| all.find(&Mark::from_text(mark.to_owned()), low);
    assert_eq!((find("m00040"), find("more39")), (Memory::Applied, Memory::Applied));
    assert_eq!(find("m00039"), Memory::NotSince(jiff::Timestamp::from_second(100).unwrap()));
    assert_eq!(witness::recall(&link, "b", &id, 10_001).await, None, "old counts are let go too");
}

#[tokio::test]
async fn a_job_that_comes_to_another_worker_finds_the_verdict_that_it_had() {
    let Some((_redis, one)) = private_redis().await else { return };
    let other = Arc::clone(&one);
    let id = conversation("conv_1");
    let mark = |number: usize| Mark::of_job("b", &id, &JobId::new(&format!("job-{number}")).unwrap());
    let (applied, refused, new) = (mark(1), mark(2), mark(3));
    let not_applied = PastVerdict::NotApplied(2, Reason::TypeMismatch);
    let lease = lease::acquire(&one, "b", &id, Contention::GoOn, &[]).await;
    let place = Place { base: Some(Version::new("41")), follows: Some(new.clone()) };
    let was_applied = PastVerdict::Applied(Some(place));
    lease.release(Record::Keep, &[(&applied, was_applied.clone()), (&refused, not_applied.clone())]).await;
    let lease = lease::acquire(&other, "b", &id, Contention::GoOn, &[&new, &refused, &applied]).await;
    assert_eq!(lease.past_verdict(&applied), Some(&was_applied));
    assert_eq!(lease.past_verdict(&refused), Some(&not_applied));
    assert_eq!(lease.past_verdict(&new), None);
    // Bounded: the older half goes.
    let marks = (10..2_010).map(mark).collect::<Vec<_>>();
    for half in marks.chunks(1_000) {
        let verdicts = half.iter().map(|mark| (mark, PastVerdict::Applied(None))).collect::<Vec<_>>();
        let lease = lease::acquire(&one, "b", &id, Contention::GoOn, &[]).await;
        lease.release(Record::Keep, &verdicts).await;
    }
    let lease = lease::acquire(&other, "b", &id, Contention::GoOn, &[&applied, &marks[1_999]]).await;
    assert_eq!(lease.past_verdict(&applied), None);
    assert_eq!(lease.past_verdict(&marks[1_999]), Some(&PastVerdict::Applied(None)));
}
