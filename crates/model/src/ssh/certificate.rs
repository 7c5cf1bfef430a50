//! Certificates: asking for them, their text, taking them back.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{CaKeys, KeyId, PRINCIPALS_MAX, Principal, PublicKeyText, Recording, Serial, text};
use crate::{
    api::Timestamp,
    id::{NodeId, UserId},
    name::Label,
};

/// A certificate as a line of a `-cert.pub` file, without a comment.
///
/// The text is known to have the form of a certificate of an Ed25519 key; what the certificate
/// says and who signed it is for its reader to verify.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateText(String);

/// The text does not have the form of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a certificate has the form `ssh-ed25519-cert-v01@openssh.com AAAA...`")]
pub struct MalformedCertificate;

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CertificateKind {
    /// A person who logs in.
    User,
    /// A machine that is logged in to.
    Host,
}

/// Asks for a certificate of the person who has signed in (`POST /v1/ssh/user-certificate`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct UserCertificateRequest {
    /// The key; its private half stays on the device.
    #[schema(value_type = String)]
    pub public_key: PublicKeyText,
    /// How long it is to be valid, 60 to 86,400; 3,600 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Whom it is to speak for, at most 16; all that the person's role permits if empty.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded_principals"
    )]
    #[schema(value_type = Vec<String>)]
    pub principals: Vec<Principal>,
}

/// Asks for a certificate of the asking node (`POST /v1/ssh/host-certificate`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct HostCertificateRequest {
    /// The host key; its private half stays on the node.
    #[schema(value_type = String)]
    pub public_key: PublicKeyText,
}

/// A certificate was signed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct IssuedCertificate {
    /// The certificate.
    #[schema(value_type = String)]
    pub certificate: CertificateText,
    /// Its number.
    pub serial: Serial,
    /// Names who asked and the request.
    #[schema(value_type = String)]
    pub key_id: KeyId,
    /// Whom it speaks for.
    #[schema(value_type = Vec<String>)]
    pub principals: Vec<Principal>,
    /// When it begins.
    pub valid_after: Timestamp,
    /// When it ends.
    pub valid_before: Timestamp,
    /// The keys that the organisation trusts now.
    pub keys: CaKeys,
}

/// A certificate as administrators see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Certificate {
    /// Its number.
    pub serial: Serial,
    /// Whom it is for.
    pub kind: CertificateKind,
    /// The organisation.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The person, of a user certificate.
    pub user: Option<UserId>,
    /// The device that asked, or the host.
    pub node: NodeId,
    /// Names who asked and the request.
    #[schema(value_type = String)]
    pub key_id: KeyId,
    /// Whom it speaks for.
    #[schema(value_type = Vec<String>)]
    pub principals: Vec<Principal>,
    /// When it begins.
    pub valid_after: Timestamp,
    /// When it ends.
    pub valid_before: Timestamp,
    /// When it was taken back.
    pub revoked: Option<Timestamp>,
}

/// Names an organisation, in the query; the default one if absent.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuthorityQuery {
    /// The organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub org: Option<Label>,
}

/// The CA of an organisation as its members see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuthorityView {
    /// The organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// Grows with every change of the keys.
    pub version: u64,
    /// Signs what the private DNS says about the keys.
    #[schema(value_type = String)]
    pub signing_key: PublicKeyText,
    /// Which sessions nodes must record.
    pub recording: Recording,
    /// Every trusted key and what it does.
    pub keys: Vec<TrustedKey>,
    /// How many certificates that have not ended are revoked.
    pub revoked: u32,
}

/// One key of a CA.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TrustedKey {
    /// What it certifies.
    pub kind: CertificateKind,
    /// What it does now.
    pub state: KeyState,
    /// The key.
    #[schema(value_type = String)]
    pub public_key: PublicKeyText,
    /// When it was made.
    pub created: Timestamp,
    /// When a retired key is trusted no longer.
    pub trusted_until: Option<Timestamp>,
}

/// What a key of a CA does now.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It signs.
    Current,
    /// It is trusted already and signs after the next step of the rotation.
    Next,
    /// It signs no more, and is trusted until what it signed has ended.
    Retired,
}

/// Takes the next step of a rotation (`POST /v1/ssh/rotation`): makes next keys, or lets the next
/// keys sign.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Rotation {
    /// The organisation; the default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// New keys sign at once and no other is trusted: every certificate ends.
    #[serde(default)]
    pub now: bool,
}

/// Takes certificates back that have not ended (`POST /v1/ssh/revocations`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// One certificate.
    Serial(Serial),
    /// All of one person, in every organisation.
    User(UserId),
    /// All of one node: its host certificates, and what its person asked for on it.
    Node(NodeId),
}

/// Certificates were taken back.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Revoked {
    /// How many; those that had ended or were revoked before do not count.
    pub certificates: u32,
}

/// Says which sessions nodes must record (`PUT /v1/ssh/recording`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewRecording {
    /// The organisation; the default one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Which sessions.
    pub recording: Recording,
}

const ALGORITHM: &str = "ssh-ed25519-cert-v01@openssh.com";

impl CertificateText {
    /// The longest text; what control signs has at most about 6 KiB, most of it principals.
    pub const LENGTH_MAX: usize = 8 * 1024;

    /// Returns the certificate as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CertificateText {
    type Err = MalformedCertificate;

    /// Parses a line of a `-cert.pub` file; the comment is dropped.
    fn from_str(text: &str) -> Result<Self, MalformedCertificate> {
        if text.len() > Self::LENGTH_MAX {
            return Err(MalformedCertificate);
        }
        let mut words = text.split_ascii_whitespace();
        let (algorithm, blob) = (words.next(), words.next().ok_or(MalformedCertificate)?);
        let bytes = STANDARD.decode(blob).map_err(|_| MalformedCertificate)?;
        let length = bytes
            .first_chunk()
            .map(|length| u32::from_be_bytes(*length));
        let named = bytes
            .get(4..)
            .is_some_and(|rest| rest.starts_with(ALGORITHM.as_bytes()));
        let length_fits =
            length.is_some_and(|length| usize::try_from(length) == Ok(ALGORITHM.len()));
        if algorithm == Some(ALGORITHM) && length_fits && named {
            Ok(Self(format!("{ALGORITHM} {blob}")))
        } else {
            Err(MalformedCertificate)
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Retired => "retired",
        })
    }
}

impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Host => "host",
        })
    }
}

text!(CertificateText);

fn bounded_principals<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Principal>, D::Error> {
    let principals = Vec::deserialize(deserializer)?;
    if principals.len() > PRINCIPALS_MAX {
        return Err(serde::de::Error::custom("too many principals"));
    }
    Ok(principals)
}
