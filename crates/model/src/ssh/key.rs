//! Ed25519 public keys and signatures in OpenSSH's text (RFC 8709; RFC 4253, 6.6).

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// An Ed25519 public key, written `ssh-ed25519 AAAA…` without a comment.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKeyText(pub [u8; 32]);

/// An Ed25519 signature (RFC 8032), written in base64.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct SignatureText(pub [u8; 64]);

/// The text is not an Ed25519 public key, or not a signature, of OpenSSH's form.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an SSH public key has the form `ssh-ed25519 AAAA...`; other algorithms are not taken")]
pub struct MalformedPublicKey;

const ALGORITHM: &str = "ssh-ed25519";

/// Length of the name and of the key, each before its bytes (RFC 4251, 5).
const BLOB_LENGTH: usize = 4 + ALGORITHM.len() + 4 + 32;

impl PublicKeyText {
    /// Returns the key as it travels on the wire and stands in the text before base64.
    #[must_use]
    pub fn blob(&self) -> Vec<u8> {
        let mut blob = Vec::with_capacity(BLOB_LENGTH);
        blob.extend_from_slice(&[0, 0, 0, 11]);
        blob.extend_from_slice(ALGORITHM.as_bytes());
        blob.extend_from_slice(&[0, 0, 0, 32]);
        blob.extend_from_slice(&self.0);
        blob
    }
}

impl FromStr for PublicKeyText {
    type Err = MalformedPublicKey;

    /// Parses a line of a `.pub` file; the comment is dropped.
    fn from_str(text: &str) -> Result<Self, MalformedPublicKey> {
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(ALGORITHM) {
            return Err(MalformedPublicKey);
        }
        let blob = words.next().ok_or(MalformedPublicKey)?;
        if blob.len() > BLOB_LENGTH.div_ceil(3) * 4 {
            return Err(MalformedPublicKey);
        }
        let blob = STANDARD.decode(blob).map_err(|_| MalformedPublicKey)?;
        let key = blob.last_chunk().ok_or(MalformedPublicKey)?;
        let key = Self(*key);
        if key.blob() == blob {
            Ok(key)
        } else {
            Err(MalformedPublicKey)
        }
    }
}

impl fmt::Display for PublicKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM} {}", STANDARD.encode(self.blob()))
    }
}

impl fmt::Debug for PublicKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKeyText({self})")
    }
}

impl FromStr for SignatureText {
    type Err = MalformedPublicKey;

    fn from_str(text: &str) -> Result<Self, MalformedPublicKey> {
        if text.len() > 88 {
            return Err(MalformedPublicKey);
        }
        let bytes = STANDARD.decode(text).map_err(|_| MalformedPublicKey)?;
        bytes.try_into().map(Self).map_err(|_| MalformedPublicKey)
    }
}

impl fmt::Display for SignatureText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for SignatureText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureText({self})")
    }
}

/// The text form of a value, for serde.
macro_rules! serde_as_text {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <String as serde::Deserialize>::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(super) use serde_as_text;

serde_as_text!(PublicKeyText);
serde_as_text!(SignatureText);
