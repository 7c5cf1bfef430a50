//! The path MTU of the tunnel to the gateway: probes of it, and the segment sizes that it allows.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    time::Instant,
};

use model::map::Role;
use packet::{
    icmp::{self, Echo, Message},
    ip, tcp,
};
use wireguard::{Device, PeerId};

use super::{Node, Source};
use crate::{
    path,
    path_mtu::{PathMtu, Probe, SIZE_MAX, SIZE_MIN, SIZE_UNTRIED},
};

impl Node {
    /// Sees a packet on its way into the tunnel or out of it: what is long, or opens a TCP
    /// connection, makes the path MTU worth knowing, and a SYN states no larger segment than that
    /// allows.
    pub(super) fn fit_to_path(&mut self, now: Instant, packet: &mut [u8]) {
        let opens = is_syn(packet);
        if !opens && packet.len() < LONG || !self.looks_for_path_mtu() {
            return;
        }
        self.path_mtu.use_at(now);
        if opens {
            tcp::clamp_mss(packet, self.path_mtu.agreed() - HEADERS);
        }
    }

    /// Sees a packet that a gateway forwards: a SYN states no larger segment than the tunnels of
    /// both ends take.
    pub(super) fn fit_to_tunnels(&self, from: PeerId, to: PeerId, packet: &mut [u8]) {
        if is_syn(packet) {
            let agreed = |peer| told(&self.device, peer).unwrap_or(SIZE_UNTRIED);
            tcp::clamp_mss(packet, agreed(from).min(agreed(to)) - HEADERS);
        }
    }

    /// Sees that there is a session with `peer`.
    pub(super) fn look_at_path(&mut self, now: Instant, peer: PeerId) {
        if self.probed().is_some_and(|(_, _, probed)| probed == peer) {
            self.path_mtu.begin_session(now);
        }
    }

    /// Takes a packet that came out of the tunnel; true when it was the reply to a probe.
    pub(super) fn take_path_mtu(&mut self, now: Instant, packet: &[u8]) -> bool {
        if packet.get(NEXT_HEADER) != Some(&ip::ICMPV6) {
            return false;
        }
        let Some((own, gateway, _)) = self.probed() else {
            return false;
        };
        let reply = reply(packet, gateway, own);
        if let Some((size, sequence)) = reply {
            self.path_mtu.handle_reply(now, size, sequence);
        }
        reply.is_some()
    }

    /// Takes what a node tells its gateway about the path of their tunnel; the request itself is
    /// answered as any other.
    pub(super) fn hear_path_mtu(&mut self, from: PeerId, packet: &[u8]) {
        if packet.get(NEXT_HEADER) == Some(&ip::ICMPV6)
            && let Some(states) = stated(packet)
        {
            self.device.set_path_mtu(from, NonZeroU16::new(states));
        }
    }

    /// Returns the next probe, and the peer it is for.
    pub(super) fn poll_path_probe(&mut self, now: Instant) -> Option<(PeerId, Vec<u8>)> {
        let probe = self.path_mtu.poll_probe(now)?;
        match self.probed() {
            Some((own, gateway, peer)) => Some((peer, request(own, gateway, probe))),
            None => {
                self.path_mtu = PathMtu::default();
                None
            }
        }
    }

    /// Forgets what was found: packets to `peer` take another path from now on.
    pub(super) fn leave_path(&mut self, peer: PeerId) {
        if self.probed().is_some_and(|(_, _, probed)| probed == peer) {
            self.path_mtu = PathMtu::default();
        }
    }

    /// Returns the path that is probed: which peer, and where it is.
    pub(super) fn probed_path(&self) -> Option<(PeerId, Option<SocketAddr>)> {
        let (_, _, peer) = self.probed()?;
        Some((peer, self.device.status(peer)?.endpoint))
    }

    /// Returns the path MTU of the tunnel with `peer`, if it was found, or was told to a gateway.
    pub(crate) fn path_mtu_of(&self, peer: PeerId) -> Option<u16> {
        if self.is_gateway() {
            return told(&self.device, peer);
        }
        let found = self.path_mtu.found()?;
        let (_, _, probed) = self.probed()?;
        (probed == peer).then_some(found)
    }

    fn looks_for_path_mtu(&self) -> bool {
        looks(&self.source)
    }

    /// Returns the own address, that of the gateway, and its peer: a gateway answers echoes.
    fn probed(&self) -> Option<(Ipv6Addr, Ipv6Addr, PeerId)> {
        if !self.looks_for_path_mtu() {
            return None;
        }
        let own = self.orgs.own().next()?;
        let gateway = self.orgs.prefixes().next()?.resolver();
        let peer = path::choose(&self.device, IpAddr::V6(gateway))?;
        Some((own, gateway, peer))
    }
}

fn looks(source: &Source) -> bool {
    match source {
        Source::Map(map) => map.own.role == Role::Client,
        Source::Nothing | Source::Config { .. } => false,
    }
}

/// Sees that the stack sends a run of segments.
pub(super) fn note_run(source: &Source, path_mtu: &mut PathMtu, now: Instant) {
    if looks(source) {
        path_mtu.use_at(now);
    }
}

