//! Where packets go: opened ones to the own side or on to a peer, own ones to a peer.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use model::map::Role;
use netstack::Transmit;
use packet::{ecn::Ecn, flow::Part, icmp::Cause, ip, pcapng::Direction};
use wireguard::{HEADER, OVERHEAD, PeerId, Seal, padded};

use super::{Link, Node, On, Outcome, QUEUE_MAX, Run, Source, Way, path_mtu};
use crate::{
    discard::{Discard, Reason},
    forward::{self, Verdict},
    org::Orgs,
    path, refusal,
    routed::Taker,
};

/// What the stack had to send.
pub(super) enum Polled {
    /// A packet of so many bytes behind the header of the slot.
    Packet(usize),
    /// Datagrams for a peer; `None` when they wait for a session or were discarded.
    Sealed(Option<Run>),
    /// Packets of a run that is for no peer.
    Loose(Vec<Vec<u8>>),
}

impl Node {
    pub(crate) fn is_gateway(&self) -> bool {
        match &self.source {
            Source::Map(map) => map.own.role == Role::Gateway,
            Source::Nothing | Source::Config { .. } => false,
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        owns(&self.source, &self.orgs, address)
    }

    /// Tells whether what comes to the own side is compared with rules.
    fn filters(&self) -> bool {
        match &self.source {
            Source::Map(map) => map.own.role == Role::Client && self.orgs.have_policy(),
            Source::Nothing | Source::Config { .. } => false,
        }
    }

    /// Tells whether a packet of another node may come to the own side.
    pub(super) fn admits(&mut self, now: Instant, packet: &[u8]) -> bool {
        !self.filters() || self.filter.admits(now, &self.orgs, packet)
    }

    /// Tells whether a packet is for a host of a site behind the node.
    pub(super) fn is_for_site(&self, packet: &[u8]) -> bool {
        !self.sites.is_empty()
            && ip::addresses(packet).is_ok_and(|found| self.sites.contain(found.destination))
    }

    /// Tells whether a packet of another node belongs to a conversation that a host of an own site
    /// has opened. Ask before it is admitted, which makes it known.
    pub(super) fn answers_host(&self, now: Instant, packet: &[u8]) -> bool {
        self.taker(packet) == Some(Taker::StackNow)
            && Part::of(packet).is_some_and(|part| self.filter.is_answer(now, part))
    }

    /// Tells whether the stack takes a packet for a host of an own site although the kernel could.
    pub(super) fn is_for_stack(&mut self, now: Instant, packet: &[u8], is_answer: bool) -> bool {
        let returning = match self.taker(packet) {
            // A router is in no site.
            None => return self.is_error_for_stack(packet),
            Some(Taker::Kernel) => return false,
            Some(Taker::KernelNow) => true,
            Some(Taker::StackNow) => is_answer,
        };
        let (Link::Tun(stack), Some(part)) = (&mut self.attachment, Part::of(packet)) else {
            return true;
        };
        match part {
            Part::Opening(flow) => stack.holds(&flow) || !returning,
            // With these nothing is opened.
            Part::Continuing(flow) | Part::Ending(flow) => stack.holds(&flow),
            Part::Error(flow) => stack.holds(&flow.reversed()),
            Part::Fragment { .. } => {
                // Whoever has the first fragment makes use of it, and the other one forgets it.
                let _unused = stack.handle_packet(now, packet);
                false
            }
        }
    }

    /// Tells whether a packet is an error about what the stack has sent in the name of a host.
    fn is_error_for_stack(&self, packet: &[u8]) -> bool {
        let Link::Tun(stack) = &self.attachment else {
            return false;
        };
        self.is_for_site(packet)
            && matches!(
                Part::of(packet),
                Some(Part::Error(flow)) if stack.holds(&flow.reversed())
            )
    }

    fn taker(&self, packet: &[u8]) -> Option<Taker> {
        let addresses = ip::addresses(packet).ok()?;
        match (addresses.source, addresses.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.routed.taker(source, destination),
            (IpAddr::V4(_), _) | (_, IpAddr::V4(_)) => None,
        }
    }

    /// Turns what a host of a routed site behind the node, or the machine, sends to hosts by IPv4
    /// into what the network carries, in its slot; `None` for everything else.
    pub(super) fn departing(&mut self, slot: &mut [u8], length: usize) -> Option<usize> {
        if slot.get(HEADER)? >> 4 != 4 {
            return None;
        }
        let router = self.orgs.own().next()?;
        let room = slot.len().checked_sub(HEADER)?;
        self.scratch.resize(room.max(self.scratch.len()), 0);
        let packet = &slot[HEADER..HEADER + length];
        let routed = &self.routed;
        let length = routed.departing(packet, router, &mut self.scratch[..room])?;
        slot[HEADER..HEADER + length].copy_from_slice(&self.scratch[..length]);
        Some(length)
    }

    /// Finds the way of a packet that `from` sealed.
    pub(super) fn forward(&mut self, now: Instant, from: PeerId, packet: &mut [u8]) -> Way {
        let length = packet.len();
        let Ok(addresses) = ip::addresses(packet) else {
            self.counters.add(Reason::NotIp, 1);
            self.tap_received(now, packet, Some(Reason::NotIp.into()));
            return Way::Ended;
        };
        let hop_limit = packet[HOP_LIMIT_V6];
        let verdict = match forward::decide(&self.orgs, &self.device, addresses, hop_limit) {
            Verdict::Peer(_) if !self.filter.admits(now, &self.orgs, packet) => {
                Verdict::Refused(Reason::Policy)
            }
            verdict @ (Verdict::Peer(_) | Verdict::Local | Verdict::Refused(_)) => verdict,
        };
        let peer = match verdict {
            Verdict::Peer(peer) => peer,
            Verdict::Local => {
                self.hear_path_mtu(from, packet);
                let taken = self.take_carrier_answer(now, packet);
                let discard = if taken {
                    None
                } else {
                    self.deliver(now, packet)
                };
                self.tap_received(now, packet, discard);
                return Way::Ended;
            }
            Verdict::Refused(reason) => {
                self.counters.add(reason, 1);
                self.tap_received(now, packet, Some(reason.into()));
                self.refuse(now, from, forward::cause(reason), packet);
                return Way::Ended;
            }
        };
        let limit = path_mtu::limit(&self.source, &self.device, &self.path_mtu, peer);
        if length > limit {
            self.counters.add(Reason::TooBig, 1);
            self.tap_received(now, packet, Some(Reason::TooBig.into()));
            self.refuse(now, from, Some(too_big(limit)), packet);
            return Way::Ended;
        }
        self.tap_received(now, packet, None);
        packet[HOP_LIMIT_V6] = hop_limit - 1;
        self.fit_to_tunnels(from, peer, packet);
        Way::On(On {
            from: Some(from),
            to: peer,
            ecn: Ecn::of_packet(packet),
            length,
        })
    }

    /// Seals a packet on its way, which lies behind the header in `datagram`. The outcome lies in
    /// `datagram`, or in the node where that is too short.
    pub fn pass_on<'a>(&'a mut self, now: Instant, on: On, datagram: &'a mut [u8]) -> Outcome<'a> {
        let On {
            from,
            to,
            ecn,
            length,
        } = on;
        self.hold_sent(&datagram[HEADER..HEADER + length]);
        let room = OVERHEAD + padded(length);
        // A peer need not pad beyond its MTU, so a full packet may leave no room for our padding.
        let copied = datagram.len() < room;
        let slot = if copied {
            self.scratch.resize(room.max(self.scratch.len()), 0);
            self.scratch[HEADER..HEADER + length]
                .copy_from_slice(&datagram[HEADER..HEADER + length]);
            &mut self.scratch[..]
        } else {
            &mut *datagram
        };
        match self.device.seal_to(now, to, slot, length) {
            Seal::Sealed {
                endpoint: destination,
                length,
                ..
            } => {
                self.release_sent(now, None);
                let slot = if copied {
                    &self.scratch[..]
                } else {
                    &*datagram
                };
                let datagram = &slot[..length];
                if let Some(capture) = &mut self.capture {
                    capture.outer(now, Direction::Outbound, destination, datagram);
                }
                Outcome::Send {
                    destination,
                    ecn,
                    datagram,
                }
            }
            Seal::Staged { .. } => {
                self.release_sent(now, None);
                Outcome::Nothing
            }
            Seal::Discarded(discard) => {
                self.counters.add(discard, 1);
                self.release_sent(now, Some(discard.into()));
                if let Some(from) = from
                    && discard == wireguard::Discard::NoEndpoint
                {
                    // The node exists and is not there: its sender need not wait for a timeout.
                    self.refuse(
                        now,
                        from,
                        forward::cause(Reason::NoPeer),
                        &datagram[HEADER..HEADER + length],
                    );
                }
                Outcome::Nothing
            }
        }
    }

    /// Seals the packet in `slot` for the peer on its path, or takes it to the own side.
    pub(super) fn send(
        &mut self,
        now: Instant,
        slot: &mut [u8],
        length: usize,
    ) -> Option<(SocketAddr, usize)> {
        let peer = self.choose(now, slot, length)?;
        self.sealed(now, peer, slot, length)
    }

    /// Chooses the peer that the packet in `slot` is for, or takes it to the own side.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        slot: &mut [u8],
        length: usize,
    ) -> Option<PeerId> {
        let packet = slot.get(HEADER..HEADER + length);
        let addresses = packet.map(ip::addresses);
        let (Some(packet), Some(Ok(addresses))) = (packet, addresses) else {
            self.counters.add(Reason::NotIp, 1);
            self.tap_refused(now, packet.unwrap_or_default(), Reason::NotIp.into());
            return None;
        };
        if self.is_own(addresses.destination) {
            if let Some(discard) = self.deliver(now, packet) {
                self.tap_refused(now, packet, discard);
            }
            return None;
        }
        let within = self.stays_within(addresses);
        let peer = path::choose(&self.device, addresses.destination).filter(|_| within);
        let Some(peer) = peer else {
            let reason = if within {
                Reason::NoPeer
            } else {
                Reason::OtherOrg
            };
            let cause = forward::cause(reason);
            self.refuse_own(now, reason, cause, &slot[HEADER..HEADER + length]);
            return None;
        };
        if slot.len() < OVERHEAD + padded(length) {
            self.counters.add(Reason::NoRoom, 1);
            self.tap_refused(now, &slot[HEADER..HEADER + length], Reason::NoRoom.into());
            return None;
        }
        let packet = &mut slot[HEADER..HEADER + length];
        self.fit_to_path(now, packet);
        let limit = path_mtu::limit(&self.source, &self.device, &self.path_mtu, peer);
        if length > limit && !path_mtu::is_reply(packet) {
            self.refuse_own(now, Reason::TooBig, Some(too_big(limit)), packet);
            return None;
        }
        if self.filters() {
            self.filter.sent(now, &slot[HEADER..HEADER + length]);
        }
        Some(peer)
    }

