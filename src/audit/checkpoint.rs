//! Signed checkpoints: "up to event `seq` this writer's chain ends in `hash`", ed25519 over the canonical form.
//!
//! A checkpoint stands beside the chain, not in it: it is published to the audit stream alone, past the exchange
//! of the outcomes, so that subscribers and webhooks see none and miss no `seq`. One that is lost is covered by
//! the next. The last one of a process that ends in order says `final`: there is nothing after it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Chain, canonical, hex};

/// The `type` of a checkpoint.
pub const TYPE: &str = "context-injector.checkpoint.v1";
/// Namespace of the ids: UUIDv5 of the DNS name `checkpoint.context-injector.invalid`.
const NAMESPACE: Uuid = Uuid::from_u128(0xe98e_992a_8237_530e_be1f_a34e_9230_aae9);

/// A key whose form is wrong; the key is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a private key.
    #[error("is not an ed25519 private key in PEM; `openssl genpkey -algorithm ed25519` makes one (it is not shown)")]
    Private,
    /// Not a public key.
    #[error("is not an ed25519 public key in PEM; `openssl pkey -in KEY -pubout` makes it of the private one")]
    Public,
}

/// Reads a private key (PKCS #8, PEM).
///
/// # Errors
/// [`KeyError::Private`].
pub fn private_key(pem: &str) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(pem.trim()).map_err(|_| KeyError::Private)
}

/// Reads a public key (SPKI, PEM).
///
/// # Errors
/// [`KeyError::Public`].
pub fn public_key(pem: &str) -> Result<VerifyingKey, KeyError> {
    VerifyingKey::from_public_key_pem(pem.trim()).map_err(|_| KeyError::Public)
}

/// A short name of a public key: the first 16 hexadecimal digits of its SHA-256.
#[must_use]
pub fn key_id(key: &VerifyingKey) -> String {
    hex(&Sha256::digest(key.as_bytes()))[..16].to_owned()
}

/// Signs checkpoints.
#[derive(Debug, Clone)]
pub struct Notary {
    /// The private key.
    pub key: SigningKey,
    /// Events from one checkpoint to the next, at least 1.
    pub every: u64,
}

impl Notary {
    /// The checkpoint at the present end of a chain; `count` events came since the one before.
    #[must_use]
    pub fn certify(&self, chain: &Chain, count: u64, last: bool, now: Timestamp) -> Map<String, Value> {
        let (writer, seq) = (chain.writer(), chain.seq());
        let id = Uuid::new_v5(&NAMESPACE, format!("{writer}\0{seq}\0{last}").as_bytes());
        let fields = [
            ("specversion", json!("1.0")),
            ("type", json!(TYPE)),
            ("id", json!(id.to_string())),
            ("source", json!(format!("/writers/{writer}"))),
            ("time", json!(format!("{now:.3}"))),
            ("datacontenttype", json!("application/json")),
            (
                "data",
                json!({ "writer": writer, "seq": seq, "hash": chain.hash(), "count": count, "final": last,
                        "key_id": key_id(&self.key.verifying_key()) }),
            ),
        ];
        let mut event = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>();
        let signature = self.key.sign(canonical::of_object(&event).as_bytes());
        event.insert("signature".to_owned(), json!(STANDARD.encode(signature.to_bytes())));
        event
    }
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose chain.
    pub writer: String,
    /// Up to which event.
    pub seq: u64,
    /// That event's hash.
    pub hash: String,
    /// Whether the writer ended in order, with nothing after it.
    pub last: bool,
    /// Which key signed it.
    pub key_id: String,
}

impl Checkpoint {
    /// Whether an event is a checkpoint, true or not.
    #[must_use]
    pub fn is_one(event: &Map<String, Value>) -> bool {
        event.get("type").and_then(Value::as_str) == Some(TYPE)
    }

    /// What it says; `None` where a member is missing.
    #[must_use]
    pub fn read(event: &Map<String, Value>) -> Option<Self> {
        let data = event.get("data")?;
        let text = |name: &str| data.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            writer: text("writer")?,
            seq: data.get("seq")?.as_u64().filter(|seq| *seq > 0)?,
            hash: text("hash")?,
            last: data.get("final")?.as_bool()?,
            key_id: text("key_id")?,
        })
    }

    /// Whether `key` signed `event`.
    #[must_use]
    pub fn is_signed_by(event: &Map<String, Value>, key: &VerifyingKey) -> bool {
        let mut signed = event.clone();
        let Some(Value::String(signature)) = signed.remove("signature") else { return false };
        let Ok(signature) = STANDARD.decode(signature) else { return false };
        let Ok(signature) = Signature::from_slice(&signature) else { return false };
        key.verify_strict(canonical::of_object(&signed).as_bytes(), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl genpkey -algorithm ed25519`, and `openssl pkey -pubout` of it.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn keys_are_read_as_openssl_writes_them() {
        let (private, public) = (private_key(PRIVATE).unwrap(), public_key(PUBLIC).unwrap());
        // RFC 8032, 7.1, test 1: the key pair.
        assert_eq!(private.verifying_key(), public);
        assert_eq!(hex(public.as_bytes()), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert_eq!(private_key(PUBLIC).unwrap_err(), KeyError::Private);
        assert_eq!(public_key(PRIVATE).unwrap_err(), KeyError::Public);
        assert!(!private_key("hunter2").unwrap_err().to_string().contains("hunter2"));
        assert!(!format!("{private:?}").contains("9d61b19d"), "{private:?}");
    }

    #[test]
    fn a_checkpoint_says_where_the_chain_is_and_any_change_breaks_its_signature() {
        let notary = Notary { key: private_key(PRIVATE).unwrap(), every: 10 };
        let mut chain = Chain::new("w".to_owned());
        chain.seal(|link| link.of(Map::new()));
        let event = notary.certify(&chain, 1, true, "2026-11-23T10:00:00Z".parse().unwrap());
        let said = Checkpoint::read(&event).unwrap();
        assert_eq!((said.writer.as_str(), said.seq, said.last), ("w", 1, true));
        assert_eq!((said.hash.as_str(), said.key_id), (chain.hash(), key_id(&public_key(PUBLIC).unwrap())));
        let key = public_key(PUBLIC).unwrap();
        // As somebody reads it back.
        let event = serde_json::from_str::<Map<_, _>>(&Value::Object(event).to_string()).unwrap();
        assert!(Checkpoint::is_one(&event) && Checkpoint::is_signed_by(&event, &key));
        for (pointer, value) in [("/data/seq", json!(2)), ("/data/final", json!(false)), ("/time", json!("x"))] {
            let mut changed = Value::Object(event.clone());
            *changed.pointer_mut(pointer).unwrap() = value;
            assert!(!Checkpoint::is_signed_by(changed.as_object().unwrap(), &key), "{pointer}");
        }
        let other = SigningKey::from_bytes(&[7; 32]).verifying_key();
        assert!(!Checkpoint::is_signed_by(&event, &other));
    }
}
