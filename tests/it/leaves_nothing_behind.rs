//! Whoever starts private servers and is killed leaves neither a process nor a file.

use std::process::Stdio;

use crate::world::{LIMIT, World, eventually};

#[tokio::test]
async fn a_demo_that_is_killed_takes_its_servers_and_files_along() {
    let world = World::bare(None, |_| {}).await;
    let temporary = world.directory("temporary");
    let mut demo = tokio::process::Command::new(env!("CARGO_BIN_EXE_context-injector"))
        .args(["demo", "--input", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo")])
        .env("TMPDIR", &temporary)
        .env_remove("AMQP_URL")
        .env_remove("REDIS_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let temporary = temporary.to_str().unwrap();
    let pid = demo.id().unwrap();
    eventually(LIMIT, "a running broker", async || {
        assert!(demo.try_wait().unwrap().is_none(), "the demo ended by itself");
        mentioning(temporary).iter().any(|name| name.contains("beam") || name.contains("docker run")).then_some(())
    })
    .await;

    demo.start_kill().unwrap();
    demo.wait().await.unwrap();
    eventually(LIMIT, "no process of its own", async || mentioning(temporary).is_empty().then_some(())).await;
    eventually(LIMIT, &format!("an empty directory {temporary}"), async || {
        std::fs::read_dir(temporary).unwrap().next().is_none().then_some(())
    })
    .await;
    if std::env::var_os("RABBITMQ_IMAGE").is_some() {
        eventually(LIMIT, "no container of its own", async || containers_of(pid).is_empty().then_some(())).await;
    }
}

/// The containers that a process has made, running or not.
fn containers_of(pid: u32) -> String {
    let filter = format!("name=^/?context-injector-.*-server-{pid}-");
    let listed = std::process::Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &filter]).output();
    String::from_utf8(listed.unwrap().stdout).unwrap()
}

/// The programs of all processes whose command line or environment names the directory.
fn mentioning(directory: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let (command, environment) = (read("cmdline"), read("environ"));
        let names = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(directory);
        if names(&command) || names(&environment) {
            found.push(String::from_utf8_lossy(&command).replace('\0', " "));
        }
    }
    found
}
