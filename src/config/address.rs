//! Addresses in settings: what may be shown of them, and what is refused.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::reader::Section;

/// An address that holds credentials: printed as scheme, host and port only.
#[derive(Clone)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    /// Wraps an address.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(SecretString::from(url.into()))
    }

    /// The address with its credentials, for the client alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_host(self.expose()))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Scheme, host and port of an address: what may be printed of it.
#[must_use]
pub fn show_host(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or("(no host)"))
        }
        Err(_) => "(not an address)".to_owned(),
    }
}

/// `base` with `path` behind it.
#[must_use]
pub fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// An `https` address without credentials, query and fragment; `http` where that is allowed.
pub(super) fn read_http_url(section: &Section<'_>, key: &str, example: &str, allow_http: bool) -> Url {
    let text = section.required(key, example);
    let url = match Url::parse(&text) {
        Ok(url) if url.has_host() && matches!(url.scheme(), "http" | "https") => url,
        _ => {
            if !text.is_empty() {
                section.problem(key, format!("{text:?} is not an address such as {example:?}"));
            }
            #[expect(clippy::unwrap_used, reason = "a constant address")]
            return Url::parse("https://invalid.invalid").unwrap();
        }
    };
    if url.scheme() == "http" && !allow_http {
        section.problem(
            key,
            "begins with http://, so tokens would travel in clear text; use https:// or set allow_http = true",
        );
    }
    if !url.username().is_empty() || url.password().is_some() {
        section.problem(key, "holds credentials; they belong into client_id and client_secret (it is not shown)");
    } else if url.query().is_some() || url.fragment().is_some() {
        section.problem(key, format!("{text:?} has a query or fragment; leave it out"));
    }
    url
}
