//! One writer's chain. Pure.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{canonical, hex};

/// `prevhash` of a writer's first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The chain of one writer.
#[derive(Debug)]
pub struct Chain {
    writer: Arc<str>,
    seq: u64,
    /// The hash of the last event.
    hash: String,
}

impl Chain {
    /// Begins a chain; `writer` names this start of this process and is never used again.
    #[must_use]
    pub fn new(writer: String) -> Self {
        Self { writer: writer.into(), seq: 0, hash: GENESIS.to_owned() }
    }

    /// Whose chain it is.
    #[must_use]
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Number of its last event; 0 where there is none.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Hash of its last event.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Makes an event the next link, and gives its text. `with` puts the link's members into the event, which gives
    /// all its names in the order of their bytes (a [`Map`] does).
    pub fn seal<E: Serialize>(&mut self, with: impl FnOnce(Link) -> E) -> String {
        self.seq += 1;
        let event = with(Link { prevhash: self.hash.clone(), seq: self.seq, writer: Arc::clone(&self.writer) });
        let canonical = canonical::Text::of(&event);
        self.hash = if canonical.has_plain_names {
            hash_of(&canonical.text)
        } else {
            hash_of(&canonical::to_string(&serde_json::to_value(&event).unwrap_or_default()))
        };
        // Where no number changed its form, what was hashed is the event: it needs not be written a second time.
        let mut text =
            if canonical.is_exact { canonical.text } else { serde_json::to_string(&event).unwrap_or_default() };
        text.truncate(text.len().saturating_sub(1));
        text.push_str(",\"hash\":\"");
        text.push_str(&self.hash);
        text.push_str("\"}");
        text
    }
}

/// What makes an event a link: its place in the chain. `hash` follows from it.
#[derive(Debug, Clone)]
pub struct Link {
    /// Hash of the event before.
    pub prevhash: String,
    /// Number, from 1.
    pub seq: u64,
    /// Whose chain.
    pub writer: Arc<str>,
}

impl Link {
    /// An object as a link.
    #[must_use]
    pub fn of(self, mut object: Map<String, Value>) -> Map<String, Value> {
        object.insert("prevhash".to_owned(), Value::from(self.prevhash));
        object.insert("seq".to_owned(), Value::from(self.seq));
        object.insert("writer".to_owned(), Value::from(&*self.writer));
        object
    }
}

/// The hash that belongs into `event`: lower-case hexadecimal.
#[must_use]
pub fn hash(event: &Map<String, Value>) -> String {
    let mut unhashed = event.clone();
    unhashed.remove("hash");
    hash_of(&canonical::of_object(&unhashed))
}

fn hash_of(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn each_link_holds_the_one_before() {
        let mut chain = Chain::new("w".to_owned());
        let mut seal = |value| event(serde_json::from_str(&chain.seal(|link| link.of(event(value)))).unwrap());
        let (first, mut second) = (seal(json!({"id": "a"})), seal(json!({"id": "b"})));
        assert_eq!((&first["seq"], &second["seq"]), (&json!(1), &json!(2)));
        assert_eq!(first["prevhash"], GENESIS);
        assert_eq!(second["prevhash"], first["hash"]);
        assert_eq!(hash(&second), second["hash"].as_str().unwrap());
        second.insert("id".to_owned(), json!("c"));
        assert_ne!(hash(&second), second["hash"].as_str().unwrap());
    }

    #[test]
    fn the_hash_is_of_the_canonical_form() {
        // printf '{"a":150,"prevhash":"x"}' | sha256sum
        let event = event(serde_json::from_str(r#"{"prevhash": "x", "a": 150.00, "hash": "?"}"#).unwrap());
        let expected = hex(&Sha256::digest(br#"{"a":150,"prevhash":"x"}"#));
        assert_eq!(hash(&event), expected);
    }

    #[test]
    fn what_is_published_is_what_was_sealed_whatever_form_it_has() {
        for number in ["8.4", "0.10", "12345678901234567890", "1e2", "-0"] {
            let before = format!(r#"{{"id": "a", "n": {number}, "t": "\n\u00e9", "\ufb33": {{"\ud83d\ude00": 1}}}}"#);
            let before = event(serde_json::from_str(&before).unwrap());
            let sealed = Chain::new("w".to_owned()).seal(|link| link.of(before.clone()));
            let mut after = event(serde_json::from_str(&sealed).unwrap());
            assert_eq!(after["n"].to_string(), before["n"].to_string());
            assert_eq!(hash(&after), after["hash"].as_str().unwrap());
            let _ = ["hash", "prevhash", "seq", "writer"].map(|name| after.remove(name));
            assert_eq!(after, before);
        }
    }
}
