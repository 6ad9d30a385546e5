//! One writer's chain. Pure.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{canonical, hex};

/// `prevhash` of a writer's first event.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The chain of one writer.
#[derive(Debug)]
pub struct Chain {
    writer: String,
    seq: u64,
    /// The hash of the last event.
    hash: String,
}

impl Chain {
    /// Begins a chain; `writer` names this start of this process and is never used again.
    #[must_use]
    pub fn new(writer: String) -> Self {
        Self { writer, seq: 0, hash: GENESIS.to_owned() }
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

    /// Makes `event` the next link.
    pub fn seal(&mut self, event: &mut Map<String, Value>) {
        self.seq += 1;
        event.remove("hash");
        event.insert("writer".to_owned(), Value::from(self.writer.clone()));
        event.insert("seq".to_owned(), Value::from(self.seq));
        event.insert("prevhash".to_owned(), Value::from(std::mem::take(&mut self.hash)));
        self.hash = hash_without(event);
        event.insert("hash".to_owned(), Value::from(self.hash.clone()));
    }
}

/// The hash that belongs into `event`: lower-case hexadecimal.
#[must_use]
pub fn hash(event: &Map<String, Value>) -> String {
    let mut unhashed = event.clone();
    unhashed.remove("hash");
    hash_without(&unhashed)
}

fn hash_without(unhashed: &Map<String, Value>) -> String {
    hex(&Sha256::digest(canonical::of_object(unhashed).as_bytes()))
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
