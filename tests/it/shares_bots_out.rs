//! Several bots are shared out over several workers, and a worker that stands still helps itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::world::{LIMIT, Process, Properties, Setup, World, eventually};

const BOTS: [&str; 4] = ["default", "second", "third", "fourth"];

#[tokio::test]
async fn a_worker_that_comes_later_gets_its_share_and_nothing_is_lost_or_doubled() {
    let world = World::with(|setup| {
        let like_the_first = |setup: &mut Setup, name: &str| {
            // Its address is known only when the target is up.
            setup
                .set(&format!("bots.{name}.allow_http"), true)
                .set(&format!("bots.{name}.base_url"), "http://127.0.0.1:1")
                .set(&format!("bots.{name}.client_id"), "sandbox")
                .set(&format!("bots.{name}.client_secret"), "sandbox-secret")
                .set(&format!("bots.{name}.requests_per_second"), 100_000)
                .set(&format!("bots.{name}.burst"), 10_000);
        };
        BOTS[1..].iter().for_each(|name| like_the_first(setup, name));
    })
    .await;
    let mut world = world;
    let url = world.sandbox.url();
    world.change_settings(|setup| {
        for name in &BOTS[1..] {
            setup.set(&format!("bots.{name}.base_url"), url.as_str());
        }
    });
    world.subscribe().await;
    let conversations = BOTS.map(|bot| (bot, world.conversation()));
    let mut published = BTreeMap::<&str, u64>::new();
    let first = world.start_worker().await;
    round(&world, &conversations, &mut published).await;
    eventually(LIMIT, "all bots at the only worker", async || (active(&first).await == 4.0).then_some(())).await;

    let second = world.start_worker().await;
    // The share is in balance when the workers say so of bots that have work.
    eventually(LIMIT, "two bots for each worker", async || {
        round(&world, &conversations, &mut published).await;
        (active(&first).await == 2.0 && active(&second).await == 2.0).then_some(())
    })
    .await;
    for (bot, conversation) in &conversations {
        let count = eventually(LIMIT, "every increment", async || {
            let count = world.value(conversation, "n").await.as_u64();
            (count == published.get(bot).copied()).then_some(count)
        });
        count.await;
    }
    let mut verdicts = BTreeMap::<String, u32>::new();
    for outcome in world.outcomes().await {
        *verdicts.entry(outcome.id().to_owned()).or_default() += 1;
        assert_eq!(outcome.verdict(), "applied", "{}", outcome.event);
    }
    assert_eq!(verdicts.len() as u64, published.values().sum::<u64>());
    assert_eq!(moves(&first) + moves(&second), 2, "no more moves than needed");
}

#[tokio::test]
async fn a_worker_in_which_nothing_moves_makes_its_channel_anew_and_then_ends() {
    let world = World::with(|setup| {
        setup.set("watchdog.rebuild_after", "1s").set("watchdog.exit_after", "3s");
        setup.set("bots.default.request_timeout", "2m");
    })
    .await;
    world.subscribe().await;
    world.faults(json!({"parameters": {"latency_ms": [300_000, 300_000]}})).await;
    let stuck = world.start_worker().await;
    let conversation = world.conversation();
    world
        .publish_job(
            &json!({"job_id": "stuck", "conversation_id": conversation, "variables": {"n": {"op": "increment"}}}),
        )
        .await;
    assert_eq!(stuck.wait_exit().await, 1);
    assert!(stuck.log().contains("work waits and nothing moves; subscribing anew"), "{}", stuck.log());
    world.faults(json!({})).await;
    let _next = world.start_worker().await;
    world.expect_applied("stuck").await;
    assert_eq!(world.value(&conversation, "n").await, 1);
}

/// One more increment for each bot, and its outcome.
async fn round<'a>(world: &World, conversations: &[(&'a str, String)], published: &mut BTreeMap<&'a str, u64>) {
    for (bot, conversation) in conversations {
        let number = published.entry(bot).or_default();
        *number += 1;
        let job: Value = json!({"job_id": format!("{bot}-{number}"), "conversation_id": conversation,
                                "variables": {"n": {"op": "increment"}}});
        world.publish_to(bot, job.to_string().as_bytes(), Properties::default()).await;
    }
    for (bot, _) in conversations {
        world.expect_applied(&format!("{bot}-{}", published[bot])).await;
    }
}

async fn active(worker: &Process) -> f64 {
    worker.metric("context_injector_bots_active", &[]).await
}

fn moves(worker: &Process) -> usize {
    worker.log().matches("another worker may have the queue").count()
}
