//! The control interface.

use super::*;
use crate::sandbox::{Conversations, SecondWriter, Writer};

#[tokio::test]
async fn conversations_are_set_shown_reset_and_deleted() {
    let (sandbox, client) = sandbox(settings()).await;
    assert_eq!(client.control(Method::GET, "health", None).await.0, 200);
    assert_eq!(client.control(Method::GET, "conversations/conv_1", None).await.1["exists"], false);
    let put = json!({"context": {"a": {"value": 1, "scope": "user"}, "b": {"value": "x"}}});
    let (status, view) = client.control(Method::PUT, "conversations/conv_1", Some(put)).await;
    assert_eq!((status, &view["version"], &view["exists"]), (200, &json!(2), &json!(true)));
    assert_eq!(client.read("conv_1").await["context"], view["context"]);
    let (_, list) = client.control(Method::GET, "conversations", None).await;
    assert_eq!(list["conversations"], json!([{"id": "conv_1", "version": 2}]));
    let (_, view) = client.control(Method::POST, "conversations/conv_1/reset", None).await;
    assert_eq!((&view["version"], &view["context"]), (&json!(1), &json!({})));
    assert_eq!(client.control(Method::DELETE, "conversations/conv_1", None).await.0, 204);
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 404);
    assert_eq!(client.control(Method::POST, "conversations/conv_1/reset", None).await.0, 404);
    assert_eq!(client.control(Method::GET, "nothing", None).await.0, 404);
    assert!(sandbox.check_history().is_ok());
}

#[tokio::test]
async fn faults_are_replaced_as_a_whole_and_shown_in_full() {
    let (_sandbox, client) = sandbox(settings()).await;
    let (status, full) = client.control(Method::PUT, "faults", Some(json!({"server_error": 1}))).await;
    assert_eq!((status, &full["server_error"]["probability"]), (200, &json!(1.0)));
    assert_eq!(client.read("conv_1").await["code"], "outage");
    let (status, wrong) = client.control(Method::PUT, "faults", Some(json!({"server_eror": 1}))).await;
    assert_eq!(status, 400);
    assert!(wrong["detail"].as_str().is_some_and(|text| text.contains("server_error")), "{wrong}");
    assert_eq!(client.control(Method::PUT, "faults", Some(json!({}))).await.0, 200);
    assert_eq!(client.get("conv_1").send().await.unwrap().status(), 200);
    let (_, shown) = client.control(Method::GET, "faults", None).await;
    assert_eq!(client.control(Method::PUT, "faults", Some(shown.clone())).await, (200, shown));
}

#[tokio::test]
async fn control_requests_are_neither_limited_nor_counted() {
    let (sandbox, client) = sandbox(Settings { rate: 0.001, burst: 1, ..Settings::default() }).await;
    for _ in 0..50 {
        assert_eq!(client.control(Method::GET, "stats", None).await.0, 200);
    }
    assert_eq!(client.control(Method::POST, "tokens/revoke", None).await.0, 204);
    let counts = sandbox.stats();
    assert_eq!(counts.requests, [("POST 200".to_owned(), 1)].into());
    assert_eq!((counts.requests_per_second_most, counts.in_flight), (0, 0));
}

#[tokio::test]
async fn the_history_is_read_page_by_page() {
    let (_sandbox, client) = sandbox(settings()).await;
    for n in 0..5 {
        client
            .patch("conv_1", None, json!({"a": {"value": n}}))
            .header("traceparent", "00-ab-cd-01")
            .send()
            .await
            .unwrap();
    }
    let (mut after, mut values) = (0, Vec::new());
    loop {
        let (_, page) = client.control(Method::GET, &format!("history?after={after}&limit=2"), None).await;
        let entries: Vec<crate::sandbox::Entry> = serde_json::from_value(page["entries"].clone()).unwrap();
        if entries.is_empty() {
            break;
        }
        assert!(entries.len() <= 2 && entries.iter().all(|entry| entry.traceparent.as_deref() == Some("00-ab-cd-01")));
        values.extend(entries.iter().filter_map(|entry| entry.changes.first()?.new.as_deref().cloned()));
        after = page["next"].as_u64().unwrap();
    }
    assert_eq!(values, (0..5).map(|n| json!(n)).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_second_writer_changes_its_keys_and_no_others() {
    let (sandbox, client) = sandbox(settings()).await;
    for n in 0..4 {
        client.set(&format!("conv_{n}"), None, "ours", json!(n)).await;
    }
    let settings = json!({"enabled": true, "writes_per_second": 2000, "keys": ["theirs", "user.tier"],
        "conversations": "existing"});
    assert_eq!(client.control(Method::PUT, "second-writer", Some(settings)).await.0, 200);
    until("the second writer wrote 100 times", || sandbox.stats().second_writer_writes >= 100).await;
    sandbox.set_second_writer(SecondWriter { enabled: false, ..SecondWriter::default() });
    let entries = sandbox.history();
    let theirs: Vec<_> = entries.iter().filter(|entry| entry.writer == Writer::Second).collect();
    assert!(theirs.len() >= 100);
    let keys: std::collections::BTreeSet<&str> = theirs.iter().flat_map(|e| &e.changes).map(|c| &*c.key).collect();
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["theirs", "tier"]);
    for n in 0..4 {
        let view = sandbox.conversation(&format!("conv_{n}")).unwrap();
        assert_eq!(view.get(crate::sandbox::Scope::Conversation, "ours"), Some(&json!(n)));
    }
    assert!(sandbox.check_history().is_ok());
}

#[tokio::test]
async fn the_second_writer_can_be_held_to_some_conversations() {
    let second_writer = SecondWriter {
        enabled: true,
        writes_per_second: 2000.0,
        conversations: Conversations::These(vec!["conv_a".into()]),
        ..SecondWriter::default()
    };
    let (sandbox, client) = sandbox(Settings { second_writer, ..settings() }).await;
    client.set("conv_b", None, "ours", json!(1)).await;
    until("the second writer wrote", || sandbox.stats().second_writer_writes >= 20).await;
    assert_eq!(sandbox.conversation("conv_b").map(|view| view.version), Some(2));
}

#[tokio::test]
async fn a_dropped_sandbox_closes_its_port_and_its_connections() {
    let (sandbox, client) = sandbox(settings()).await;
    client.read("conv_1").await;
    sandbox.stop().await;
    assert!(client.get("conv_1").send().await.is_err());
}
