//! The node, whom its events wake, and what still has to be sent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    task::Waker,
    time::Instant,
};

use model::{
    event::{Event as Told, Who},
    id::{NodeId, OrgId, SiteId},
    key::PublicKey,
};
use netstack::{ConnectionId, EchoFailure, EchoId, Event, ListenerId, Stack, UdpId};
use node::{Node, On, Outcome, Reason};
use os::{
    tun::{self, VNET_HEADER},
    udp::{Datagram, SendError, Socket},
};
use packet::{
    gso::{self, Segments},
    vnet::Given,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use wireguard::HEADER;

use super::{
    Attachment, KnownEndpoint, Probed,
    following::FOLLOWED_MAX,
    interface::{Interface, Joiner},
    outbox::Outbox,
    socket::Sockets,
};

/// Everything behind the lock.
pub(super) struct Core {
    pub(super) node: Node,
    pub(super) clock: os::clock::Clock,
    /// Tasks that wait for a connection; bounded by the connections of the stack.
    pub(super) streams: BTreeMap<ConnectionId, Waiting>,
    /// Tasks that wait for a connection to come; bounded by the listeners of the stack.
    pub(super) listeners: BTreeMap<ListenerId, Option<Waker>>,
    /// Tasks that wait for a datagram; bounded by the sockets of the stack.
    pub(super) datagrams: BTreeMap<UdpId, Option<Waker>>,
    /// Tasks that wait for an echo reply; bounded by the echoes of the stack.
    pub(super) echoes: BTreeMap<EchoId, oneshot::Sender<Option<Probed>>>,
    /// Tasks that wait for a host to find back; at most [`super::site::PROBES_MAX`].
    pub(super) probes: BTreeMap<SocketAddrV4, oneshot::Sender<()>>,
    /// What is not for sockets; bounded, and what nobody takes in time is dropped.
    events: mpsc::Sender<node::Event>,
    /// The same for those who only want to know; nothing is told when there are none.
    pub(super) followers: broadcast::Sender<Told>,
    /// Until when the driver sleeps; `None` while it sleeps without end.
    armed: Option<Instant>,
    /// The driver waits for room to send.
    armed_for_room: bool,
    outbox: Outbox,
    /// Where a packet of the interface is read; empty until there was one.
    taken: Vec<u8>,
    joiner: Joiner,
}

/// The tasks that wait for one connection.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

/// What has to happen after the lock is released.
#[derive(Default)]
pub(super) struct After {
    /// The driver has to look at its deadline again.
    pub(super) kick: bool,
    /// Key agreements wait to be computed.
    pub(super) deferred: bool,
    /// A session was made.
    pub(super) session: bool,
    /// A capture has something to take.
    pub(super) captured: bool,
    /// These tasks go on.
    pub(super) wakers: Vec<Waker>,
}

impl Core {
    /// Answers leave from where peers called if the sockets are `fixed`, see [`Outbox::new`].
    pub(super) fn new(node: Node, events: mpsc::Sender<node::Event>, fixed: bool) -> Self {
        Self {
            node,
            events,
            followers: broadcast::Sender::new(FOLLOWED_MAX),
            clock: os::clock::Clock::start(),
            streams: BTreeMap::new(),
            listeners: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            echoes: BTreeMap::new(),
            probes: BTreeMap::new(),
            armed: None,
            armed_for_room: false,
            outbox: Outbox::new(fixed),
            taken: Vec::new(),
            joiner: Joiner::default(),
        }
    }

    /// Returns where peers are, see [`Tunnel::endpoints`](super::Tunnel::endpoints).
    pub(super) fn endpoints(&self) -> Vec<KnownEndpoint> {
        let known = |(public_key, endpoint)| KnownEndpoint {
            public_key,
            endpoint,
            called: self.outbox.source(endpoint),
        };
        self.node.endpoints().into_iter().map(known).collect()
    }

    /// Takes over where peers were, see [`Tunnel::restore`](super::Tunnel::restore).
    pub(super) fn restore(&mut self, known: &[KnownEndpoint]) {
        for known in known {
            self.outbox.note_source(known.endpoint, known.called, true);
        }
        let endpoints = known.iter().map(|one| (one.public_key, one.endpoint));
        self.node.restore_endpoints(&endpoints.collect::<Vec<_>>());
    }

    /// Returns the stack, for its sockets.
    pub(super) fn stack(&mut self) -> &mut Stack {
        self.node
            .stack()
            .expect("the node of a tunnel has an attachment")
    }

    /// Takes a datagram from the network; false when the tunnel refused it.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        sockets: &Sockets,
        interface: Option<&Interface>,
    ) -> bool {
        if !self.outbox.has_room() && self.outbox.blocked.is_none() {
            self.outbox.send(sockets);
        }
        let Datagram {
            source,
            local,
            ecn,
            bytes,
        } = datagram;
        let outcome = self.node.handle_datagram(now, source, ecn, bytes);
        let refused = matches!(outcome, Outcome::Refused);
        match outcome {
            Outcome::Send { .. } | Outcome::Packet(_) => {
                self.outbox.note_source(source, local, true);
            }
            // Often a handshake message, which may be one of a flood.
            Outcome::Nothing => self.outbox.note_source(source, local, false),
            Outcome::Refused => {}
        }
        match outcome {
            Outcome::Send {
                destination,
                ecn,
                datagram,
            } => {
                if !self.outbox.copy(destination, ecn, datagram) {
                    self.node.discard(Reason::QueueFull, 1);
                }
            }
            Outcome::Packet(packet) => {
                if let Some(interface) = interface {
                    self.joiner.push(packet, interface);
                }
            }
            Outcome::Nothing | Outcome::Refused => {}
        }
        !refused
    }

    /// Takes a packet for the interface, that came out of the tunnel.
    pub(super) fn take_packet(&mut self, packet: &[u8], interface: Option<&Interface>) {
        if let Some(interface) = interface {
            self.joiner.push(packet, interface);
        }
    }

    /// Lets the node seal a packet for another peer; it lies behind the header in `datagram`.
    pub(super) fn pass_on(&mut self, now: Instant, on: On, datagram: &mut [u8], sockets: &Sockets) {
        if !self.outbox.has_room() && self.outbox.blocked.is_none() {
            self.outbox.send(sockets);
        }
        if let Outcome::Send {
            destination,
            ecn,
            datagram,
        } = self.node.pass_on(now, on, datagram)
            && !self.outbox.copy(destination, ecn, datagram)
        {
            self.node.discard(Reason::QueueFull, 1);
        }
    }

    /// Does what is due by now: what has just come took its time.
    pub(super) fn catch_up(&mut self, now: Instant) {
        let due = self.node.poll_timeout();
        if due.is_some_and(|deadline| deadline <= now) {
            self.node.handle_timeout(now);
        }
    }

    /// Remembers that a peer wrote to our address `local`.
    pub(super) fn note_source(&mut self, peer: SocketAddr, local: Option<IpAddr>) {
        self.outbox.note_source(peer, local, true);
    }

    /// Returns our address towards `peer`, if it must be a certain one.
    pub(super) fn source(&self, peer: SocketAddr) -> Option<IpAddr> {
        self.outbox.source(peer)
    }

    /// Forgets our address towards `peer`: it is no longer ours.
    pub(super) fn forget_source(&mut self, peer: SocketAddr) {
        self.outbox.forget_source(peer);
    }

    /// Counts datagrams that the network did not take.
    pub(super) fn note_lost(&mut self, error: SendError, to: SocketAddr, datagrams: usize) {
        self.outbox.note_lost(error, to, datagrams);
    }

    /// Takes packets from the interface, sealed in place, until there is none or no room; false
    /// when there was none.
    pub(super) fn handle_packets(
        &mut self,
        now: Instant,
        sockets: &Sockets,
        interface: &Interface,
    ) -> bool {
        let mut any = false;
        let mut buffer = std::mem::take(&mut self.taken);
        buffer.resize(tun::PACKET_MAX, 0);
        while self.outbox.blocked.is_none() && self.outbox.has_room() {
            let Some((length, given)) = interface.read(&mut buffer) else {
                break;
            };
            any = true;
            let packet = &mut buffer[VNET_HEADER..][..length];
            let whole = match given {
                Ok(Given::Whole) => Ok(()),
                Ok(Given::Unsummed { start, offset }) => {
                    gso::complete_checksum(packet, start, offset)
                }
                Ok(Given::Super { kind, size }) => match gso::split(packet, kind, size) {
                    Ok(segments) => {
                        self.handle_segments(now, segments, sockets, interface);
                        continue;
                    }
                    Err(malformed) => Err(malformed),
                },
                Err(malformed) => Err(malformed),
            };
            match self.outbox.room().get_mut(HEADER..HEADER + length) {
                _ if whole.is_err() => self.node.discard(Reason::NotIp, 1),
                Some(slot) => {
                    slot.copy_from_slice(packet);
                    self.handle_packet(now, length, interface);
                }
                None => self.node.discard(Reason::NoRoom, 1),
            }
        }
        self.taken = buffer;
        any
    }

    /// Takes the parts of a super-packet; what finds no room is lost, as behind any full queue.
    fn handle_segments(
        &mut self,
        now: Instant,
        mut segments: Segments<'_>,
        sockets: &Sockets,
        interface: &Interface,
    ) {
        loop {
            if !self.outbox.has_room() && self.outbox.blocked.is_none() {
                self.outbox.send(sockets);
            }
            let length_max = segments.length_max();
            let room = self.outbox.room().get_mut(HEADER..HEADER + length_max);
            let Some(room) = room else {
                self.node.discard(Reason::QueueFull, 1);
                return;
            };
            let Some(length) = segments.next_into(room) else {
                return;
            };
            self.handle_packet(now, length, interface);
        }
    }

    /// Takes the packet that was written behind the room of a header in the outbox.
    fn handle_packet(&mut self, now: Instant, length: usize, interface: &Interface) {
        let taken = match self.node.handle_packet(now, self.outbox.room(), length) {
            Outcome::Send {
                destination,
                ecn,
                datagram,
            } => {
                let length = datagram.len();
                self.outbox.push(destination, ecn, length);
                Ok(())
            }
            Outcome::Packet(packet) => interface.write(packet),
            Outcome::Nothing | Outcome::Refused => Ok(()),
        };
        if let Err(reason) = taken {
            self.node.discard(reason, 1);
        }
    }

    /// Returns until when the driver may sleep, and towards where it has to wait for room.
    pub(super) fn arm(&mut self) -> (Option<Instant>, Option<SocketAddr>) {
        self.armed = self.node.poll_timeout();
        self.armed_for_room = self.outbox.blocked.is_some();
        (self.armed, self.outbox.blocked)
    }

    /// Tells that the sockets may have room again.
    pub(super) fn unblock(&mut self) {
        self.outbox.blocked = None;
    }

    /// Sends what the node has to send and collects whom its events wake.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        sockets: &Sockets,
        attachment: &Attachment,
    ) -> After {
        let mut after = After::default();
        self.flush(now, sockets);
        match self.outbox.take_lost() {
            0 => {}
            lost => self.node.discard(Reason::NotSent, lost),
        }
        if let Some(interface) = attachment.interface() {
            self.joiner.finish(interface);
            for reason in self.joiner.take_lost() {
                self.node.discard(reason, 1);
            }
            while let Some(packet) = self.node.poll_packet() {
                if let Err(reason) = interface.write(&packet) {
                    self.node.discard(reason, 1);
                }
            }
        }
        while let Some(event) = self.node.poll_event(now) {
            if self.followers.receiver_count() > 0 {
                self.tell(now, &event);
            }
            match event {
                node::Event::Stack(event) => self.handle_event(event, &mut after.wakers),
                node::Event::HostReturned { host } => {
                    if let Some(probe) = self.probes.remove(&host) {
                        // Whoever asked may have given up.
                        let _unheard = probe.send(());
                    }
                }
                node::Event::HandshakeCompleted { .. } => {
                    after.session = true;
                    self.publish(event);
                }
                node::Event::ResolveEndpoint { .. }
                | node::Event::UnknownInitiator { .. }
                | node::Event::HandshakeAbandoned { .. }
                | node::Event::SiteChanged { .. }
                | node::Event::EndpointMoved { .. } => self.publish(event),
            }
        }
        let earlier = match (self.node.poll_timeout(), self.armed) {
            (Some(wanted), Some(armed)) => wanted < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        after.deferred = self.node.has_agreements();
        after.captured = self
            .node
            .capture()
            .is_some_and(|capture| capture.has_blocks());
        after.kick = earlier || (self.outbox.blocked.is_some() && !self.armed_for_room);
        after
    }

    fn handle_event(&mut self, event: Event, wakers: &mut Vec<Waker>) {
        match event {
            Event::Connected(id) | Event::Closed(id, _) => {
                if let Some(waiting) = self.streams.get_mut(&id) {
                    wakers.extend(waiting.read.take());
                    wakers.extend(waiting.write.take());
                }
            }
            Event::Readable(id) => {
                wakers.extend(self.streams.get_mut(&id).and_then(|w| w.read.take()));
            }
            Event::Writable(id) => {
                wakers.extend(self.streams.get_mut(&id).and_then(|w| w.write.take()));
            }
            Event::Accepted(id) => match self.listeners.get_mut(&id) {
                Some(waker) => wakers.extend(waker.take()),
                // A published port.
                None => self.publish(node::Event::Stack(event)),
            },
            Event::FlowOpened(_) | Event::EchoRequested(_) => {
                self.publish(node::Event::Stack(event));
            }
            Event::UdpReadable(id) | Event::UdpFailed(id, _) | Event::FlowExpired(id) => {
                wakers.extend(self.datagrams.get_mut(&id).and_then(Option::take));
            }
            Event::EchoReply {
                id,
                from,
                round_trip,
                ..
            } => {
                let probed = Probed {
                    from,
                    round_trip,
                    cause: None,
                };
                self.answer(id, Some(probed));
            }
            Event::EchoFailed {
                id,
                from,
                elapsed: round_trip,
                failure,
                ..
            } => {
                let cause = match failure {
                    EchoFailure::TimedOut => None,
                    EchoFailure::Icmp(cause) => Some(cause),
                };
                let probed = cause.map(|_| Probed {
                    from,
                    round_trip,
                    cause,
                });
                self.answer(id, probed);
            }
        }
    }

    /// Tells those who follow.
    fn tell(&self, now: Instant, event: &node::Event) {
        let who = |public_key: PublicKey| {
            let peer = self.node.peer_status(now, &public_key);
            let (peer, endpoint) = peer.map(|peer| (peer.name, peer.endpoint)).unzip();
            let peer = peer.flatten();
            (Who { peer, public_key }, endpoint.flatten())
        };
        let told = match *event {
            node::Event::HandshakeCompleted { public_key } => {
                let (peer, endpoint) = who(public_key);
                Told::HandshakeCompleted { peer, endpoint }
            }
            node::Event::HandshakeAbandoned { public_key } => {
                let (peer, endpoint) = who(public_key);
                Told::HandshakeAbandoned { peer, endpoint }
            }
            node::Event::EndpointMoved {
                public_key,
                endpoint,
            } => {
                let (peer, _) = who(public_key);
                Told::EndpointMoved { peer, endpoint }
            }
            node::Event::UnknownInitiator {
                public_key, source, ..
            } => Told::UnknownInitiator { public_key, source },
            node::Event::SiteChanged { org, site, former } => {
                let moved = former.and_then(|former| self.site_moved(now, org, site, former));
                let Some(told) = moved else {
                    return;
                };
                told
            }
            node::Event::Stack(_)
            | node::Event::HostReturned { .. }
            | node::Event::ResolveEndpoint { .. } => return,
        };
        // Whoever followed may have gone just now.
        let _followers = self.followers.send(told);
    }

    /// Tells that `former` does not carry a site any more, and why.
    fn site_moved(&self, now: Instant, org: OrgId, site: SiteId, former: NodeId) -> Option<Told> {
        let carried = self.node.carried(now, org, site)?;
        let former = &self.node.map()?.orgs.get(&org)?.nodes.get(&former)?.name;
        let mut nodes = carried.nodes.iter();
        let former = nodes.clone().find(|told| told.name == *former)?;
        let carrier = nodes.find(|told| told.carries)?;
        Some(Told::SiteMoved {
            carrier: carrier.name.clone(),
            former: former.name.clone(),
            former_health: former.health,
            org: carried.org,
            site: carried.site,
        })
    }

    fn publish(&self, event: node::Event) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "event");
        }
    }

    fn answer(&mut self, id: EchoId, probed: Option<Probed>) {
        if let Some(sender) = self.echoes.remove(&id) {
            // Nobody waits when the command has gone away.
            let _unheard = sender.send(probed);
        }
    }

    fn flush(&mut self, now: Instant, sockets: &Sockets) {
        let mut dry = false;
        while !dry && self.outbox.blocked.is_none() {
            while !dry && self.outbox.has_room() {
                let room = self.outbox.room();
                match self
                    .node
                    .poll_transmit_run(now, Socket::PARCEL_BYTES_MAX, room)
                {
                    Some(run) => self.outbox.push_run(run),
                    None => dry = true,
                }
            }
            self.outbox.send(sockets);
        }
    }
}
