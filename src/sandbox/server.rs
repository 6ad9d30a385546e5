//! Connections: its own accept loop, so that a connection can really be reset instead of answered.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, IF_MATCH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::answer::{AnswerBody, Reply};
use super::control;
use super::dispatch::{End, Received, Route, serve};
use super::exchange::{Exchange, Head};
use super::faults::{Kind, unknown_fault};
use super::history::Answer;
use super::platform::Platform;

/// Bytes of a request body that are kept; more is read and thrown away, up to [`MAX_READ`].
const MAX_KEPT: usize = 4 << 20;
const MAX_READ: usize = 64 << 20;

/// Before accepting again after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// No answer will come: the connection is closed, or reset.
#[derive(Debug, thiserror::Error)]
#[error("the request is not answered, as the fault says")]
struct NoAnswer;

type Answered = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, NoAnswer>> + Send>>;

/// Accepts connections until the sandbox stops.
pub(super) async fn accept(platform: Arc<Platform>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = platform.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(Arc::clone(&platform), stream);
                platform.tasks.spawn(connection);
            }
            // Out of file descriptors, or the peer has gone already: others may still come.
            Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
        }
    }
}

async fn connection(platform: Arc<Platform>, stream: TcpStream) {
    platform.stats.add(|counts| {
        counts.connections += 1;
        counts.connections_open += 1;
        counts.connections_most = counts.connections_most.max(counts.connections_open);
    });
    if drive(&platform, stream).await.is_err() {
        // The peer went away, or a fault ended the connection: both are in the history.
    }
    platform.stats.add(|counts| counts.connections_open -= 1);
}

async fn drive(platform: &Arc<Platform>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let reset = Arc::new(AtomicBool::new(false));
    let service = {
        let (platform, reset) = (Arc::clone(platform), Arc::clone(&reset));
        service_fn(move |request| -> Answered { Box::pin(answer(Arc::clone(&platform), Arc::clone(&reset), request)) })
    };
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let served = tokio::select! {
        () = platform.stop.cancelled() => return Ok(()),
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => served,
    };
    let mut stream = connection.into_parts().io.into_inner();
    if reset.load(Ordering::Relaxed) {
        return stream.set_zero_linger();
    }
    if served.is_ok() { stream.shutdown().await } else { Ok(()) }
}

async fn answer(
    platform: Arc<Platform>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, NoAnswer> {
    let (head, mut incoming) = request.into_parts();
    let (method, path) = (head.method.as_str(), head.uri.path());
    if path.starts_with(control::PREFIX) {
        let (body, _) = read(&mut incoming).await.ok_or(NoAnswer)?;
        return Ok(control::serve(&platform, method, path, head.uri.query(), &body).into_response());
    }
    let forced = match forced(&head.headers) {
        Ok(forced) => forced,
        Err(text) => return Ok(Reply::json(400, serde_json::json!({ "detail": text }).to_string()).into_response()),
    };
    let route = Route::of(method, path);
    let exchange = Arc::new(Exchange::new(
        platform,
        Head {
            method: Arc::from(method),
            path: path.to_owned(),
            operation: route.operation(),
            v2: route.is_v2(),
            conversation: route.conversation(),
            if_match: text(&head.headers, IF_MATCH.as_str()).map(Arc::from),
            traceparent: text(&head.headers, "traceparent").map(Arc::from),
            authorization: text(&head.headers, AUTHORIZATION.as_str()).map(str::to_owned),
            forced,
        },
    ));
    let waiting = Waiting(Arc::clone(&exchange));
    let Some((body, too_long)) = read(&mut incoming).await else {
        exchange.worked();
        return Err(NoAnswer);
    };
    let received = Received {
        route,
        content_type: text(&head.headers, CONTENT_TYPE.as_str()).map(str::to_owned),
        api_key: text(&head.headers, "x-api-key").map(str::to_owned),
        body,
        too_long,
        patch: None,
    };
    let end = serve(Arc::clone(&exchange), received).await;
    match end {
        End::Answer(response, answer) => {
            waiting.0.end(answer);
            Ok(response)
        }
        End::Reset => {
            waiting.0.end(Answer::Reset);
            reset.store(true, Ordering::Relaxed);
            Err(NoAnswer)
        }
        End::Silence => Err(NoAnswer),
    }
}

/// The client waits for an answer; dropped without one, it went away.
struct Waiting(Arc<Exchange>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.end(Answer::Unanswered);
    }
}

/// The whole body, and whether it was too long to keep; `None` if the client broke off.
async fn read(incoming: &mut Incoming) -> Option<(Bytes, bool)> {
    let mut kept = Vec::new();
    let mut first: Option<Bytes> = None;
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx)).await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        length += data.len();
        if length > MAX_READ {
            return None;
        }
        if length > MAX_KEPT {
            kept = Vec::new();
            first = None;
        } else if first.is_none() && kept.is_empty() {
            first = Some(data);
        } else {
            if let Some(first) = first.take() {
                kept.extend_from_slice(&first);
            }
            kept.extend_from_slice(&data);
        }
    }
    let too_long = length > MAX_KEPT;
    Some((first.unwrap_or_else(|| Bytes::from(kept)), too_long))
}

fn forced(headers: &HeaderMap) -> Result<Vec<Kind>, String> {
    let Some(names) = text(headers, "x-sandbox-fault") else { return Ok(Vec::new()) };
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| Kind::from_name(name).ok_or_else(|| unknown_fault(name))).collect()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
