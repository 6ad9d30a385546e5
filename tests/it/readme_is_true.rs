//! What the README tells people to type works as it stands there.

use std::process::Stdio;

use context_injector::config::Config;

use crate::world::{LIMIT, World};

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn every_command_of_the_readme_does_what_it_is_shown_for() {
    let world = World::new().await;
    let run = world.start_run().await;
    world.subscribe().await;
    let programs = world.directory("programs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_context-injector"), programs.join("context-injector")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let admin = run.admin().await;
    assert!(README.contains("context-injector run --config settings.toml"));

    let mut commands = 0;
    for block in blocks("sh") {
        // What builds, what runs for ever, and what CI runs as a step of its own.
        let own =
            |line: &&str| !["cargo ", "make ", "context-injector run "].iter().any(|start| line.starts_with(start));
        let script = block.lines().filter(own).collect::<Vec<_>>().join("\n");
        let script = script.replace("http://127.0.0.1:9464", &admin);
        commands += script.matches("context-injector ").count();
        let mut shell = tokio::process::Command::new("/bin/sh");
        shell.args(["-euc", &script]).env("PATH", &path).env("CONTEXT_INJECTOR_CONFIG", world.settings());
        shell.current_dir(world.settings().parent().unwrap()).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, shell.output()).await.expect("commands that end").unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{}{said}", String::from_utf8_lossy(&output.stdout));
    }
    assert!(commands >= 5, "{commands} commands found in the README");

    world.expect_applied("order-8123-paid").await;
    let greeting = world.value("conv_8a7b9c2d1e3f", "greeting").await;
    assert_eq!(greeting, "Welcome premium user. Your cart contains 149.99.");
}

#[tokio::test]
async fn the_settings_of_the_readme_are_settings() {
    let world = World::bare(None, |_| {}).await;
    let secrets = world.directory("secrets");
    for (name, secret) in [("client_secret", "secret"), ("analytics", crate::world::SECRET)] {
        std::fs::write(secrets.join(name), secret).unwrap();
    }
    let text = blocks("toml").concat().replace("/run/secrets", secrets.to_str().unwrap());
    let config = Config::parse(&text, []).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!((config.bots.len(), config.endpoints.len()), (1, 1));
}

/// The code blocks of one language.
fn blocks(language: &str) -> Vec<&'static str> {
    let start = format!("```{language}\n");
    README.split(start.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}
