//! The audit: its rows, how they are chained by their hashes, and how one asks for them.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::{id::OrgId, name::Label};

/// One change, who made it and when.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuditEntry {
    /// Its id: one more than that of the change before.
    pub id: i64,
    /// When it happened.
    pub time: Timestamp,
    /// Who did it, such as `user:1` or `node:7`.
    pub actor: String,
    /// What was done, such as `node_removed`.
    pub action: String,
    /// To whom, such as `node:7 web`.
    pub subject: String,
    /// The organisation, if it happened in one.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The id of the organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub org_id: Option<OrgId>,
    /// How the row is chained; only operators see it, because it tells of all organisations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<AuditLink>,
}

/// Chains a row to the one before.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuditLink {
    /// The hash of the row before; 32 zeros before the first.
    #[schema(value_type = String)]
    pub previous: AuditHash,
    /// The SHA-256 of `previous` and of [`AuditEntry::content`].
    #[schema(value_type = String)]
    pub hash: AuditHash,
}

/// The ends of the chain.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuditChain {
    /// The id of the last row that was deleted because of its age; zero if none was.
    pub past_id: i64,
    /// The hash of that row; 32 zeros if there is none.
    #[schema(value_type = String)]
    pub past: AuditHash,
    /// The id of the last row.
    pub last_id: i64,
    /// The hash of the last row.
    #[schema(value_type = String)]
    pub last: AuditHash,
}

/// Asks for one page of the audit, in the query.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only what happened in this organisation; all that the asker may see if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Only what this one did: an actor such as `user:1`, or the name of a person or a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Only what is called so, such as `node_removed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Only what happened at this time or later, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// Only what comes after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
    /// How many items at most; 500 if absent or larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The SHA-256 of a row and of all before it, as text in hex.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuditHash(pub [u8; 32]);

/// The text is no hash of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a hash of the audit has 64 hexadecimal digits")]
pub struct MalformedAuditHash;

impl AuditEntry {
    /// Writes what the hash of a row covers after the hash of the row before: id and time as 8
    /// bytes big-endian; actor, action and subject, each behind its length in 8 bytes; the
    /// organisation's id in 8 bytes, zero if there is none.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend(self.id.to_be_bytes());
        content.extend(self.time.0.to_be_bytes());
        for text in [&self.actor, &self.action, &self.subject] {
            let length = u64::try_from(text.len()).expect("a length has at most 64 bits");
            content.extend(length.to_be_bytes());
            content.extend(text.as_bytes());
        }
        let org = self.org_id.map_or(0, |org| org.0);
        content.extend(org.to_be_bytes());
        content
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl FromStr for AuditHash {
    type Err = MalformedAuditHash;

    fn from_str(text: &str) -> Result<Self, MalformedAuditHash> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| MalformedAuditHash)?;
        Ok(Self(bytes.try_into().map_err(|_| MalformedAuditHash)?))
    }
}

impl TryFrom<String> for AuditHash {
    type Error = MalformedAuditHash;

    fn try_from(text: String) -> Result<Self, MalformedAuditHash> {
        text.parse()
    }
}

impl From<AuditHash> for String {
    fn from(hash: AuditHash) -> Self {
        hash.to_string()
    }
}
