//! The signed statement of an organisation's CA keys, as `_sshca.internal` publishes it.
//!
//! ```text
//! "v=ginnel-sshca-1" "org=fd..::/48" "version=3"
//! "user=ssh-ed25519 AAAA.." "host=ssh-ed25519 AAAA.." "signature=BASE64"
//! ```
//! The signature covers every string before it, each with a line end. A reader that knows a
//! version takes no lower one, so an old answer cannot bring a retired key back.

use serde::{Deserialize, Serialize};

use super::{CA_KEYS_MAX, CaKeys, PublicKeyText, SignatureText};
use crate::address::OrgPrefix;

/// The CA keys of an organisation, numbered and signed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Statement {
    /// Grows with every change of the keys.
    pub version: u64,
    /// The keys.
    pub keys: CaKeys,
    /// Of [`Statement::message`], by the organisation's signing key.
    pub signature: SignatureText,
}

/// The answer is not a statement of this organisation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedStatement {
    /// It has another form.
    #[error("the answer is not a statement of CA keys")]
    Form,
    /// It has more keys than an organisation may have.
    #[error("the statement has too many keys")]
    TooManyKeys,
    /// It is about another organisation.
    #[error("the statement is of another organisation")]
    OtherOrg,
}

const FORM: &str = "v=ginnel-sshca-1";

/// The longest string of a statement: a key and its label; DNS takes 255 (RFC 1035, 3.3).
const STRING_LENGTH_MAX: usize = 255;

impl Statement {
    /// Returns the bytes that the signature covers.
    #[must_use]
    pub fn message(org: OrgPrefix, version: u64, keys: &CaKeys) -> Vec<u8> {
        let mut message = lines(org, version, keys).join("\n");
        message.push('\n');
        message.into_bytes()
    }

    /// Returns the strings of the TXT record, each of at most 255 bytes.
    #[must_use]
    pub fn to_txt(&self, org: OrgPrefix) -> Vec<String> {
        let mut strings = lines(org, self.version, &self.keys);
        strings.push(format!("signature={}", self.signature));
        strings
    }

    /// Parses the strings of a TXT record. The signature is not verified: the caller does that
    /// over [`Statement::message`] with the key that it trusts.
    ///
    /// # Errors
    /// [`MalformedStatement`] when this is no statement of `org`.
    pub fn from_txt<T: AsRef<str>>(org: OrgPrefix, txt: &[T]) -> Result<Self, MalformedStatement> {
        let mut strings = txt.iter().map(AsRef::as_ref).peekable();
        if strings.next() != Some(FORM) {
            return Err(MalformedStatement::Form);
        }
        let prefix = valued(strings.next(), "org=")?;
        if prefix.parse() != Ok(org) {
            return Err(MalformedStatement::OtherOrg);
        }
        let version = valued(strings.next(), "version=")?;
        let version = version.parse().map_err(|_| MalformedStatement::Form)?;
        let mut keys = |label: &str| {
            let mut keys: Vec<PublicKeyText> = Vec::new();
            while let Some(text) = strings.peek().and_then(|text| text.strip_prefix(label)) {
                if keys.len() == CA_KEYS_MAX {
                    return Err(MalformedStatement::TooManyKeys);
                }
                keys.push(text.parse().map_err(|_| MalformedStatement::Form)?);
                strings.next();
            }
            Ok(keys)
        };
        let keys = CaKeys {
            user: keys("user=")?,
            host: keys("host=")?,
        };
        let signature = valued(strings.next(), "signature=")?;
        let signature = signature.parse().map_err(|_| MalformedStatement::Form)?;
        let statement = Self {
            version,
            keys,
            signature,
        };
        // Whatever is not exactly what we emit is somebody else's.
        let ours = statement.to_txt(org);
        if ours
            .iter()
            .map(String::as_str)
            .eq(txt.iter().map(AsRef::as_ref))
        {
            Ok(statement)
        } else {
            Err(MalformedStatement::Form)
        }
    }
}

fn lines(org: OrgPrefix, version: u64, keys: &CaKeys) -> Vec<String> {
    let mut lines = vec![
        FORM.to_owned(),
        format!("org={org}"),
        format!("version={version}"),
    ];
    lines.extend(keys.user.iter().map(|key| format!("user={key}")));
    lines.extend(keys.host.iter().map(|key| format!("host={key}")));
    debug_assert!(lines.iter().all(|line| line.len() <= STRING_LENGTH_MAX));
    lines
}

fn valued<'a>(text: Option<&'a str>, label: &str) -> Result<&'a str, MalformedStatement> {
    text.and_then(|text| text.strip_prefix(label))
        .ok_or(MalformedStatement::Form)
}
