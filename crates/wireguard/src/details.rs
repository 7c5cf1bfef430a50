//! What is known about one peer, for whoever looks for a fault.

use std::{collections::BTreeMap, time::Instant};

use crate::{
    discard::Discard,
    peer::{Peer, Place},
    timers::Timer,
};

/// How the handshake and the sessions with a peer stand. It holds no key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Details {
    /// Sender index of our initiation that waits for a response.
    pub initiation_index: Option<u32>,
    /// When the last message of a handshake was sent.
    pub handshake_sent: Option<Instant>,
    /// When the running attempt to shake hands began, or was last wanted by a packet.
    pub attempt_began: Option<Instant>,
    /// When the last initiation of the peer was taken.
    pub initiation_received: Option<Instant>,
    /// Whether a preshared key is set.
    pub preshared_key: bool,
    /// At most three: that which seals, that which will, and that which still opens.
    pub sessions: Vec<SessionDetails>,
    /// What becomes due, in no order; timers that are not armed are left out.
    pub timers: Vec<(&'static str, Instant)>,
    /// What was refused of this peer, and packets for it that were not sent.
    pub discards: BTreeMap<Discard, u64>,
}

/// A session (whitepaper 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionDetails {
    /// `current` seals, `next` was made as responder and not confirmed yet, `previous` only opens.
    pub place: &'static str,
    /// Receiver index of datagrams to us.
    pub local_index: u32,
    /// Receiver index of datagrams to the peer.
    pub remote_index: u32,
    /// Whether we began the handshake.
    pub initiator: bool,
    /// When it was made.
    pub created: Instant,
    /// When it ends.
    pub expires: Instant,
    /// Messages that were sealed with it.
    pub sent_messages: u64,
}

impl Details {
    pub(crate) fn of(peer: &Peer) -> Self {
        let hot = peer.hot.as_deref();
        let sessions = [Place::Current, Place::Next, Place::Previous]
            .into_iter()
            .filter_map(|place| {
                let session = hot?.session(place)?;
                Some(session.details(place_name(place)))
            });
        let pending = hot.and_then(|hot| hot.pending.as_ref());
        let timers = peer.timers.armed();
        Self {
            initiation_index: pending.map(|pending| pending.index),
            handshake_sent: peer.handshake_sent,
            attempt_began: peer.attempt_began,
            initiation_received: peer.initiation_received,
            preshared_key: peer.preshared.is_some(),
            sessions: sessions.collect(),
            timers: timers.map(|(timer, at)| (timer_name(timer), at)).collect(),
            discards: peer.discards.clone(),
        }
    }
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::Previous => "previous",
        Place::Current => "current",
        Place::Next => "next",
    }
}

fn timer_name(timer: Timer) -> &'static str {
    match timer {
        Timer::RetransmitHandshake => "retransmit_handshake",
        Timer::SendKeepalive => "send_keepalive",
        Timer::NewHandshake => "new_handshake",
        Timer::ZeroKeyMaterial => "zero_key_material",
        Timer::PersistentKeepalive => "persistent_keepalive",
    }
}
