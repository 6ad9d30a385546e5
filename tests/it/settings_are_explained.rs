//! A wrong setting is a sentence that names it, its value and what is allowed; secrets are never shown.

use crate::world::{World, run_to_end};

#[tokio::test]
async fn wrong_settings_are_all_named_at_once_with_what_is_allowed() {
    let mut world = World::bare(None, |_| {}).await;
    let (status, output) = world.command(&["config", "check"]).await;
    assert_eq!(status, 0, "{output}");
    world.change_settings(|setup| {
        setup
            .set("bots.default.dialect", "context-v9")
            .set("bots.default.requests_per_secnd", 7)
            .set("bots.default.base_url", "https://bot.example.com/api/v1");
    });
    let (status, output) = world.command(&["config", "check"]).await;
    assert_eq!(status, 2, "{output}");
    for part in ["bots.default.dialect", "context-v9", "cognigy-v2", "requests_per_second", "/api/v1"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    assert!(!output.contains("sandbox-secret"));
    let (status, output) = world.command(&["worker"]).await;
    assert_eq!(status, 2, "a worker does not start with wrong settings: {output}");
}

#[tokio::test]
async fn what_is_in_force_is_shown_without_secrets() {
    let world = World::bare(None, |_| {}).await;
    let (status, output) = world.command(&["config", "show"]).await;
    assert_eq!(status, 0, "{output}");
    assert!(output.contains("client_id") && output.contains("requests_per_second"), "{output}");
    assert!(!output.contains("sandbox-secret") && !output.contains("guest:guest"), "{output}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let (status, output) = run_to_end(&["--config", "/nowhere/settings.toml", "config", "check"], None, &[]).await;
    assert_eq!(status, 2, "{output}");
    assert!(output.contains("/nowhere/settings.toml"), "{output}");
}

#[tokio::test]
async fn a_worker_without_a_bot_says_what_to_set() {
    let mut world = World::bare(None, |_| {}).await;
    world.change_settings(|setup| setup.remove("bots"));
    let (status, output) = world.command(&["worker"]).await;
    assert_ne!(status, 0);
    assert!(output.contains("bots"), "{output}");
}
