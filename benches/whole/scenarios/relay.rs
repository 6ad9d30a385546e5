//! From the publication of an outcome event to its receiver's request, through the relay.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use lapin::options::QueuePurgeOptions;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::load::{Loader, at_random};
use crate::peer::Running;
use crate::report::{Report, Wanted};
use crate::stage::Stage;
use crate::statistics::{millis, percentile};

const EVENTS_PER_SECOND: f64 = 200.0;
const LASTS: Duration = Duration::from_secs(10);
/// The first events are not measured.
const WARM_UP: usize = 200;

pub async fn run(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let (address, mut received) = receiver().await?;
    let endpoint = format!(
        r#"
        [endpoints.bench]
        url = "http://{address}/hook"
        allow_http = true
        allow_networks = ["127.0.0.0/8"]
        secret = "whsec_YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcmstISE="
        "#
    );
    let relay = Running::of_ours(stage, &["relay"], &stage.settings_with(1, 100, 5, &endpoint)?)?;
    relay.ready().await?;
    let channel = stage.publishing.create_channel().await?;
    channel.queue_purge("context.webhooks.bench".into(), QueuePurgeOptions::default()).await?;

    let ids = HashMap::<String, usize>::from_iter((0..).map(event_id).zip(0..5_000));
    let events = at_random(EVENTS_PER_SECOND, LASTS, 3).into_iter().enumerate().map(|(number, at)| (at, event(number)));
    let load = Loader::of_events(&stage.publishing).await?.at_times(events.collect());
    let mut latencies = Vec::new();
    for count in 0..load.sent.len() {
        let next = tokio::time::timeout(Duration::from_secs(30), received.recv()).await;
        let (id, at) = next.with_context(|| relay.log_tail())?.context("the receiver ended")?;
        let sent = ids.get(&id).and_then(|number| load.sent.get(*number)?.get());
        if count >= WARM_UP {
            latencies.push(at.duration_since(*sent.with_context(|| format!("no event {id}"))?));
        }
    }
    load.task.await??;
    drop(relay);
    channel.queue_delete("context.webhooks.bench".into(), Default::default()).await?;

    let latencies = millis(&latencies);
    let at = |share| percentile(&latencies, share);
    let figures = vec![("ms p50", at(0.5)), ("ms p95", at(0.95)), ("ms p99", at(0.99))];
    report.row("event → receiver at 200/s", "relay", figures);
    report.goal("relay p95 event → receiver at 200/s, ms", Wanted::AtMost(20.0), at(0.95));
    Ok(())
}

fn event_id(number: usize) -> String {
    format!("00000000-0000-5000-8000-{number:012x}")
}

/// An event of the usual size.
fn event(number: usize) -> String {
    let (id, hash) = (event_id(number), "ab".repeat(32));
    format!(
        r#"{{"specversion":"1.0","type":"context-injector.outcome.v1","id":"{id}","source":"/bots/default","subject":"conv_8a7b9c2d1e3f","time":"2026-11-23T10:00:00.123Z","datacontenttype":"application/json","writer":"{id}","seq":{number},"prevhash":"{hash}","hash":"{hash}","data":{{"job_id":"b-{number}","bot":"default","conversation_id":"conv_8a7b9c2d1e3f","verdict":"applied","reason":null,"keys":{{"customer_tier":{{"result":"written","scope":"user","bytes":9,"digest":"{hash}"}}}},"version_before":41,"version_after":42,"guarantee":"exactly_once","conflicts":0,"attempts":1,"batch_size":1,"replay_generation":0,"unresolved":[]}}}}"#
    )
}

/// A receiver that answers 200 to everything; its address, and the ids of what it got with their times.
async fn receiver() -> anyhow::Result<(std::net::SocketAddr, mpsc::UnboundedReceiver<(String, Instant)>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (tell, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let service = service_fn(|request: Request<hyper::body::Incoming>| {
                    let id = request.headers().get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
                    let _ = tell.send((id.to_owned(), Instant::now()));
                    async { Ok::<_, Infallible>(Response::new(String::new())) }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok((address, received))
}
