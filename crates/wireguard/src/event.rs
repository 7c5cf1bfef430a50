//! What the device tells its caller.

use std::net::SocketAddr;

use crate::{discard::Discard, key::PublicKey, keylog::KeyLog, peer::PeerId};

/// What became of a packet that was to be sealed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seal {
    /// The first `length` bytes of the slot are a datagram for `endpoint`.
    Sealed {
        /// Who can open it.
        peer: PeerId,
        /// Where it goes.
        endpoint: SocketAddr,
        /// Length of the datagram.
        length: usize,
    },
    /// A copy waits for a handshake; the slot is free.
    Staged {
        /// Whom it waits for.
        peer: PeerId,
    },
    /// It will not be sent.
    Discarded(Discard),
}

/// What became of a datagram.
#[derive(Debug, Eq, PartialEq)]
pub enum Received<'d> {
    /// It held an IP packet, trimmed to its own length, whose source the peer may use.
    Packet {
        /// Who sealed it.
        peer: PeerId,
        /// The packet, [`crate::HEADER`] bytes into the datagram's buffer, so that a gateway can
        /// seal it for another peer where it lies.
        packet: &'d mut [u8],
    },
    /// It was a handshake message, a cookie reply or a keepalive, or was answered by a cookie.
    Handled,
    /// It changed nothing; or its inner packet may not pass, although the peer was heard.
    Discarded(Discard),
}

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// For whom; `None` for a cookie reply, whose receiver is not known yet.
    pub peer: Option<PeerId>,
    /// Where it goes.
    pub destination: SocketAddr,
    /// The whole UDP payload.
    pub datagram: Vec<u8>,
}

/// A kept initiation of an initiator that was unknown when it came.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub(crate) u64);

/// Something that happened; drain by `Device::poll_event`.
#[derive(Debug, Eq, PartialEq)]
pub enum Event {
    /// An initiation came from a key that is no peer; it is kept under `ticket` for
    /// `REKEY_TIMEOUT`. The key is claimed, not proven: anyone who has recorded an initiation can
    /// send it again.
    UnknownInitiator {
        /// The claimed static key.
        public_key: PublicKey,
        /// Where it came from.
        source: SocketAddr,
        /// For `Device::answer_unknown` and `Device::forget_unknown`.
        ticket: Ticket,
    },
    /// A session is usable in both directions.
    HandshakeCompleted {
        /// With whom.
        peer: PeerId,
    },
    /// `REKEY_ATTEMPT_TIME` passed without an answer; staged packets are gone.
    HandshakeAbandoned {
        /// Who did not answer.
        peer: PeerId,
    },
    /// An authenticated packet came from another address than the last one.
    EndpointMoved {
        /// Who moved.
        peer: PeerId,
        /// Where datagrams go from now on.
        endpoint: SocketAddr,
    },
    /// All keys of a peer were zeroed: no session for three times `REJECT_AFTER_TIME`.
    SessionsZeroed {
        /// Whose keys.
        peer: PeerId,
    },
    /// Keys for Wireshark, before the datagram they open is sent or answered.
    KeyLog {
        /// The keys.
        log: KeyLog,
        /// Where the peer is that the handshake is made with.
        remote: SocketAddr,
        /// Whether this device sends the initiation.
        initiator: bool,
    },
    /// Packets or outputs that were accepted earlier and gave way since.
    Discarded {
        /// Why.
        discard: Discard,
        /// How many.
        count: u64,
    },
}
