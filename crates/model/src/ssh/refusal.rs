//! A login that a node refused, as the node tells the control plane.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{KeyId, Principal, Serial};

/// A login that a node refused (`POST /v1/ssh/refusals`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RefusedLogin {
    /// The account that was asked for, unless no account can have that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub account: Option<Principal>,
    /// From where.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// Why.
    pub reason: Reason,
    /// The number of the certificate, if one was shown; whoever made it chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// The key ID of the certificate, if one of the form of ours was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key_id: Option<KeyId>,
    /// What the node's clock said when the connection ended, in seconds since 1970, where the
    /// reason is a matter of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<u64>,
    /// How many refusals before this one were not told, because they were too many.
    #[serde(default)]
    pub untold: u32,
}

/// Why a node refused a login.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No certificate was shown that can be read.
    NoUsableCertificate,
    /// A password was sent.
    Password,
    /// A key without a certificate.
    RawKey,
    /// Whom the organisation trusts was not known.
    NoAuthority,
    /// A host certificate.
    HostCertificate,
    /// The certificate was signed by a certificate, or certifies one.
    CertificateOfCertificate,
    /// Another CA signed it.
    WrongAuthority,
    /// It certifies a CA's own key.
    KeyOfAuthority,
    /// Signed by an algorithm that is not trusted.
    WeakSignature,
    /// The signature is wrong.
    WrongSignature,
    /// After its time, or before it: the transport does not say which, nor what certificate.
    ExpiredOrNotYetValid,
    /// Before its time.
    NotYetValid,
    /// After its time.
    Expired,
    /// It does not name the account.
    WrongPrincipal,
    /// From elsewhere than it was made for.
    WrongSource,
    /// A critical option that the node does not know.
    UnknownCriticalOption,
    /// No such account.
    NoAccount,
    /// The server cannot become that account.
    OtherAccount,
    /// Taken back.
    Revoked,
    /// No node has the address any more.
    Stranger,
}

impl Reason {
    /// Returns the word that the audit keeps.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoUsableCertificate => "no_usable_certificate",
            Self::Password => "password",
            Self::RawKey => "raw_key",
            Self::NoAuthority => "no_authority",
            Self::HostCertificate => "host_certificate",
            Self::CertificateOfCertificate => "certificate_of_certificate",
            Self::WrongAuthority => "wrong_authority",
            Self::KeyOfAuthority => "key_of_authority",
            Self::WeakSignature => "weak_signature",
            Self::WrongSignature => "wrong_signature",
            Self::ExpiredOrNotYetValid => "expired_or_not_yet_valid",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::WrongPrincipal => "wrong_principal",
            Self::WrongSource => "wrong_source",
            Self::UnknownCriticalOption => "unknown_critical_option",
            Self::NoAccount => "no_account",
            Self::OtherAccount => "other_account",
            Self::Revoked => "revoked",
            Self::Stranger => "stranger",
        }
    }
}

/// As the audit keeps it: words and values without blanks.
impl fmt::Display for RefusedLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.as_str();
        write!(f, "reason:{reason} source:{}", self.source)?;
        if let Some(account) = &self.account {
            write!(f, " account:{account}")?;
        }
        if let Some(serial) = self.serial {
            write!(f, " serial:{serial}")?;
        }
        if let Some(key_id) = &self.key_id {
            write!(f, " key_id:{key_id}")?;
        }
        if let Some(clock) = self.clock {
            write!(f, " clock:{clock}")?;
        }
        match self.untold {
            0 => Ok(()),
            untold => write!(f, " untold:{untold}"),
        }
    }
}
