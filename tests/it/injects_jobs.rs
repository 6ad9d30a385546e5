//! `inject` checks before it publishes, says what is wrong, and can be run again.

use crate::world::World;

#[tokio::test]
async fn good_jobs_are_published_and_bad_ones_are_named_with_their_place() {
    let world = World::new().await;
    let (one, two) = (world.conversation(), world.conversation());
    let lines = [
        format!(r#"{{"job_id": "in-1", "conversation_id": "{one}", "variables": {{"n": {{"op": "increment"}}}}}}"#),
        format!(
            r#"{{"job_id": "in-2", "conversation_id": "{two}", "variables": {{"a": {{"value": 1, "scope": "x"}}}}}}"#
        ),
        r#"{"job_id": "in-3","#.to_owned(),
        format!(r#"{{"job_id": "in-4", "conversation_id": "{two}", "variables": {{"a": {{"value": 2}}}}}}"#),
    ];
    let file = world.directory("jobs").join("jobs.jsonl");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (status, text) = world.command(&["inject", file.to_str().unwrap()]).await;
    assert_eq!(status, 1, "{text}");
    for part in [
        "in-1 published to",
        "in-2 (line 2) refused: invalid_scope at /variables/a/scope",
        "(line 3) refused: malformed_json",
        "in-4 published to",
        "2 published, 2 not.",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(world.ready_messages("jobs.default").await, 2);

    let (status, text) = world.command(&["inject", file.to_str().unwrap(), "--bot", "nobody"]).await;
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("unknown_bot"), "{text}");

    let (status, _) = world.command(&["inject", file.to_str().unwrap()]).await;
    assert_eq!(status, 1);
    world.subscribe().await;
    let _worker = world.start_worker().await;
    world.expect_applied("in-1").await;
    world.expect_applied("in-4").await;
    let last = format!(r#"{{"job_id": "in-5", "conversation_id": "{one}", "variables": {{"z": {{"value": 1}}}}}}"#);
    std::fs::write(&file, last).unwrap();
    let rows = world.json(&["inject", file.to_str().unwrap(), "--json"]).await;
    assert_eq!(rows[0]["result"], "published");
    world.expect_applied("in-5").await;
    assert_eq!(world.value(&one, "n").await.as_i64(), Some(1), "the second run had no further effect");
}
