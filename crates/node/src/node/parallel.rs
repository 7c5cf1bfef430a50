//! What threads ask and report that open and seal by themselves, while others have the node.
//!
//! ```text
//!   opening? ─► open ─► report, which way? ─► path? ─► seal ─► datagram
//!   node                node                  node
//!         packet of the interface, which way? ─┘
//!                               node
//! ```

use std::{net::SocketAddr, sync::Arc, time::Instant};

use packet::{ecn::Ecn, ip};
use wireguard::{Discard, HEADER, Heard, OVERHEAD, Opening, PeerId, Sealing};

use super::Node;

/// What becomes of a packet that came out of the tunnel; it stays where it was opened, behind the
/// header of its datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// It went no further than to this node.
    Ended,
    /// It is for the TUN interface, and has so many bytes now.
    Interface(usize),
    /// It is for another peer.
    On(On),
}

/// A packet on its way to a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct On {
    /// Who sent it; `None` when it comes from the interface.
    pub from: Option<PeerId>,
    /// For whom it is to be sealed.
    pub to: PeerId,
    /// What its outer header is to say, as the packet inside does (RFC 6040, 4.1).
    pub ecn: Ecn,
    /// Its length in bytes.
    pub length: usize,
}

/// How datagrams get to a peer now.
#[derive(Clone)]
pub struct Path {
    /// Where it is.
    pub endpoint: SocketAddr,
    /// Seals for it.
    pub sealing: Arc<Sealing>,
    /// The largest packet in bytes: none is padded beyond.
    pub mtu: usize,
}

impl Node {
    /// Tells whether a capture runs, which sees datagrams only as [`Node::handle_datagram`] takes
    /// them.
    #[must_use]
    pub fn is_captured(&self) -> bool {
        self.capture.is_some()
    }

    /// Returns who sends transport data with the receiver index `index`, and the half that opens
    /// it.
    #[must_use]
    pub fn opening(&self, index: u32) -> Option<(PeerId, Arc<Opening>)> {
        self.device.opening(index)
    }

    /// Reports a datagram that could not be opened with the half of `index`, and counts it.
    pub fn note_refused(&mut self, index: u32, discard: Discard) {
        self.device.note_refused(index, discard);
        self.discard_late(discard, 1);
    }

    /// Reports datagrams from `source` that were opened with [`Node::opening`].
    pub fn note_opened(&mut self, now: Instant, source: SocketAddr, heard: &Heard) {
        self.device.note_opened(now, source, heard);
    }

    /// Takes a datagram that was opened in place with the half of `index`, which is `peer`'s, and
    /// is no keepalive; its outer header said `ecn`.
    pub fn handle_opened(
        &mut self,
        now: Instant,
        (index, peer): (u32, PeerId),
        ecn: Ecn,
        datagram: &mut [u8],
    ) -> Way {
        let text = text_of(datagram);
        let checked = match ip::addresses(text) {
            Ok(addresses) if self.device.allows(peer, addresses.source) => Ok(addresses.length),
            Ok(_) => Err(Discard::SourceNotAllowed),
            Err(_) => Err(Discard::NotIp),
        };
        match checked {
            Ok(length) => self.receive(now, peer, ecn, datagram, length),
            Err(discard) => {
                self.note_refused(index, discard);
                Way::Ended
            }
        }
    }

    /// Finds the way of a packet of `length` bytes from the interface; `None` when it goes to no
    /// peer. It lies behind the header in `slot`, which is as [`Node::handle_packet`] wants it with
    /// [`Node::PACKET_GROWTH`] bytes more.
    pub fn route_packet(&mut self, now: Instant, slot: &mut [u8], length: usize) -> Option<On> {
        if self.take_probed(now, &slot[HEADER..HEADER + length]) {
            return None;
        }
        let ecn = Ecn::of_packet(&slot[HEADER..HEADER + length]);
        let length = self.departing(slot, length).unwrap_or(length);
        let to = self.choose(now, slot, length)?;
        Some(On {
            from: None,
            to,
            ecn,
            length,
        })
    }

    /// Returns how to seal for `peer` outside of the node; `None` when [`Node::pass_on`] must see
    /// to it.
    #[must_use]
    pub fn path_to(&self, now: Instant, peer: PeerId) -> Option<Path> {
        if self.is_captured() {
            return None;
        }
        Some(Path {
            endpoint: self.device.endpoint(peer)?,
            sealing: self.device.sealing(now, peer)?,
            mtu: self.device.mtu(),
        })
    }

    /// Reports packets that are about to be sealed by a [`Path`] to `peer`: `bytes` in all when
    /// they are.
    pub fn note_sealed(&mut self, now: Instant, peer: PeerId, datagrams: usize, bytes: usize) {
        self.device.note_sealed(now, peer, datagrams, bytes, true);
    }
}

fn text_of(datagram: &[u8]) -> &[u8] {
    let end = datagram.len().saturating_sub(OVERHEAD - HEADER);
    datagram.get(HEADER..end).unwrap_or_default()
}
