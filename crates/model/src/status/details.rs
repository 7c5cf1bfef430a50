//! What `ginnel peer show --json` tells about one tunnel.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::Peer;

/// A WireGuard peer with its handshake, sessions and timers. No key of a session is in it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PeerDetails {
    /// What `ginnel status` says too.
    #[serde(flatten)]
    pub peer: Peer,
    /// Whether a preshared key is set.
    pub preshared_key: bool,
    /// How the handshake stands.
    pub handshake: Handshake,
    /// At most three: that which seals, that which will, and that which still opens.
    pub sessions: Vec<Session>,
    /// What becomes due, by name, and in how many milliseconds.
    pub timers_due_ms: BTreeMap<String, u64>,
    /// From where it was heard, the latest first, at most [`HEARD_MAX`].
    pub endpoints: Vec<Heard>,
    /// Packets that wait for a session.
    pub staged_packets: u64,
    /// What was refused in its name, and packets for it that were not sent, by reason.
    pub discards: BTreeMap<String, u64>,
}

/// A handshake with a peer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Handshake {
    /// Sender index of our initiation that waits for a response.
    #[serde(default)]
    pub initiation_index: Option<u32>,
    /// Initiations sent since the last completed handshake.
    pub attempts: u32,
    /// Age of the running attempt.
    #[serde(default)]
    pub attempt_age_ms: Option<u64>,
    /// Age of the last message that we sent.
    #[serde(default)]
    pub sent_age_ms: Option<u64>,
    /// Age of the last initiation that was taken.
    #[serde(default)]
    pub initiation_received_age_ms: Option<u64>,
}

/// A session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Session {
    /// `current` seals, `next` was made as responder and not confirmed yet, `previous` only opens.
    pub place: String,
    /// Receiver index of datagrams to us.
    pub local_index: u32,
    /// Receiver index of datagrams to the peer.
    pub remote_index: u32,
    /// Whether we began the handshake.
    pub initiator: bool,
    /// How old it is.
    pub age_ms: u64,
    /// When it ends.
    pub expires_in_ms: u64,
    /// Messages that were sealed with it.
    pub sent_messages: u64,
}

/// An address that a peer was heard from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Heard {
    /// The address.
    pub endpoint: SocketAddr,
    /// How long ago it was first heard there.
    pub age_seconds: u64,
}

/// So many addresses are remembered of each peer.
pub const HEARD_MAX: usize = 8;
