//! The history judges: folded, it is the state, whatever happened.

use std::time::Duration;

use super::*;
use crate::sandbox::history::History;
use crate::sandbox::{Entry, Event, Kind, Rule, SecondWriter, VersionForm, fold};

/// Every fault that leaves a client going, at once.
fn everything() -> Faults {
    let quiet = [Kind::HugeAnswer, Kind::Latency, Kind::TokenRevoked];
    let kinds = Kind::ALL.iter().filter(|kind| !quiet.contains(kind));
    let faults = kinds.fold(Faults::none(), |faults, kind| faults.with(*kind, Rule::probability(0.03)));
    faults.parameters(|parameters| {
        parameters.latency_ms = [0, 3];
        parameters.hang_ms = 20;
        parameters.late_apply_ms = 10;
        parameters.refused_keys = vec!["k3".into()];
        parameters.back = 2;
    })
}

/// Reads, then writes what it read plus one, many times; gives up on nothing.
async fn busy(client: Client, name: usize) {
    for n in 0..60_usize {
        let id = format!("conv_{:x}", (name * 7 + n) % 5);
        let Ok(answer) = client.get(&id).timeout(Duration::from_millis(500)).send().await else { continue };
        let read = match answer.bytes().await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            Err(_) => continue,
        };
        let version = &read["contextVersion"];
        let version = version.as_str().map_or_else(|| version.to_string(), str::to_owned);
        let key = format!("k{}", n % 4);
        let value = if n % 9 == 0 { Value::Null } else { json!({"by": name, "n": n}) };
        let request = client.patch(&id, Some(&version), json!({key: {"value": value, "scope": "user"}}));
        drop(request.timeout(Duration::from_millis(500)).send().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_adds_up_to_the_state_under_concurrent_clients_and_all_faults() {
    let second_writer = SecondWriter { enabled: true, writes_per_second: 300.0, ..SecondWriter::default() };
    let settings =
        Settings { faults: everything(), second_writer, version_form: VersionForm::Opaque, seed: 11, ..settings() };
    let (sandbox, client) = sandbox(settings).await;
    let clients = (0..8).map(|name| tokio::spawn(busy(client.clone(), name)));
    for client in futures_util::future::join_all(clients).await {
        client.unwrap();
    }
    sandbox.set_second_writer(SecondWriter::default());
    sandbox.check_history().unwrap();
    until("every request is over", || sandbox.stats().in_flight == 0).await;
    let entries = sandbox.history();
    let events = |event: Event| entries.iter().filter(|entry| entry.event == event).count();
    assert!(events(Event::Write) > 100 && events(Event::Refused) > 20 && events(Event::Reset) > 0);
    let counts = sandbox.stats();
    for kind in [Kind::AppliedThen500, Kind::LateApply, Kind::ResetAfter, Kind::HangAfter, Kind::StaleRead] {
        assert!(counts.faults.get(kind.name()).is_some_and(|count| *count > 0), "{} never struck", kind.name());
    }
    let applied = entries.iter().filter(|e| e.event == Event::Write && e.request > 0).count();
    assert_eq!(u64::try_from(applied), Ok(counts.writes_applied));
}

#[tokio::test]
async fn a_history_that_misses_or_doubles_a_write_is_refused() {
    let (sandbox, client) = sandbox(settings()).await;
    for n in 0..5 {
        client.set("conv_1", None, "a", json!(n)).await;
    }
    let entries = sandbox.history();
    assert!(fold(&entries).is_ok());
    let without: Vec<&Entry> = entries.iter().filter(|entry| entry.seq != 3).collect();
    assert!(fold(without).unwrap_err().contains("entry 4"));
    let twice: Vec<&Entry> = entries.iter().chain(entries.last()).collect();
    assert!(fold(twice).is_err());
    let mut forged = entries.clone();
    if let Some(change) = forged.get_mut(2).and_then(|entry| entry.changes.first_mut()) {
        change.new = Some(std::sync::Arc::new(json!("forged")));
    }
    assert!(fold(&forged).unwrap_err().contains("old value"));
}

#[tokio::test]
async fn a_full_history_drops_its_oldest_entries_and_counts_them() {
    let (sandbox, client) = sandbox(Settings { history_entries: 3, ..settings() }).await;
    for n in 0..10 {
        client.set("conv_1", None, "a", json!(n)).await;
    }
    let entries = sandbox.history();
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [8, 9, 10]);
    assert_eq!(sandbox.stats().history_dropped, 7);
    assert!(fold(&entries).is_err());
    sandbox.check_history().unwrap();
    assert_eq!(sandbox.history_after(9, 10).0.len(), 1);
    let (none, next) = sandbox.history_after(99, 10);
    assert_eq!((none.len(), next), (0, 99));
    assert_eq!(sandbox.history_after(u64::MAX, 10).0.len(), 0);
}

#[tokio::test]
async fn a_history_is_bounded_in_bytes_too() {
    let (sandbox, client) = sandbox(Settings { history_bytes: 20_000, ..settings() }).await;
    for n in 0..10 {
        client.set("conv_1", None, "a", json!(format!("{n}{}", "x".repeat(5_000)))).await;
    }
    assert_eq!(sandbox.history().len(), 3);
    assert_eq!(sandbox.stats().history_dropped, 7);
}

#[tokio::test]
async fn the_same_seed_and_requests_tell_the_same_story() {
    let mut stories = Vec::new();
    for seed in [5, 5, 6] {
        let timed = [Kind::Latency, Kind::LateApply, Kind::HangBefore, Kind::HangAfter];
        let mut faults = everything().parameters(|parameters| parameters.latency_ms = [0, 0]);
        faults.rules.retain(|kind, _| !timed.contains(kind));
        let (sandbox, client) = sandbox(Settings { faults, seed, ..settings() }).await;
        busy(client, 1).await;
        let told = |entry: &Entry| (entry.event, entry.version_after, entry.faults.clone(), entry.answer);
        stories.push(sandbox.history().iter().map(told).collect::<Vec<_>>());
    }
    assert!(stories[0].len() > 20);
    assert_eq!(stories[0], stories[1]);
    assert_ne!(stories[0], stories[2]);
}

#[test]
fn an_empty_history_has_nothing_after_anything() {
    let history = History::new(10, 1000);
    assert_eq!(history.after(0, 5).0.len(), 0);
}
