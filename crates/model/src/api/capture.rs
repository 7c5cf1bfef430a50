//! What is said about captures that are asked for from elsewhere, and pass the control plane.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::{id::CaptureId, name::is_deceptive};

/// Bytes of blocks that a node sends at once, at most.
pub const CAPTURE_BLOCKS_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of one capture, at most, and how many it may have if the request does not say.
pub const CAPTURE_BYTES_MAX: u64 = 1_000_000_000;

/// How long a capture may run, and how long it runs if the request does not say.
pub const CAPTURE_SECONDS_MAX: u64 = 60 * 60;

/// A node that captures tells so at least this often, whether or not packets pass.
pub const CAPTURE_REPORT_SECONDS_MAX: u64 = 2;

/// The longest filter, in bytes.
pub const CAPTURE_FILTER_LENGTH_MAX: usize = 1_000;

/// The longest reason for which a node ends a capture, in bytes.
pub const CAPTURE_REASON_LENGTH_MAX: usize = 300;

/// Header of the reply with the id of the capture.
pub const CAPTURE_ID_HEADER: &str = "ginnel-capture";

/// Trailer of the reply that says why the capture ended: [`CAPTURE_COMPLETE`] or a sentence.
pub const CAPTURE_END_TRAILER: &str = "ginnel-capture-end";

/// The file has all that was asked for.
pub const CAPTURE_COMPLETE: &str = "complete";

/// Captures what passes a node (`POST /v1/nodes/{node}/capture`), with keys that open its datagrams
/// at `/v1/nodes/{node}/capture/keys`. The reply is the file, as it comes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewCapture {
    /// Packets inside the tunnel.
    pub inner: bool,
    /// Datagrams.
    pub outer: bool,
    /// A filter in the language of `ginnel capture`; all packets if absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded_filter"
    )]
    pub filter: Option<String>,
    /// It ends after so long; one hour if absent, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_max: Option<u64>,
    /// It ends after so many packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_max: Option<u64>,
    /// It ends before the file is longer; 1 GB if absent, and at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

/// What becomes of blocks that a node sent (`POST /v1/captures/{capture}/blocks`).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SentBlocks {
    /// Whether they were taken; otherwise whoever asked reads slowly, and they are sent again.
    pub taken: bool,
    /// Whether the node has to end the capture.
    pub end: bool,
}

/// Ends a capture (`POST /v1/captures/{capture}/end`): for the node it has ended, for whoever asked
/// it shall.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct CaptureEnd {
    /// Why the node does not capture any more; absent when the file is whole.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded_reason"
    )]
    pub reason: Option<String>,
}

/// A capture that somebody asked for, as the node is told in its map.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AskedCapture {
    /// Its id.
    pub id: CaptureId,
    /// Who asked, for whoever owns the node.
    pub by: String,
    /// Whether the file has keys that open the datagrams.
    pub keys: bool,
    /// What is wanted.
    #[serde(flatten)]
    pub wanted: NewCapture,
}

fn bounded_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    bounded(deserializer, CAPTURE_FILTER_LENGTH_MAX, "filter")
}

fn bounded_reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    bounded(deserializer, CAPTURE_REASON_LENGTH_MAX, "reason")
}

fn bounded<'de, D: Deserializer<'de>>(
    deserializer: D,
    length_max: usize,
    name: &str,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let is_bad = |text: &String| text.len() > length_max || text.chars().any(is_deceptive);
    if text.as_ref().is_some_and(is_bad) {
        let message = format!("a {name} has at most {length_max} bytes and no control characters");
        return Err(serde::de::Error::custom(message));
    }
    Ok(text)
}
