//! Settings of one webhook receiver.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

use super::reader::Section;
use super::{SecretUrl, show_host};

/// One webhook receiver.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its name: its queue is `context.webhooks.<name>`.
    pub name: String,
    /// What is sent.
    pub kind: EndpointKind,
    /// Where; the address can be a credential.
    pub url: SecretUrl,
    /// Signing secret, `whsec_…` or `whsk_…`, as written (its form is checked by the relay's signature room).
    pub secret: SecretString,
    /// The older secret, which signs too while keys rotate.
    pub previous_secret: Option<SecretString>,
    /// Routing-key patterns of the outcomes that it gets.
    pub events: Vec<String>,
    /// Exceptions from the address filter.
    pub allow_networks: Vec<IpNet>,
    /// Whether `http://` is allowed.
    pub allow_http: bool,
    /// Deadline of a whole try.
    pub timeout: Duration,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Deliveries under way at the same time.
    pub max_in_flight: u16,
    /// Whether events are delivered in the order of their queue: one that fails holds the later ones.
    pub ordered: bool,
    /// Whether other 4xx answers are retried.
    pub retry_client_errors: bool,
    /// Deliveries per second; 0 is no limit.
    pub requests_per_second: u32,
    /// Whether the first bytes of unsuccessful answers are recorded.
    pub record_answers: bool,
    /// Headers sent with every delivery.
    pub headers: BTreeMap<String, SecretString>,
}

/// What is sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    /// The outcome as a signed CloudEvent.
    Webhook,
}

pub(super) fn read(name: &str, section: &Section<'_>) -> Endpoint {
    let secret = section.secret("secret").unwrap_or_else(|| {
        section
            .problem("secret", "(or secret_file) is missing; for example secret = \"whsec_\" and 32 bytes in base64");
        SecretString::from("")
    });
    let endpoint = Endpoint {
        name: name.to_owned(),
        kind: section.choice("kind", &[("webhook", EndpointKind::Webhook)]),
        url: read_url(section),
        secret,
        previous_secret: section.secret("previous_secret"),
        events: section.texts("events"),
        allow_networks: read_networks(section),
        allow_http: section.boolean("allow_http"),
        timeout: section.duration("timeout", Duration::from_millis(10)..=Duration::from_secs(300)),
        connect_timeout: section.duration("connect_timeout", Duration::from_millis(10)..=Duration::from_secs(60)),
        max_in_flight: u16::try_from(section.integer("max_in_flight", 1..=1_000)).unwrap_or(1_000),
        ordered: section.boolean("ordered"),
        retry_client_errors: section.boolean("retry_client_errors"),
        requests_per_second: section.integer("requests_per_second", 0..=100_000),
        record_answers: section.boolean("record_answers"),
        headers: section.secret_map("headers"),
    };
    if endpoint.url.expose().starts_with("http://") && !endpoint.allow_http {
        let host = show_host(endpoint.url.expose());
        section.problem("url", format!("{host}/… begins with http://; use https:// or set allow_http = true"));
    }
    if endpoint.ordered && endpoint.max_in_flight != 1 {
        let text = format!(
            "= true needs max_in_flight = 1 (it is {}): deliveries under way at the same time have no order",
            endpoint.max_in_flight
        );
        section.problem("ordered", text);
    }
    for (name, value) in &endpoint.headers {
        if let Err(error) = crate::relay::headers::parse(name, value) {
            section.problem(&format!("headers.{name}"), error.to_string());
        }
    }
    for pattern in &endpoint.events {
        if let Err(text) = check_pattern(pattern) {
            section.problem("events", format!("{pattern:?} {text}"));
        }
    }
    if endpoint.events.is_empty() {
        section.problem("events", "is empty, so nothing would be sent; [\"#\"] is all outcomes");
    }
    endpoint
}

fn read_url(section: &Section<'_>) -> SecretUrl {
    // Read as a secret: the path often is one.
    match section.secret("url") {
        None => {
            section.problem("url", "is missing; for example url = \"https://analytics.example.com/hooks\"");
            SecretUrl::new("")
        }
        Some(url) => {
            let url = SecretUrl::new(secrecy::ExposeSecret::expose_secret(&url));
            let fits =
                url::Url::parse(url.expose()).is_ok_and(|url| url.has_host() && url.scheme().starts_with("http"));
            if !fits {
                section.problem("url", "is not an address that begins with https:// (it is not shown)");
            }
            url
        }
    }
}

fn read_networks(section: &Section<'_>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in section.texts("allow_networks") {
        match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => section.problem("allow_networks", format!("{text:?} is not a network such as \"10.1.0.0/16\"")),
        }
    }
    networks
}

/// A routing-key pattern over `<bot>.<verdict>`.
fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    let words = pattern.split('.').collect::<Vec<_>>();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !words.iter().all(|word| matches!(*word, "*" | "#") || (!word.is_empty() && word.chars().all(fits))) {
        return Err(
            "is not a routing-key pattern: words of letters, digits, \"-\", \"_\", or \"*\" or \"#\", with dots between",
        );
    }
    if words.len() > 2 && !words.contains(&"#") {
        return Err("can never match: a routing key is <bot>.<verdict>");
    }
    let verdict = words.get(1).filter(|_| words.len() == 2 && words[0] != "#");
    if verdict.is_some_and(|verdict| !matches!(*verdict, "*" | "#" | "applied" | "not_applied" | "unknown")) {
        return Err("can never match: a verdict is applied, not_applied or unknown");
    }
    Ok(())
}
