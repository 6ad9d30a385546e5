//! A webhook receiver as an analytics platform would run one: it verifies, remembers, and answers as it is told.
//!
//! The verification is written from the specification (Standard Webhooks 1.0: HMAC-SHA256 over
//! `id.timestamp.body`, any of the space-separated `v1,` signatures, five minutes of tolerance) and shares no code
//! with the relay, so that it can judge it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::task::JoinHandle;

mod command;

pub use command::{Args, run};

/// How far the sender's clock may be off, in seconds.
const TOLERANCE_SECONDS: i64 = 300;

/// One try as it arrived.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Header `webhook-id`; empty where there was none.
    pub id: String,
    /// Header `webhook-timestamp` as it came.
    pub timestamp: String,
    /// Header `content-type` as it came.
    pub content_type: String,
    /// What is wrong with the signature, if anything.
    pub fault: Option<&'static str>,
    /// The event; `null` where the body is no JSON.
    pub event: Value,
    /// The status that it was answered with.
    pub answered: u16,
}

/// A running receiver; dropping it stops it.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    key: Vec<u8>,
    deliveries: Mutex<Vec<Delivery>>,
    answers: Mutex<VecDeque<u16>>,
    /// Who is told of each delivery; then none is kept.
    tell: Option<fn(&Delivery)>,
}

impl Receiver {
    /// Listens on a free loopback port and expects signatures by `secret` (`whsec_` and base64).
    ///
    /// # Errors
    /// No port, or a secret of another form.
    pub async fn start(secret: &str) -> std::io::Result<Receiver> {
        Receiver::listen((Ipv4Addr::LOCALHOST, 0).into(), secret, None).await
    }

    async fn listen(address: SocketAddr, secret: &str, tell: Option<fn(&Delivery)>) -> std::io::Result<Receiver> {
        let key = secret.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        let key = key.ok_or_else(|| std::io::Error::other("a receiver's secret is whsec_ and base64"))?;
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { key, deliveries: Mutex::default(), answers: Mutex::default(), tell });
        let router = Router::new().route("/hooks", post(receive)).with_state(Arc::clone(&shared));
        let router = router.route("/livez", get(async || "ok\n"));
        let server = tokio::spawn(async move {
            // It ends only when it is dropped.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Receiver { address, shared, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Everything that arrived, in order.
    #[must_use]
    pub fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.shared.deliveries).clone()
    }

    /// The next tries are answered with these statuses, then with 204 again.
    pub fn answer_next(&self, statuses: &[u16]) {
        lock(&self.shared.answers).extend(statuses);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (id, timestamp) = (text("webhook-id"), text("webhook-timestamp"));
    let now = jiff::Timestamp::now().as_second();
    let fault = verify(&shared.key, &id, &timestamp, &text("webhook-signature"), &body, now).err();
    let told = lock(&shared.answers).pop_front();
    let status = match fault {
        Some(_) => StatusCode::UNAUTHORIZED,
        None => told.and_then(|told| StatusCode::from_u16(told).ok()).unwrap_or(StatusCode::NO_CONTENT),
    };
    let event = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let content_type = text("content-type");
    let delivery = Delivery { id, timestamp, content_type, fault, event, answered: status.as_u16() };
    match shared.tell {
        Some(tell) => tell(&delivery),
        None => lock(&shared.deliveries).push(delivery),
    }
    status
}

fn verify(key: &[u8], id: &str, timestamp: &str, signatures: &str, body: &[u8], now: i64) -> Result<(), &'static str> {
    if id.is_empty() {
        return Err("no webhook-id");
    }
    let sent: i64 = timestamp.parse().map_err(|_| "webhook-timestamp is not a number of seconds")?;
    if (now - sent).abs() > TOLERANCE_SECONDS {
        return Err("webhook-timestamp is more than five minutes off");
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| "the key cannot be used")?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    let fits = |signature: &str| {
        let bytes = signature.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok());
        bytes.is_some_and(|bytes| mac.clone().verify_slice(&bytes).is_ok())
    };
    if signatures.split(' ').any(fits) { Ok(()) } else { Err("no signature fits") }
}

/// A panic in another task leaves the list as it was: it is used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the Standard Webhooks specification's reference libraries.
    const KEY: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn check(id: &str, signature: &str, body: &[u8], now: i64) -> Result<(), &'static str> {
        verify(&STANDARD.decode(KEY).unwrap(), id, "1614265330", signature, body, now)
    }

    #[test]
    fn the_published_example_verifies_also_among_others() {
        assert_eq!(check(ID, SIGNATURE, BODY, 1_614_265_330), Ok(()));
        assert_eq!(check(ID, &format!("v1a,xyz v1,AAAA {SIGNATURE}"), BODY, 1_614_265_330 + 300), Ok(()));
    }

    #[test]
    fn another_id_body_time_or_signature_does_not() {
        assert!(check("msg_other", SIGNATURE, BODY, 1_614_265_330).is_err());
        assert!(check(ID, SIGNATURE, b"{}", 1_614_265_330).is_err());
        assert!(check(ID, "v1,AAAA", BODY, 1_614_265_330).is_err());
        assert!(check(ID, "", BODY, 1_614_265_330).is_err());
        assert!(check(ID, SIGNATURE, BODY, 1_614_265_330 + 301).is_err());
    }
}
