//! The promises of the line, for one with and one without Redis.

use super::climb::NoClimb;
use super::*;

fn job(name: &str) -> JobId {
    JobId::new(name).unwrap()
}

fn conversation() -> ConversationId {
    ConversationId::new("conv_1", &regex::Regex::new("^conv_[0-9a-f]+$").unwrap()).unwrap()
}

const STAY: Duration = Duration::from_secs(5);

/// The promise, for a ladder with or without Redis.
pub(crate) async fn later_jobs_follow(ladder: &Ladder, bot: &str) {
    let conversation = &conversation();
    let standing = async |name: &str| ladder.standings(bot, conversation, &[(&job(name), None)]).await[0];
    let climb = async |name: &str, rung| ladder.climb(bot, conversation, &job(name), rung, STAY).await;
    assert_eq!(standing("first").await, None);
    climb("first", 0).await;
    assert_eq!(standing("first").await, None, "nobody is before the first, after a redelivery too");
    assert_eq!(standing("second").await, Some(0));
    climb("second", 0).await;
    climb("first", 1).await;
    assert_eq!(standing("first").await, None, "it kept its place");
    assert_eq!(standing("second").await, Some(1), "follows the first onto its new rung");
    assert_eq!(standing("third").await, Some(0), "follows the second, which is right before it");
    climb("third", 0).await;
    let names = ["first", "second", "third", "fresh"].map(job);
    let together = names.each_ref().map(|job| (job, None));
    assert_eq!(ladder.standings(bot, conversation, &together).await, [None; 4], "together they keep their order");
    let together = [&names[1], &names[0], &names[2], &names[3]].map(|job| (job, None));
    let follow = ladder.standings(bot, conversation, &together).await;
    assert_eq!(follow, [Some(1), None, Some(1), Some(1)], "each goes where the one right before it goes");
    ladder.step_off(bot, conversation, &job("third")).await;
    ladder.step_off(bot, conversation, &job("first")).await;
    assert_eq!(standing("second").await, None);
    ladder.step_off(bot, conversation, &job("second")).await;
    assert_eq!(standing("third").await, None);
}

/// The promise about places that nobody gives back, for a ladder with or without Redis.
pub(crate) async fn a_place_without_a_job_holds_others_up_for_one_round(ladder: &Ladder, bot: &str) {
    let conversation = &conversation();
    let standing = async |name: &str, climbed| ladder.standings(bot, conversation, &[(&job(name), climbed)]).await[0];
    let climb = async |name: &str| ladder.climb(bot, conversation, &job(name), 1, STAY).await;
    climb("gone").await;
    assert_eq!(standing("second", None).await, Some(1), "it may still come");
    let climbed = climb("second").await;
    assert_eq!(standing("second", None).await, Some(1), "redelivered, it was on no rung");
    assert_eq!(standing("third", None).await, Some(1));
    let third = climb("third").await;
    assert_eq!(standing("second", Some(climbed)).await, None, "whoever was before it came back before it, or is gone");
    // Climbs are told apart by the millisecond.
    while climb("second").await.since <= third.since {}
    assert_eq!(standing("third", Some(third)).await, Some(1), "the second has climbed again");
}

/// The promise about jobs that come back together, perhaps to another worker than the one that they left.
pub(crate) async fn who_comes_back_together_keeps_the_line(before: &Ladder, after: &Ladder, bot: &str) {
    let conversation = &conversation();
    let names = ["first", "second", "third"].map(job);
    let climb = async |ladder: &Ladder, name, rung| ladder.climb(bot, conversation, name, rung, STAY).await;
    let mut climbed = Vec::new();
    for name in &names {
        climbed.push(climb(before, name, 0).await);
    }
    // Climbs are told apart by the millisecond.
    while climb(before, &names[0], 1).await.since <= climbed[2].since {}
    let together = [1, 2].map(|at| (&names[at], Some(climbed[at])));
    let fresh = job("fresh");
    let batch = [together[0], together[1], (&fresh, None)];
    assert_eq!(after.standings(bot, conversation, &batch).await, [Some(1); 3]);
    for name in [&names[1], &names[2], &fresh] {
        climb(after, name, 1).await;
    }
    // Whoever is asked alone has all that are before it in its way, and nobody else.
    let line = [&names[0], &names[1], &names[2], &fresh];
    for (at, first) in line.into_iter().enumerate() {
        for waits in &line[at + 1..] {
            assert_eq!(after.standings(bot, conversation, &[(waits, None)]).await, [Some(1)], "{waits}");
        }
        assert_eq!(after.standings(bot, conversation, &[(first, None)]).await, [None], "{first}");
        after.step_off(bot, conversation, first).await;
    }
}

/// The promise about new jobs that are taken together with those that were before them.
pub(crate) async fn who_is_new_stays_behind_who_was_new_before(ladder: &Ladder, bot: &str) {
    let conversation = &conversation();
    let [waits, earlier, later] = ["waits", "earlier", "later"].map(job);
    let climbed = ladder.climb(bot, conversation, &waits, 1, STAY).await;
    let batch = [(&earlier, None), (&waits, Some(climbed)), (&later, None)];
    assert_eq!(ladder.standings(bot, conversation, &batch).await, [Some(1), None, Some(1)]);
}

