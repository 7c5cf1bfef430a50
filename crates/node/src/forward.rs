//! What a gateway does with a packet of a peer: never between organisations, never through a TUN.
//!
//! The source was verified by cryptokey routing before: it is the address of the peer that sealed
//! the packet. So one comparison of prefixes holds the organisations apart.

use std::net::IpAddr;

use packet::{
    icmp::{Cause, Unreachable},
    ip::Addresses,
};
use wireguard::{Device, PeerId};

use crate::{discard::Reason, org::Orgs, path};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// To the gateway itself: its resolver.
    Local,
    /// To a node, through this peer.
    Peer(PeerId),
    /// Nowhere.
    Refused(Reason),
}

/// Decides about a packet that a peer sealed; `hop_limit` is the one it came with.
pub(crate) fn decide(orgs: &Orgs, device: &Device, addresses: Addresses, hop_limit: u8) -> Verdict {
    let Some((prefix, _)) = orgs.of(addresses.source) else {
        return Verdict::Refused(Reason::NotServed);
    };
    let IpAddr::V6(destination) = addresses.destination else {
        return Verdict::Refused(Reason::OtherOrg);
    };
    if !prefix.contains(destination) {
        return Verdict::Refused(Reason::OtherOrg);
    }
    if orgs.is_own(destination) {
        return Verdict::Local;
    }
    if hop_limit <= 1 {
        return Verdict::Refused(Reason::HopLimit);
    }
    match path::choose(device, addresses.destination) {
        Some(peer) => Verdict::Peer(peer),
        None => Verdict::Refused(Reason::NoPeer),
    }
}

/// Returns what the sender of a refused packet is told; `None` when nothing.
///
/// An address of another organisation is answered like one that does not exist at all.
pub(crate) fn cause(reason: Reason) -> Option<Cause> {
    match reason {
        Reason::NoPeer => Some(Cause::Unreachable(Unreachable::Host)),
        Reason::OtherOrg => Some(Cause::Unreachable(Unreachable::Network)),
        Reason::Policy => Some(Cause::Unreachable(Unreachable::Prohibited)),
        Reason::HopLimit => Some(Cause::TimeExceeded { code: 0 }),
        // Whoever refuses it knows the size.
        Reason::TooBig
        | Reason::NotIp
        | Reason::NotServed
        | Reason::NoAttachment
        | Reason::NoRoom
        | Reason::QueueFull
        | Reason::InterfaceDown
        | Reason::NotSent => None,
    }
}
