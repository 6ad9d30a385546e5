//! The platform's API as fast as it can be: versions, GET, conditional PATCH, token. The sandbox is the faithful
//! one; this one is here to cost as little as possible of the two cores that all share.
//!
//! A conversation exists as soon as somebody names it, empty and at version 1.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::IF_MATCH;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::value::RawValue;
use tokio::net::TcpListener;

/// Where a conversation is read and written.
const CONTEXT: &str = "/api/v1/context";

/// A running stub.
#[derive(Debug)]
pub struct Stub {
    url: String,
    platform: Arc<Platform>,
}

#[derive(Debug, Default)]
struct Platform {
    conversations: Mutex<HashMap<String, Conversation>>,
    requests: AtomicU64,
}

#[derive(Debug)]
struct Conversation {
    version: u64,
    context: HashMap<String, Box<RawValue>>,
    writes: u64,
}

impl Default for Conversation {
    fn default() -> Self {
        Self { version: 1, context: HashMap::new(), writes: 0 }
    }
}

#[derive(serde::Deserialize)]
struct Patch<'a> {
    #[serde(rename = "conversationId")]
    conversation: &'a str,
    #[serde(borrow)]
    context: HashMap<&'a str, &'a RawValue>,
}

#[derive(serde::Serialize)]
struct State<'a> {
    #[serde(rename = "conversationId")]
    conversation: &'a str,
    #[serde(rename = "contextVersion")]
    version: u64,
    context: &'a HashMap<String, Box<RawValue>>,
}

impl Stub {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let platform = Arc::<Platform>::default();
        tokio::spawn(serve(listener, Arc::clone(&platform)));
        Ok(Self { url, platform })
    }

    /// Its address, without path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Reads and writes so far; tokens are not counted.
    pub fn requests(&self) -> u64 {
        self.platform.requests.load(Ordering::Relaxed)
    }

    /// Successful writes of one conversation.
    pub fn writes_of(&self, conversation: &str) -> u64 {
        self.platform.lock().get(conversation).map_or(0, |conversation| conversation.writes)
    }

    /// Forgets all conversations.
    pub fn reset(&self) {
        self.platform.lock().clear();
        self.platform.requests.store(0, Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, platform: Arc<Platform>) {
    while let Ok((stream, _)) = listener.accept().await {
        let platform = Arc::clone(&platform);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(|request| answer(&platform, request));
            // A peer that is killed breaks its connections.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(platform: &Platform, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (status, text) = match (&head.method, head.uri.path()) {
        (&Method::POST, _) => (StatusCode::OK, r#"{"access_token":"t","expires_in":3600}"#.to_owned()),
        (&Method::GET, path) => match path.strip_prefix(CONTEXT).and_then(|rest| rest.strip_prefix('/')) {
            Some(conversation) => platform.read(conversation),
            None => (StatusCode::NOT_FOUND, "{}".to_owned()),
        },
        (&Method::PATCH, CONTEXT) => {
            let version = head.headers.get(IF_MATCH).and_then(|version| version.to_str().ok());
            platform.write(&body, version.and_then(|version| version.parse().ok()))
        }
        _ => (StatusCode::NOT_FOUND, "{}".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

impl Platform {
    fn read(&self, conversation: &str) -> (StatusCode, String) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut conversations = self.lock();
        let found = conversations.entry(conversation.to_owned()).or_default();
        let state = State { conversation, version: found.version, context: &found.context };
        (StatusCode::OK, serde_json::to_string(&state).unwrap_or_default())
    }

    fn write(&self, body: &[u8], if_match: Option<u64>) -> (StatusCode, String) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let Ok(patch) = serde_json::from_slice::<Patch<'_>>(body) else {
            return (StatusCode::BAD_REQUEST, "{}".to_owned());
        };
        let mut conversations = self.lock();
        if !conversations.contains_key(patch.conversation) {
            conversations.insert(patch.conversation.to_owned(), Conversation::default());
        }
        let Some(found) = conversations.get_mut(patch.conversation) else {
            return (StatusCode::NOT_FOUND, "{}".to_owned());
        };
        if if_match != Some(found.version) {
            return (StatusCode::CONFLICT, "{}".to_owned());
        }
        found.version += 1;
        found.writes += 1;
        for (key, value) in patch.context {
            found.context.insert(key.to_owned(), value.to_owned());
        }
        (StatusCode::OK, format!(r#"{{"contextVersion":{}}}"#, found.version))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Conversation>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
