//! What the tests share: the servers, settings below a prefix of their own, and waiting on facts with a limit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use context_injector::config::Config;

use crate::world::Servers;

/// No fact may take longer.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A broker that all tests of this run share; they keep apart by prefix.
pub async fn amqp_url() -> &'static str {
    Servers::shared().await.amqp_url()
}

/// A prefix that no other test uses, nor another run on the same broker.
pub fn unique_prefix(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("it-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Settings of one bot and one endpoint; `more` is put in front.
pub fn settings(url: &str, prefix: &str, more: &str) -> String {
    format!(
        "{more}\n[amqp]\nurl = {url:?}\nprefix = {prefix:?}\n\
         [bots.default]\nbase_url = \"https://bot.example\"\nclient_id = \"id\"\nclient_secret = \"secret\"\n\
         [endpoints.analytics]\nurl = \"https://analytics.example\"\nsecret = \"whsec_AAAA\"\n"
    )
}

/// The same, read.
pub fn config(url: &str, prefix: &str, more: &str) -> Config {
    Config::parse(&settings(url, prefix, more), []).expect("settings")
}

/// Waits for something with the limit.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {LIMIT:?}: {what}"),
    }
}
