//! The audit chain: each outcome event names the hash of the one before it, so that nothing can be taken out,
//! put in or changed without a trace.
//!
//! Every writer (one start of one process) has a chain of its own: `writer`, `seq` from 1 without gaps,
//! `prevhash`, `hash`. The hash is SHA-256 over the event in canonical form ([`canonical`], RFC 8785) without
//! `hash` itself, `prevhash` inside it. The events are CloudEvents, and these are extension attributes of it.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub mod canonical;

/// `prevhash` of a writer's first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The chain of one writer.
#[derive(Debug)]
pub struct Chain {
    writer: String,
    seq: u64,
    prevhash: String,
}

impl Chain {
    /// Begins a chain; `writer` names this start of this process and is never used again.
    #[must_use]
    pub fn new(writer: String) -> Self {
        Self { writer, seq: 0, prevhash: GENESIS.to_owned() }
    }

    /// Makes `event` the next link.
    pub fn seal(&mut self, event: &mut Map<String, Value>) {
        self.seq += 1;
        event.insert("writer".to_owned(), Value::from(self.writer.clone()));
        event.insert("seq".to_owned(), Value::from(self.seq));
        event.insert("prevhash".to_owned(), Value::from(std::mem::take(&mut self.prevhash)));
        let hash = hash(event);
        event.insert("hash".to_owned(), Value::from(hash.clone()));
        self.prevhash = hash;
    }
}

/// The hash that belongs into `event`: lower-case hexadecimal.
#[must_use]
pub fn hash(event: &Map<String, Value>) -> String {
    let mut unhashed = event.clone();
    unhashed.remove("hash");
    let digest = Sha256::digest(canonical::to_string(&Value::Object(unhashed)).as_bytes());
    hex(&digest)
}

/// Bytes as lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
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
        let (mut first, mut second) = (event(json!({"id": "a"})), event(json!({"id": "b"})));
        chain.seal(&mut first);
        chain.seal(&mut second);
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
}
