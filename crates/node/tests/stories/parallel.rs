//! A thread that opens and seals by itself, beside a node: the same stories hold.

use std::{net::SocketAddr, time::Instant};

use node::{Node, Outcome, Way};
use packet::ecn::Ecn;
use wireguard::{Discard, HEADER, KEEPALIVE, OVERHEAD, PeerId, transport_data};

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
    let data = bytes > KEEPALIVE;
    match opening.open(now, counter, &mut datagram[HEADER..]) {
        Ok(opened) => node.note_opened(now, source, index, 1, bytes, opened.newest, data),
        Err(discard) => {
            node.note_refused(index, discard);
            return Outcome::Refused;
        }
    }
    if !data {
        return Outcome::Nothing;
    }
    take(node, now, (index, peer), ecn, datagram)
}

/// Takes an opened packet to its way, and seals it outside of the node if that is to another peer.
fn take<'a>(
    node: &'a mut Node,
    now: Instant,
    session: (u32, PeerId),
    ecn: Ecn,
    datagram: &'a mut [u8],
) -> Outcome<'a> {
    let on = match node.handle_opened(now, session, ecn, datagram) {
        Way::Ended => return Outcome::Nothing,
        Way::Interface(length) => {
            return Outcome::Packet(&mut datagram[HEADER..HEADER + length]);
        }
        Way::On(on) => on,
    };
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
