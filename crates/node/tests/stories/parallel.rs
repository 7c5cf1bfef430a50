//! A thread that opens and seals by itself, beside a node: the same stories hold.

use std::{net::SocketAddr, time::Instant};

use node::{Node, On, Outcome, Way};
use packet::ecn::Ecn;
use wireguard::{Discard, HEADER, Heard, KEEPALIVE, OVERHEAD, PeerId, transport_data};

/// Does what [`Node::handle_datagram`] does, with transport data outside of the node.
pub(crate) fn handle_datagram<'a>(
    node: &'a mut Node,
    now: Instant,
    source: SocketAddr,
    ecn: Ecn,
    datagram: &'a mut [u8],
) -> Outcome<'a> {
    let Some((index, counter)) = transport_data(datagram) else {
        return node.handle_datagram(now, source, ecn, datagram);
    };
    let Some((peer, opening)) = node.opening(index) else {
        node.note_refused(index, Discard::UnknownIndex);
        return Outcome::Refused;
    };
    let bytes = datagram.len();
    match opening.open(now, counter, &mut datagram[HEADER..]) {
        Ok(opened) => {
            let heard = Heard::one(index, bytes, opened.newest);
            node.note_opened(now, source, &heard);
        }
        Err(discard) => {
            node.note_refused(index, discard);
            return Outcome::Refused;
        }
    }
    if bytes <= KEEPALIVE {
        return Outcome::Nothing;
    }
    take(node, now, (index, peer), ecn, datagram)
}

/// Takes an opened packet to its way.
fn take<'a>(
    node: &'a mut Node,
    now: Instant,
    session: (u32, PeerId),
    ecn: Ecn,
    datagram: &'a mut [u8],
) -> Outcome<'a> {
    match node.handle_opened(now, session, ecn, datagram) {
        Way::Ended => Outcome::Nothing,
        Way::Interface(length) => Outcome::Packet(&mut datagram[HEADER..HEADER + length]),
        Way::On(on) => seal(node, now, on, datagram),
    }
}

/// Does what [`Node::handle_packet`] does, sealed outside of the node.
pub(crate) fn handle_packet<'a>(
    node: &'a mut Node,
    now: Instant,
    slot: &'a mut [u8],
    length: usize,
) -> Outcome<'a> {
    match node.route_packet(now, slot, length) {
        Some(on) => seal(node, now, on, slot),
        None => Outcome::Nothing,
    }
}

fn seal<'a>(node: &'a mut Node, now: Instant, on: On, datagram: &'a mut [u8]) -> Outcome<'a> {
    let Some(path) = node.path_to(now, on.to) else {
        return node.pass_on(now, on, datagram);
    };
    let text = path.mtu.min(datagram.len() - OVERHEAD);
    let mut nonces = path.sealing.reserve(now, 1).expect("usable just now");
    let length = nonces.seal(datagram, on.length, text).expect("one nonce");
    node.note_sealed(now, on.to, 1, length);
    Outcome::Send {
        destination: path.endpoint,
        ecn: on.ecn,
        datagram: &datagram[..length],
    }
}