    /// Tells whether a packet of a gateway's own stack stays within one organisation.
    fn stays_within(&self, addresses: ip::Addresses) -> bool {
        match (self.is_gateway(), addresses.destination) {
            (false, _) => true,
            (true, IpAddr::V4(_)) => false,
            (true, IpAddr::V6(destination)) => {
                let org = self.orgs.of(addresses.source);
                org.is_some_and(|(prefix, _)| prefix.contains(destination))
            }
        }
    }

    fn sealed(
        &mut self,
        now: Instant,
        peer: PeerId,
        slot: &mut [u8],
        length: usize,
    ) -> Option<(SocketAddr, usize)> {
        self.hold_sent(&slot[HEADER..HEADER + length]);
        let sealed = self.device.seal_to(now, peer, slot, length);
        self.release_sent(now, discard_of(sealed));
        match sealed {
            Seal::Sealed {
                endpoint, length, ..
            } => Some((endpoint, length)),
            Seal::Staged { .. } => None,
            Seal::Discarded(discard) => {
                self.counters.add(discard, 1);
                None
            }
        }
    }

    pub(super) fn seal_copy(
        &mut self,
        now: Instant,
        peer: PeerId,
        packet: &[u8],
        buffer: &mut [u8],
    ) -> Option<(SocketAddr, usize)> {
        if buffer.len() < OVERHEAD + padded(packet.len()) {
            self.counters.add(Reason::NoRoom, 1);
            self.tap_refused(now, packet, Reason::NoRoom.into());
            return None;
        }
        buffer[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        self.sealed(now, peer, buffer, packet.len())
    }

    /// Gives a packet to the own side, and counts and returns why it was not taken.
    pub(super) fn deliver(&mut self, now: Instant, packet: &[u8]) -> Option<Discard> {
        let for_site = self.is_for_site(packet);
        let taken = match &mut self.attachment {
            Link::Tun(_) if !for_site => self.push_incoming(packet.to_vec()).map_err(Discard::from),
            Link::Tun(stack) | Link::Netstack(stack) => {
                stack.handle_packet(now, packet).map_err(Discard::from)
            }
            Link::None => Err(Reason::NoAttachment.into()),
        };
        let discard = taken.err()?;
        self.counters.add(discard, 1);
        Some(discard)
    }

    pub(super) fn push_incoming(&mut self, packet: Vec<u8>) -> Result<(), Reason> {
        if self.incoming.len() >= QUEUE_MAX {
            return Err(Reason::QueueFull);
        }
        self.incoming.push_back(packet);
        Ok(())
    }

    /// Tells the peer `from` why its packet was refused, in the name of its resolver.
    fn refuse(&mut self, now: Instant, from: PeerId, cause: Option<Cause>, packet: &[u8]) {
        let (Some(cause), Ok(addresses)) = (cause, ip::addresses(packet)) else {
            return;
        };
        let Some((prefix, served)) = self.orgs.of_mut(addresses.source) else {
            return;
        };
        if self.outgoing.len() < QUEUE_MAX && served.errors.take(now) {
            let source = IpAddr::V6(prefix.resolver());
            let error = refusal::emit(source, cause, packet);
            self.outgoing.extend(error.map(|error| (from, error)));
        }
    }

    /// The same for a packet of the own side, which counts as refused, in the node's own name.
    fn refuse_own(&mut self, now: Instant, reason: Reason, cause: Option<Cause>, packet: &[u8]) {
        self.counters.add(reason, 1);
        self.tap_refused(now, packet, reason.into());
        let is_v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let mut own = self.addresses().into_iter();
        let own = own.find(|own| own.is_ipv4() == is_v4);
        let (Some(cause), Some(own)) = (cause, own) else {
            return;
        };
        if !self.errors.take(now) {
            return;
        }
        let Some(error) = refusal::emit(own, cause, packet) else {
            return;
        };
        let for_stack = self.is_error_for_stack(&error);
        match &mut self.attachment {
            Link::Tun(_) if !for_stack => {
                let mut translated = vec![0; error.len()];
                let length = self.routed.arriving(&error, &mut translated);
                let error = match length {
                    Some(length) => translated[..length].to_vec(),
                    None => error,
                };
                if let Err(reason) = self.push_incoming(error) {
                    self.discard_late(reason, 1);
                }
            }
            Link::Tun(stack) | Link::Netstack(stack) => {
                // An error that the stack cannot use was ours: it is no packet of anybody.
                let _used = stack.handle_packet(now, &error).is_ok();
            }
            Link::None => {}
        }
    }

    /// Lets the stack write its next packet behind the header of a slot, or seals a run of
    /// segments of together at most `bytes_max` bytes.
    pub(super) fn poll_stack(
        &mut self,
        now: Instant,
        bytes_max: usize,
        buffer: &mut [u8],
    ) -> Option<Polled> {
        // A gateway's own connections are few and small, and each packet has its own verdict.
        let bytes_max = if self.is_gateway() { 0 } else { bytes_max };
        let filters = self.filters();
        let (Link::Tun(stack) | Link::Netstack(stack)) = &mut self.attachment else {
            return None;
        };
        let slot = OVERHEAD + padded(stack.mtu());
        let segments_max = (bytes_max.min(buffer.len()) / slot).max(1);
        let end = buffer.len().saturating_sub(OVERHEAD - HEADER);
        let packet = &mut buffer[HEADER..end];
        let mut large = match stack.poll_transmit_large(now, segments_max, packet)? {
            Transmit::Packet(length) => return Some(Polled::Packet(length)),
            Transmit::Large(large) => large,
        };
        let destination = large.destination();
        let own = owns(&self.source, &self.orgs, destination);
        let peer = path::choose(&self.device, destination).filter(|_| !own);
        let Some(peer) = peer else {
            let next = || {
                let length = large.next_into(buffer)?;
                Some(buffer[..length].to_vec())
            };
            return Some(Polled::Loose(std::iter::from_fn(next).collect()));
        };
        path_mtu::note_run(&self.source, &mut self.path_mtu, now);
        let limit = path_mtu::limit(&self.source, &self.device, &self.path_mtu, peer);
        let mut too_long = None;
        let mut run: Option<Run> = None;
        loop {
            let used = run.map_or(0, |run| run.length);
            let slot = &mut buffer[used..];
            let Some(length) = large.next_into(&mut slot[HEADER..]) else {
                break;
            };
            let packet = &slot[HEADER..HEADER + length];
            if length > limit {
                // One error is enough for all that the connection has on its way.
                too_long = too_long.or_else(|| Some(packet.to_vec()));
                continue;
            }
            let ecn = Ecn::of_packet(packet);
            if filters {
                self.filter.sent(now, packet);
            }
            if let Some(capture) = &mut self.capture {
                capture.hold_inner(Direction::Outbound, packet);
            }
            let sealed = self.device.seal_to(now, peer, slot, length);
            if let Some(capture) = &mut self.capture {
                capture.release_inner(now, discard_of(sealed));
            }
            match sealed {
                Seal::Sealed {
                    endpoint, length, ..
                } => {
                    let run = run.get_or_insert(Run {
                        destination: endpoint,
                        ecn,
                        length: 0,
                        segment: length,
                        whole: false,
                    });
                    run.length += length;
                }
                Seal::Staged { .. } => {}
                Seal::Discarded(discard) => self.counters.add(discard, 1),
            }
        }
        if let Some(packet) = too_long {
            self.refuse_own(now, Reason::TooBig, Some(too_big(limit)), &packet);
        }
        Some(Polled::Sealed(run))
    }

    /// Sends packets for which there is no peer, one by one: they are for the node itself, or
    /// their sender learns that they go nowhere.
    pub(super) fn send_loose(&mut self, now: Instant, packets: &[Vec<u8>], buffer: &mut [u8]) {
        for packet in packets {
            buffer[HEADER..HEADER + packet.len()].copy_from_slice(packet);
            let sealed = self.send(now, buffer, packet.len());
            debug_assert!(sealed.is_none(), "there was no peer a moment ago");
        }
    }
}

fn too_big(limit: usize) -> Cause {
    let mtu = u32::try_from(limit).expect("a limit is one of 16 bits");
    Cause::PacketTooBig { mtu }
}

fn discard_of(sealed: Seal) -> Option<Discard> {
    match sealed {
        Seal::Sealed { .. } | Seal::Staged { .. } => None,
        Seal::Discarded(discard) => Some(discard.into()),
    }
}

fn owns(source: &Source, orgs: &Orgs, address: IpAddr) -> bool {
    match source {
        Source::Nothing => false,
        Source::Map(_) => match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => orgs.is_own(address),
        },
        Source::Config { addresses, .. } => addresses.contains(&address),
    }
}

/// Where the hop limit lies in an IPv6 header (RFC 8200, 3): inside the shortest packet of either
/// family, and looked at only when the packet is of this one.
const HOP_LIMIT_V6: usize = 7;
