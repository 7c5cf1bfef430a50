//! SSH in an organisation: who certifies whom, what is certified, what was taken back.
//!
//! Certificates are OpenSSH's (PROTOCOL.certkeys), all keys Ed25519. No private key and no
//! computation with keys stands here: control signs, nodes and clients verify.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv6Addr,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use certificate::{
    AuthorityQuery, AuthorityView, Certificate, CertificateKind, CertificateText,
    HostCertificateRequest, IssuedCertificate, KeyState, MalformedCertificate, NewRecording,
    Revocation, Revoked, Rotation, TrustedKey, UserCertificateRequest,
};
pub use key::{MalformedPublicKey, PublicKeyText, SignatureText};
pub use refusal::{Reason, RefusedLogin};
pub use session::{
    BegunSession, COMMAND_BYTES_MAX, NewSession, PIECE_BYTES_MAX, PIECES_MAX, Piece,
    RECORD_BYTES_MAX, Session, SessionEnd,
};
pub use statement::{MalformedStatement, Statement};

mod certificate;
mod key;
mod refusal;
mod session;
mod statement;
#[cfg(test)]
mod tests;

/// How long a user certificate is valid if the request does not say.
pub const USER_TTL_SECONDS_DEFAULT: u64 = 60 * 60;

/// The shortest that a user certificate is valid.
pub const USER_TTL_SECONDS_MIN: u64 = 60;

/// The longest that a user certificate is valid.
pub const USER_TTL_SECONDS_MAX: u64 = 24 * 60 * 60;

/// How long a host certificate is valid; a node renews it when half of that is over.
pub const HOST_TTL_SECONDS: u64 = 7 * 24 * 60 * 60;

/// How much earlier than now a certificate begins, for clocks that are behind.
pub const BACKDATE_SECONDS: u64 = 30;

/// Most trusted keys of one kind: the current one, the next, and those that rotations retired
/// whose certificates have not all ended. A further rotation is refused.
pub const CA_KEYS_MAX: usize = 4;

/// Most revoked serials in a map, all of certificates that have not ended. A further revocation
/// is refused; retiring the CA at once revokes everything.
pub const REVOKED_MAX: usize = 65_536;

/// Most addresses in a map whose earlier certificates were all taken back. A further one is refused
/// as a further serial is.
pub const CUT_MAX: usize = 65_536;

/// Most principals that a request or a certificate may name.
pub const PRINCIPALS_MAX: usize = 16;

/// Whom an organisation trusts to certify users and hosts, and which certificates it took back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authority {
    /// Signs the statement that the private DNS publishes. A node trusts the one of its map, which
    /// comes from the control plane over TLS.
    pub signing_key: PublicKeyText,
    /// The CA keys with that signature, as `_sshca.internal` answers them.
    pub statement: Statement,
    /// Serials of certificates that are refused although they have not ended, or whose sessions end
    /// although the certificates ended before.
    #[serde(default, deserialize_with = "bounded_serials")]
    pub revoked: BTreeSet<Serial>,
    /// By the address of a node: user certificates up to this serial that were made for it count no
    /// more, however long ago they ended, so that sessions which they began end too.
    #[serde(default, deserialize_with = "bounded_cut")]
    pub cut: BTreeMap<Ipv6Addr, Serial>,
    /// Which sessions a node must record.
    #[serde(default)]
    pub recording: Recording,
}

/// The public keys that certify, by what they certify. The first of each signs; the others are
/// trusted beside it: the next one, then those that were retired.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct CaKeys {
    /// Certify users.
    #[serde(deserialize_with = "bounded_keys")]
    #[schema(value_type = Vec<String>)]
    pub user: Vec<PublicKeyText>,
    /// Certify hosts.
    #[serde(deserialize_with = "bounded_keys")]
    #[schema(value_type = Vec<String>)]
    pub host: Vec<PublicKeyText>,
}

/// Which sessions a node must record, and refuse when it cannot.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recording {
    /// None.
    #[default]
    Off,
    /// Those with a terminal.
    Pty,
    /// Those with a terminal, and commands without one.
    All,
}

/// The number of a certificate, unique in the installation; the first is 1.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(transparent)]
pub struct Serial(pub u64);

/// An account or a host that a certificate speaks for.
///
/// It holds no blank, quote, comma, wildcard or line end, so that it can stand in OpenSSH's files
/// as it is.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Principal(String);

/// What a certificate says about who asked for it; servers write it into their logs.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(String);

/// The text is not a principal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a principal has 1 to 255 letters, digits or `._:@+-` and starts with a letter, a digit or `_`"
)]
pub struct MalformedPrincipal;

/// The text is not a key ID.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key ID has 1 to 255 printable ASCII characters without blanks, quotes and backslashes")]
pub struct MalformedKeyId;

impl Principal {
    /// The longest principal: a host name (RFC 1035, 2.3.4).
    pub const LENGTH_MAX: usize = 255;

    /// Returns the principal as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl KeyId {
    /// The longest key ID that control makes.
    pub const LENGTH_MAX: usize = 255;

    /// Returns the key ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Principal {
    type Err = MalformedPrincipal;

    fn from_str(text: &str) -> Result<Self, MalformedPrincipal> {
        let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let allowed = |byte: u8| first(byte) || b"._:@+-".contains(&byte);
        let well_formed = text.len() <= Self::LENGTH_MAX
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(allowed);
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(MalformedPrincipal)
        }
    }
}

impl FromStr for KeyId {
    type Err = MalformedKeyId;

    fn from_str(text: &str) -> Result<Self, MalformedKeyId> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"'`\\".contains(&byte);
        let well_formed = (1..=Self::LENGTH_MAX).contains(&text.len()) && text.bytes().all(allowed);
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(MalformedKeyId)
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Pty => "pty",
            Self::All => "all",
        })
    }
}

/// A value whose text form is its only form: `Display`, serde and back by `FromStr`.
macro_rules! text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        crate::ssh::key::serde_as_text!($name);
    };
}
use text;

text!(Principal);
text!(KeyId);

fn bounded_keys<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<PublicKeyText>, D::Error> {
    let keys = Vec::deserialize(deserializer)?;
    if keys.len() > CA_KEYS_MAX {
        return Err(serde::de::Error::custom("too many CA keys"));
    }
    Ok(keys)
}

fn bounded_serials<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeSet<Serial>, D::Error> {
    let serials = BTreeSet::deserialize(deserializer)?;
    if serials.len() > REVOKED_MAX {
        return Err(serde::de::Error::custom("too many revoked serials"));
    }
    Ok(serials)
}

fn bounded_cut<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Ipv6Addr, Serial>, D::Error> {
    let cut = BTreeMap::deserialize(deserializer)?;
    if cut.len() > CUT_MAX {
        return Err(serde::de::Error::custom("too many addresses"));
    }
    Ok(cut)
}
