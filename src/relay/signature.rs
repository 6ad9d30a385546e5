//! Signatures of Standard Webhooks 1.0, both sides.
//!
//! What is signed is `id.timestamp.body`, the timestamp in whole Unix seconds. `v1` is HMAC-SHA256 with a shared
//! secret (`whsec_`, 24 to 64 bytes in base64), `v1a` is ed25519 (`whsk_` signs: a seed of 32 bytes or a pair of
//! 64; `whpk_` verifies). While keys rotate, the header carries one signature per key, separated by a space, and a
//! receiver accepts any of them. Source: standard-webhooks.org, specification 1.0.0.
//!
//! Nothing here prints a secret: a wrong one is told by what is wrong with its form.

use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

/// Header with the event's id.
pub const ID_HEADER: &str = "webhook-id";
/// Header with the time of the try, in Unix seconds.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// Header with the signatures.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

/// How far a receiver lets the sender's clock be off, in seconds.
pub const TOLERANCE_SECONDS: u64 = 300;

/// Bytes that a shared secret may have.
const SHARED_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Padding or none: people paste both.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A secret whose form is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It does not begin with a prefix that is known here.
    #[error("does not begin with {0} (it is not shown)")]
    Prefix(&'static str),
    /// What follows the prefix is not base64.
    #[error("has something other than base64 behind {0} (it is not shown)")]
    Encoding(&'static str),
    /// It has the wrong number of bytes.
    #[error("has {found} bytes behind {prefix}, allowed are {allowed}")]
    Length {
        /// The prefix that it has.
        prefix: &'static str,
        /// Its bytes.
        found: usize,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The two halves of a pair do not belong together, or the public key is no point of the curve.
    #[error("is not an ed25519 key: {0}")]
    Key(&'static str),
}

/// One key that signs.
enum SigningKey {
    Shared(Vec<u8>),
    Pair(Box<ed25519_dalek::SigningKey>),
}

impl SigningKey {
    fn parse(text: &str) -> Result<Self, SecretError> {
        if let Some(rest) = text.strip_prefix("whsec_") {
            return Ok(Self::Shared(shared(rest)?));
        }
        if let Some(rest) = text.strip_prefix("whsk_") {
            return Ok(Self::Pair(Box::new(pair(rest)?)));
        }
        Err(SecretError::Prefix("whsec_ or whsk_"))
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        match self {
            Self::Shared(secret) => {
                format!("v1,{}", STANDARD.encode(keyed(secret, id, timestamp, body).finalize().into_bytes()))
            }
            Self::Pair(key) => {
                let signature = key.sign(&signed_content(id, &timestamp.to_string(), body));
                format!("v1a,{}", STANDARD.encode(signature.to_bytes()))
            }
        }
    }
}

/// The keys of one endpoint: the current one, and while they rotate the older one.
pub struct Signer {
    keys: Vec<SigningKey>,
}

impl Signer {
    /// Reads the secrets as the settings have them.
    ///
    /// # Errors
    /// The name of the setting and what is wrong with its form.
    pub fn new(secret: &SecretString, previous: Option<&SecretString>) -> Result<Self, (&'static str, SecretError)> {
        let mut keys = vec![SigningKey::parse(secret.expose_secret()).map_err(|error| ("secret", error))?];
        if let Some(previous) = previous {
            keys.push(SigningKey::parse(previous.expose_secret()).map_err(|error| ("previous_secret", error))?);
        }
        Ok(Self { keys })
    }

    /// The value of [`SIGNATURE_HEADER`]: one signature per key.
    ///
    /// `timestamp` is that of the try, in Unix seconds, and goes into [`TIMESTAMP_HEADER`].
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures = self.keys.iter().map(|key| key.sign(id, timestamp, body));
        signatures.collect::<Vec<_>>().join(" ")
    }

    /// The public keys for the receiver, `whpk_…`, of those keys that have one.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        let public = self.keys.iter().filter_map(|key| match key {
            SigningKey::Shared(_) => None,
            SigningKey::Pair(pair) => Some(format!("whpk_{}", STANDARD.encode(pair.verifying_key().as_bytes()))),
        });
        public.collect()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} keys)", self.keys.len())
    }
}

/// Why a receiver does not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The timestamp is not a whole number of seconds.
    #[error("the webhook-timestamp is not a number of seconds")]
    Timestamp,
    /// The timestamp is further away than [`TOLERANCE_SECONDS`].
    #[error("the webhook-timestamp is more than 5 minutes away from now")]
    Clock,
    /// No signature fits any key.
    #[error("no signature fits")]
    Signature,
}

enum VerifyingSecret {
    Shared(Vec<u8>),
    Public(VerifyingKey),
}

/// The receiver's side.
pub struct Verifier {
    keys: Vec<VerifyingSecret>,
}

