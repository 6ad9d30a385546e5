//! An operator sees from outside what a worker does: liveness, readiness, metrics.

use serde_json::json;

use crate::world::{LIMIT, World, eventually};

#[tokio::test]
async fn the_metrics_count_what_was_done() {
    let world = World::new().await;
    let worker = world.start_worker().await;
    for n in 0..5 {
        let job = json!({"job_id": format!("n-{n}"), "conversation_id": world.conversation(),
                         "variables": {"secret_plan": {"value": "of nobody's business"}}});
        world.publish_job(&job).await;
    }
    for n in 0..5 {
        world.expect_applied(&format!("n-{n}")).await;
    }
    let wrong = json!({"job_id": "wrong", "conversation_id": "nobody", "variables": {"a": {"value": 1}}});
    world.publish_job(&wrong).await;
    world.expect_refused("wrong", "invalid_conversation_id").await;

    let applied = [("bot", "default"), ("verdict", "applied")];
    assert_eq!(worker.metric("context_injector_jobs_total", &applied).await, 5.0);
    let refused = [("bot", "default"), ("reason", "invalid_conversation_id")];
    assert_eq!(worker.metric("context_injector_job_reasons_total", &refused).await, 1.0);
    eventually(LIMIT, "a counted dead letter", async || {
        let letters = worker.metric("context_injector_dead_letters_total", &refused).await;
        (letters == 1.0).then_some(())
    })
    .await;
    let stats = world.stats().await;
    for (operation, counted) in [("write", "writes"), ("read", "reads")] {
        let requests = worker.metric("context_injector_requests_total", &[("operation", operation)]).await;
        assert_eq!(Some(requests), stats[counted].as_f64(), "{operation}");
    }
    let (_, page) = worker.page("/metrics").await.unwrap();
    assert!(!page.contains("nobody's business") && !page.contains("conv_"), "no values and no ids: {page}");
    assert!(!worker.log().contains("nobody's business"), "a log never holds values");
}

#[tokio::test]
async fn a_worker_that_drains_is_alive_and_not_ready() {
    let world = World::new().await;
    world.faults(json!({"hang_before": 1})).await;
    let worker = world.start_worker().await;
    assert_eq!(worker.page("/livez").await.map(|(status, _)| status), Some(200));
    let job = json!({"job_id": "hangs", "conversation_id": world.conversation(), "variables": {"a": {"value": 1}}});
    world.publish_job(&job).await;
    eventually(LIMIT, "a request that hangs", async || {
        (world.stats().await["in_flight"].as_u64() >= Some(1)).then_some(())
    })
    .await;
    worker.terminate();
    worker.not_ready_because_of("stop").await;
    assert_eq!(worker.page("/livez").await.map(|(status, _)| status), Some(200));
    worker.terminate();
    worker.wait_exit().await;
    assert!(world.outcomes_of("hangs").await.is_empty(), "nothing is known of it, so nothing is told");
    eventually(LIMIT, "the job back in its queue", async || {
        (world.ready_messages("jobs.default").await == 1).then_some(())
    })
    .await;
}