/// The promise about a later job that is back while earlier ones, which climbed before it, are still on a longer rung.
pub(crate) async fn who_waits_on_a_longer_rung_is_not_gone(ladder: &Ladder, bot: &str) {
    let conversation = &conversation();
    let [first, later] = ["first", "later"].map(job);
    let climb = async |name, rung| ladder.climb(bot, conversation, name, rung, STAY).await;
    climb(&first, 1).await;
    // It followed one between them, which was still on the short rung.
    let climbed = climb(&later, 0).await;
    let standing = async |climb| ladder.standings(bot, conversation, &[(&later, Some(climb))]).await[0];
    assert_eq!(standing(climbed).await, Some(1), "the first one is still on its rung");
    let climbed = climb(&later, 1).await;
    assert_eq!(standing(climbed).await, None, "it would have come back before");
}

/// The promise about jobs that come back to a worker which knows nothing of them, and has no Redis that does.
pub(crate) async fn who_comes_back_brings_the_place_along(before: &Ladder, after: &Ladder, bot: &str) {
    let conversation = &conversation();
    let [first, second, fresh] = ["first", "second", "fresh"].map(job);
    let mut climbed = Vec::new();
    for name in [&first, &second] {
        climbed.push(before.climb(bot, conversation, name, 1, STAY).await);
    }
    let batch = [(&fresh, None), (&second, Some(climbed[1])), (&first, Some(climbed[0]))];
    assert_eq!(after.standings(bot, conversation, &batch).await, [Some(1), Some(1), None]);
    let again = after.climb(bot, conversation, &second, 1, STAY).await;
    assert_eq!(again.order, climbed[1].order, "it keeps its place");
    after.step_off(bot, conversation, &first).await;
    assert_eq!(after.standings(bot, conversation, &[(&second, Some(again))]).await, [None]);
    assert_eq!(after.standings(bot, conversation, &[(&fresh, None)]).await, [Some(1)]);
}

#[tokio::test]
async fn without_redis_who_waits_on_a_longer_rung_is_not_gone() {
    who_waits_on_a_longer_rung_is_not_gone(&Ladder::new(RedisLink::absent()), "b").await;
}

#[tokio::test]
async fn without_redis_who_comes_back_brings_the_place_along() {
    let [before, after] = [(); 2].map(|()| Ladder::new(RedisLink::absent()));
    who_comes_back_brings_the_place_along(&before, &after, "b").await;
}

#[test]
fn a_climb_survives_its_message_and_what_is_none_is_none() {
    let climb = Climb { since: 1_795_976_706_852, rung: 2, order: 1_795_976_706_852_378 };
    assert_eq!(climb.to_string().parse(), Ok(climb));
    for text in ["", "1795976706852", "1:2", "1:2:0", "1:2:3:4", "1:-2:3", "1:2:9007199254740992", "a:2:3"] {
        assert_eq!(text.parse::<Climb>(), Err(NoClimb), "{text}");
    }
}

#[tokio::test]
async fn without_redis_who_is_new_stays_behind_who_was_new_before() {
    who_is_new_stays_behind_who_was_new_before(&Ladder::new(RedisLink::absent()), "b").await;
}

#[tokio::test]
async fn without_redis_who_comes_back_together_keeps_the_line() {
    let ladder = Ladder::new(RedisLink::absent());
    who_comes_back_together_keeps_the_line(&ladder, &ladder, "b").await;
}

#[tokio::test]
async fn without_redis_a_place_without_a_job_holds_others_up_for_one_round() {
    a_place_without_a_job_holds_others_up_for_one_round(&Ladder::new(RedisLink::absent()), "b").await;
}

#[tokio::test]
async fn without_redis_later_jobs_follow_the_earlier_ones() {
    later_jobs_follow(&Ladder::new(RedisLink::absent()), "b").await;
}

#[test]
fn a_place_that_nobody_gives_back_expires() {
    let mut line = Line::default();
    line.take(&job("lost"), None, 2, 1_000, Duration::from_micros(500), 1);
    line.forget_expired(1_499);
    assert_eq!(line.before(&job("next"), None, &Judged::new(), false), Some((1_000, 2)));
    line.forget_expired(1_500);
    assert_eq!(line.before(&job("next"), None, &Judged::new(), false), None);
    assert!(!line.is_used(1_500));
}

#[test]
fn places_have_an_order_even_within_a_microsecond() {
    let mut line = Line::default();
    for name in ["a", "b", "c"] {
        line.take(&job(name), None, 0, 1_000, STAY, 1);
    }
    assert_eq!(line.before(&job("c"), None, &Judged::new(), false), Some((1_001, 0)));
    assert_eq!(line.before(&job("b"), None, &Judged::new(), false), Some((1_000, 0)));
}