impl Verifier {
    /// Reads `whsec_`, `whpk_` or `whsk_` keys.
    ///
    /// # Errors
    /// What is wrong with the form of the first wrong one.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Self, SecretError> {
        let keys = secrets.into_iter().map(|text| {
            if let Some(rest) = text.strip_prefix("whsec_") {
                return Ok(VerifyingSecret::Shared(shared(rest)?));
            }
            if let Some(rest) = text.strip_prefix("whsk_") {
                return Ok(VerifyingSecret::Public(pair(rest)?.verifying_key()));
            }
            let rest = text.strip_prefix("whpk_").ok_or(SecretError::Prefix("whsec_, whpk_ or whsk_"))?;
            let bytes = decode("whpk_", rest)?;
            let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| SecretError::Length {
                prefix: "whpk_",
                found: bytes.len(),
                allowed: "32",
            })?;
            let key = VerifyingKey::from_bytes(&bytes).map_err(|_| SecretError::Key("it is no point of the curve"))?;
            Ok(VerifyingSecret::Public(key))
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>()? })
    }

    /// Checks the three headers against the body. `now` in Unix seconds. Comparison takes the same time wherever
    /// a signature differs.
    ///
    /// # Errors
    /// Why the request is not to be trusted.
    pub fn verify(&self, id: &str, timestamp: &str, signatures: &str, body: &[u8], now: i64) -> Result<(), Rejection> {
        let seconds = timestamp.parse::<i64>().map_err(|_| Rejection::Timestamp)?;
        if seconds.abs_diff(now) > TOLERANCE_SECONDS {
            return Err(Rejection::Clock);
        }
        let content = signed_content(id, timestamp, body);
        let fits = signatures.split(' ').filter_map(|signature| signature.split_once(',')).any(|(version, encoded)| {
            let Ok(signature) = LENIENT.decode(encoded) else { return false };
            self.keys.iter().any(|key| key.fits(version, &signature, &content))
        });
        if fits { Ok(()) } else { Err(Rejection::Signature) }
    }
}

impl VerifyingSecret {
    fn fits(&self, version: &str, signature: &[u8], content: &[u8]) -> bool {
        match (self, version) {
            (Self::Shared(secret), "v1") => {
                let mut mac = mac(secret);
                mac.update(content);
                mac.verify_slice(signature).is_ok()
            }
            (Self::Public(key), "v1a") => {
                Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(content, &signature).is_ok())
            }
            _ => false,
        }
    }
}

/// A fresh shared secret, `whsec_…`, made of `bytes` from a generator that is fit for keys.
#[must_use]
pub fn shared_secret(bytes: &[u8; 32]) -> SecretString {
    SecretString::from(format!("whsec_{}", STANDARD.encode(bytes)))
}

/// A fresh signing key, `whsk_…` (a pair of 64 bytes), from a seed that is fit for keys.
#[must_use]
pub fn pair_secret(seed: &[u8; 32]) -> SecretString {
    let pair = ed25519_dalek::SigningKey::from_bytes(seed).to_keypair_bytes();
    SecretString::from(format!("whsk_{}", STANDARD.encode(pair)))
}

fn decode(prefix: &'static str, text: &str) -> Result<Vec<u8>, SecretError> {
    LENIENT.decode(text).map_err(|_| SecretError::Encoding(prefix))
}

fn shared(text: &str) -> Result<Vec<u8>, SecretError> {
    let bytes = decode("whsec_", text)?;
    if !SHARED_BYTES.contains(&bytes.len()) {
        return Err(SecretError::Length { prefix: "whsec_", found: bytes.len(), allowed: "24 to 64" });
    }
    Ok(bytes)
}

fn pair(text: &str) -> Result<ed25519_dalek::SigningKey, SecretError> {
    let bytes = decode("whsk_", text)?;
    if let Ok(seed) = <[u8; 32]>::try_from(bytes.as_slice()) {
        return Ok(ed25519_dalek::SigningKey::from_bytes(&seed));
    }
    if let Ok(pair) = <[u8; 64]>::try_from(bytes.as_slice()) {
        return ed25519_dalek::SigningKey::from_keypair_bytes(&pair)
            .map_err(|_| SecretError::Key("its two halves do not belong together"));
    }
    Err(SecretError::Length { prefix: "whsk_", found: bytes.len(), allowed: "32 (a seed) or 64 (a pair)" })
}

fn mac(secret: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::unwrap_used, reason = "HMAC takes keys of any length")]
    <Hmac<Sha256> as hmac::Mac>::new_from_slice(secret).unwrap()
}

fn keyed(secret: &[u8], id: &str, timestamp: i64, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = mac(secret);
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(timestamp.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

fn signed_content(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(id.len() + timestamp.len() + body.len() + 2);
    content.extend_from_slice(id.as_bytes());
    content.push(b'.');
    content.extend_from_slice(timestamp.as_bytes());
    content.push(b'.');
    content.extend_from_slice(body);
    content
}

#[cfg(test)]
mod tests;