/// Returns the largest packet in bytes that is to be sent to `peer`. What is larger would be
/// fragmented outside, and its sender is told instead. A plain configuration says by itself how
/// large packets are.
pub(super) fn limit(source: &Source, device: &Device, path: &PathMtu, peer: PeerId) -> usize {
    usize::from(match source {
        Source::Map(map) => match map.own.role {
            Role::Client => path.limit(),
            Role::Gateway => told(device, peer).unwrap_or_default().max(SIZE_UNTRIED),
        },
        Source::Nothing | Source::Config { .. } => u16::MAX,
    })
}

/// Returns what a node has told about its tunnel.
fn told(device: &Device, peer: PeerId) -> Option<u16> {
    device.path_mtu(peer).map(NonZeroU16::get)
}

/// Tells whether a packet is a TCP segment over IPv6 that opens a connection, right behind the
/// header.
fn is_syn(packet: &[u8]) -> bool {
    let flags = packet.get(ip::V6_HEADER + FLAGS).copied();
    packet.get(NEXT_HEADER) == Some(&ip::TCP)
        && packet[0] >> 4 == 6
        && flags.is_some_and(|flags| tcp::Flags(flags).has(tcp::Flags::SYN))
}

/// Makes an echo request of the size that is probed.
fn request(own: Ipv6Addr, gateway: Ipv6Addr, probe: Probe) -> Vec<u8> {
    let size = usize::from(probe.size);
    let (source, destination) = (IpAddr::V6(own), IpAddr::V6(gateway));
    let header = ip::Header {
        source,
        destination,
        next_header: ip::ICMPV6,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let mut packet = vec![0; size];
    let at = ip::emit_header(&header, size - ip::V6_HEADER, &mut packet);
    let mut data = vec![0; size - at - icmp::HEADER];
    let found = probe.states.unwrap_or(NOTHING);
    data[..MARK.len()].copy_from_slice(&MARK);
    data[MARK.len()..STATED].copy_from_slice(&found.to_be_bytes());
    let message = Message::EchoRequest(Echo {
        identifier: IDENTIFIER,
        sequence: probe.sequence,
        payload: &data,
    });
    icmp::emit(source, destination, &message, &mut packet[at..]);
    packet
}

/// Reads the size and sequence of the probe that a packet is the reply to.
fn reply(packet: &[u8], gateway: Ipv6Addr, own: Ipv6Addr) -> Option<(u16, u16)> {
    let size = u16::try_from(packet.len()).ok()?;
    let parsed = ip::parse(packet).ok()?;
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    if (source, destination) != (IpAddr::V6(gateway), IpAddr::V6(own)) {
        return None;
    }
    match icmp::parse(source, destination, parsed.payload).ok()? {
        Message::EchoReply(echo) => said(echo).map(|_| (size, echo.sequence)),
        Message::EchoRequest(_) | Message::Error { .. } | Message::Other { .. } => None,
    }
}

/// Reads what a probe tells about the path.
fn stated(packet: &[u8]) -> Option<u16> {
    let parsed = ip::parse(packet).ok()?;
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    let Message::EchoRequest(echo) = icmp::parse(source, destination, parsed.payload).ok()? else {
        return None;
    };
    let states = said(echo).filter(|states| *states != NOTHING)?;
    Some(states.clamp(SIZE_MIN, SIZE_MAX))
}

/// Reads what stands in a probe; `None` when it is somebody else's echo.
fn said(echo: Echo<'_>) -> Option<u16> {
    let (mark, states) = echo.payload.get(..STATED)?.split_first_chunk()?;
    let is_one = echo.identifier == IDENTIFIER && *mark == MARK;
    is_one.then_some(u16::from_be_bytes(*states.first_chunk()?))
}

/// Tells whether a packet of a gateway is the reply to a probe: nobody may fragment it either, and
/// it may be as large as the probe was.
pub(super) fn is_reply(packet: &[u8]) -> bool {
    const REPLY: u8 = 129;
    let message = packet.get(ip::V6_HEADER..);
    packet.get(NEXT_HEADER) == Some(&ip::ICMPV6)
        && message.is_some_and(|message| message.first() == Some(&REPLY))
        && message.and_then(|message| message.get(4..6)) == Some(&IDENTIFIER.to_be_bytes())
}

/// Packets of so many bytes and more are long: shorter ones pass on almost every path.
const LONG: usize = 1_000;

/// Bytes of the IPv6 and TCP headers before a segment's data.
const HEADERS: u16 = 60;

/// Where the next header stands in an IPv6 header (RFC 8200, 3).
const NEXT_HEADER: usize = 6;

/// Where the flags stand in a TCP header (RFC 9293, 3.1).
const FLAGS: usize = 13;

/// Of our echo requests.
const IDENTIFIER: u16 = 0x6d74;

/// Leads the data of a probe, before the size that was found.
const MARK: [u8; 4] = *b"pmtu";
const STATED: usize = MARK.len() + 2;

/// The size while nothing was found.
const NOTHING: u16 = 0;
