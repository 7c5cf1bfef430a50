//! The path MTU of the tunnel to the gateway: probes of it, and the segment sizes that it allows.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use model::map::Role;
use packet::{
    icmp::{self, Echo, Message},
    ip, tcp,
};
use wireguard::PeerId;

use super::{Node, Source};
use crate::{
    path,
    path_mtu::{PathMtu, Probe, SIZE_MAX},
};

impl Node {
    /// Sees a packet on its way into the tunnel or out of it: what is long, or opens a TCP
    /// connection, makes the path MTU worth knowing, and a SYN states no larger segment than that
    /// allows.
    pub(super) fn fit_to_path(&mut self, packet: &mut [u8]) {
        let opens = is_syn(packet);
        if !opens && packet.len() < LONG || !self.looks_for_path_mtu() {
            return;
        }
        self.wants_path_mtu = true;
        if let Some(passing) = self.path_mtu.passing().filter(|_| opens) {
            tcp::clamp_mss(packet, passing - HEADERS);
        }
    }

    /// Sees that there is a session with `peer`.
    pub(super) fn look_at_path(&mut self, now: Instant, peer: PeerId) {
        if self.probed().is_some_and(|(_, _, probed)| probed == peer) {
            self.path_mtu.begin_first(now);
        }
    }

    /// Takes a packet that came out of the tunnel, which shows that there is a session; true when
    /// it was the reply to a probe.
    pub(super) fn take_path_mtu(&mut self, now: Instant, packet: &[u8]) -> bool {
        if std::mem::take(&mut self.wants_path_mtu) {
            self.path_mtu.begin(now);
        }
        if self.path_mtu.poll_timeout().is_none() || packet.get(NEXT_HEADER) != Some(&ip::ICMPV6) {
            return false;
        }
        let Some((own, gateway, _)) = self.probed() else {
            return false;
        };
        let probe = reply(packet, gateway, own);
        probe.is_some_and(|probe| self.path_mtu.handle_reply(now, probe))
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

    /// Returns the path MTU of the tunnel with `peer`, if it was found.
    pub(crate) fn path_mtu_of(&self, peer: PeerId) -> Option<u16> {
        let found = self.path_mtu.found()?;
        let (_, _, probed) = self.probed()?;
        (probed == peer).then_some(found)
    }

    fn looks_for_path_mtu(&self) -> bool {
        match &self.source {
            Source::Map(map) => map.own.role == Role::Client,
            Source::Nothing | Source::Config { .. } => false,
        }
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

/// Sees a packet that a gateway forwards: a SYN of a plain WireGuard client, whose MTU may be
/// larger, states no larger segment than the interfaces of a network take.
pub(super) fn fit_to_network(packet: &mut [u8]) {
    if is_syn(packet) {
        tcp::clamp_mss(packet, SIZE_MAX - HEADERS);
    }
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
    let data = vec![0; size - at - icmp::HEADER];
    let message = Message::EchoRequest(Echo {
        identifier: IDENTIFIER,
        sequence: probe.sequence,
        payload: &data,
    });
    icmp::emit(source, destination, &message, &mut packet[at..]);
    packet
}

/// Reads which probe a packet is the reply to.
fn reply(packet: &[u8], gateway: Ipv6Addr, own: Ipv6Addr) -> Option<Probe> {
    let size = u16::try_from(packet.len()).ok()?;
    let parsed = ip::parse(packet).ok()?;
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    if (source, destination) != (IpAddr::V6(gateway), IpAddr::V6(own)) {
        return None;
    }
    match icmp::parse(source, destination, parsed.payload).ok()? {
        Message::EchoReply(echo) if echo.identifier == IDENTIFIER => Some(Probe {
            size,
            sequence: echo.sequence,
        }),
        Message::EchoReply(_)
        | Message::EchoRequest(_)
        | Message::Error { .. }
        | Message::Other { .. } => None,
    }
}

/// Packets of so many bytes and more are long: shorter ones pass on almost every path.
const LONG: usize = 1_000;

/// Bytes of the IPv6 and TCP headers before a segment's data.
const HEADERS: u16 = 60;

/// Where the next header stands in an IPv6 header (RFC 8200, 3).
const NEXT_HEADER: usize = 6;

/// Where the flags stand in a TCP header (RFC 9293, 3.1).
const FLAGS: usize = 13;

/// Of our echo requests. One of somebody else's that has it, too, is told apart by size and
/// sequence.
const IDENTIFIER: u16 = 0x6d74;
