//! Recorded sessions: who did what where, and the record in pieces (asciicast v2).

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::{Principal, Serial};
use crate::{
    api::Timestamp,
    id::{NodeId, SessionId, UserId},
    name::Label,
};

/// Bytes of one piece of a record, at most.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one record, at most; a session that would need more ends.
pub const RECORD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of a command line in the list of sessions; the rest is cut.
pub const COMMAND_BYTES_MAX: usize = 1_024;

/// Pieces that one request reads, at most.
pub const PIECES_MAX: u32 = 16;

/// Begins the record of a session (`POST /v1/ssh/sessions`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewSession {
    /// The certificate that opened it.
    pub serial: Serial,
    /// As which account.
    #[schema(value_type = String)]
    pub account: Principal,
    /// From where.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What runs; the login shell if absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded_command"
    )]
    pub command: Option<String>,
}

/// The record of a session was begun.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct BegunSession {
    /// Its id.
    pub id: SessionId,
}

/// The next piece of a record (`POST /v1/ssh/sessions/{session}/pieces`). Sending one again that is
/// there changes nothing.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Piece {
    /// Its number; the first is 0.
    pub number: u32,
    /// The text that follows the pieces before it.
    pub text: String,
}

/// Ends a record (`POST /v1/ssh/sessions/{session}/end`).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SessionEnd {
    /// The exit status; absent when a signal or the other side ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
}

/// A recorded session as administrators see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The organisation.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The node that it was at.
    pub node: NodeId,
    /// The node's name at that time.
    #[schema(value_type = String)]
    pub node_name: Label,
    /// Whose certificate opened it.
    pub user: Option<UserId>,
    /// The person's name.
    #[schema(value_type = Option<String>)]
    pub user_name: Option<Label>,
    /// The certificate.
    pub serial: Serial,
    /// As which account.
    #[schema(value_type = String)]
    pub account: Principal,
    /// From where.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// Whether it had a terminal.
    pub terminal: bool,
    /// What ran; the login shell if absent.
    pub command: Option<String>,
    /// When it began.
    pub begun: Timestamp,
    /// When it ended; absent while it runs, and when its node ended before it could tell.
    pub ended: Option<Timestamp>,
    /// Its exit status.
    pub status: Option<u32>,
    /// Bytes of the record.
    pub bytes: u64,
}

fn bounded_command<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let command = Option::<String>::deserialize(deserializer)?;
    // No program can be given a zero byte (POSIX.1-2017, execve), and no PostgreSQL takes one.
    let is_bad = |command: &String| command.len() > COMMAND_BYTES_MAX || command.contains('\0');
    if command.as_ref().is_some_and(is_bad) {
        return Err(serde::de::Error::custom(
            "the command is too long, or holds a zero byte",
        ));
    }
    Ok(command)
}
