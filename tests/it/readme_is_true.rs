//! What the README tells people to type works as it stands there.

use std::path::Path;
use std::process::Stdio;

use context_injector::config::Config;
use serde_json::Value;

use crate::world::{LIMIT, World, eventually};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a kind.
fn blocks(kind: &str) -> Vec<String> {
    let fence = format!("\n```{kind}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_settings_that_the_readme_shows_are_settings() {
    let blocks = blocks("toml");
    assert_eq!(blocks.len(), 2);
    let whole = blocks.join("\n").replace("secret_file = \"/run/secrets/analytics\"", "secret = \"whsec_AAAA\"");
    let config = Config::parse(&whole, []).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.bots.len(), config.endpoints.len()), (1, 1));
}

#[tokio::test]
async fn what_the_readme_tells_people_to_type_works() {
    let world = World::new().await;
    // What a line with & at its end starts in the README, runs here already.
    let both = world.start_run().await;
    world.subscribe().await;
    let directory = world.directory("reader");
    std::fs::copy(world.settings(), directory.join("settings.toml")).unwrap();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    std::os::unix::fs::symlink(deploy, directory.join("deploy")).unwrap();
    let admin = both.admin().await;
    let here = |block: &str| {
        let elsewhere = |line: &&str| line.starts_with("make ") || line.starts_with("cargo ") || line.ends_with(" &");
        let lines = block.lines().filter(|line| !elsewhere(line)).collect::<Vec<_>>().join("\n");
        lines
            .replace("http://127.0.0.1:8080", &world.sandbox.url())
            .replace("http://127.0.0.1:9464", &admin)
            .replace("-e context.", &format!("-u {} -e {}.", world.amqp_url, world.prefix))
    };
    let shell = |script: &str| {
        let binary = Path::new(env!("CARGO_BIN_EXE_context-injector"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = tokio::process::Command::new("sh");
        command.args(["-e", "-c", script]).current_dir(&directory).stdin(Stdio::null()).kill_on_drop(true);
        command.env("PATH", format!("{}:{path}", binary.parent().unwrap().display()));
        command.env("CONTEXT_INJECTOR_HEALTH_URL", &admin).env_remove("AMQP_URL").env_remove("REDIS_URL");
        command
    };
    let mut listening = None;
    for block in blocks("sh") {
        let script = here(&block);
        for tool in ["curl", "amqp-publish", "amqp-consume"] {
            if script.contains(tool) && !shell(&format!("{tool} --help")).output().await.unwrap().status.success() {
                eprintln!("SKIPPED: no {tool} on this machine (Debian: apt-get install curl amqp-tools)");
                return;
            }
        }
        if script.contains("amqp-consume") {
            listening = Some(shell(&script).stdout(Stdio::piped()).spawn().unwrap());
            continue;
        }
        let output = tokio::time::timeout(LIMIT, shell(&script).output()).await.expect("commands that end").unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{text}");
    }
    world.expect_applied("order-8123-paid").await;
    world.expect_applied("order-8124-paid").await;
    let greeting = world.value("conv_8a7b9c2d1e3f", "greeting").await;
    assert_eq!(greeting, "Welcome premium user. Your cart contains 149.99.");

    // Until the reader's own subscriber has one, who may have come late.
    let mut listening = listening.expect("the README shows how outcomes are read");
    let mut number = 0;
    eventually(LIMIT, "an outcome that amqp-consume prints", async || {
        number += 1;
        let job = format!(
            r#"{{"job_id": "more-{number}", "conversation_id": "conv_2", "variables": {{"n": {{"value": 1}}}}}}"#
        );
        world.publish_raw(job.as_bytes(), Default::default()).await;
        listening.try_wait().unwrap()
    })
    .await;
    let printed = listening.wait_with_output().await.unwrap().stdout;
    let event: Value = serde_json::from_slice(&printed).unwrap();
    assert_eq!(event["data"]["verdict"], "applied");
}
