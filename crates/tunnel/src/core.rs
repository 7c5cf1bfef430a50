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
use os::udp::{Datagram, SendError, Socket};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    Attachment, KnownEndpoint, Probed, following::FOLLOWED_MAX, outbox::Outbox, socket::Sockets,
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
}

/// The tasks that wait for one connection.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Taken {
    /// The tunnel refused it.
    Refused,
    /// It is done with.
    Ended,
    /// It holds a packet for the interface: so many bytes behind the header.
    Packet(usize),
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

    /// Takes a datagram from the network.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        sockets: &Sockets,
    ) -> Taken {
        self.make_room(sockets);
        let Datagram {
            source,
            local,
            ecn,
            bytes,
        } = datagram;
        let outcome = self.node.handle_datagram(now, source, ecn, bytes);
        let taken = match &outcome {
            Outcome::Refused => Taken::Refused,
            Outcome::Nothing | Outcome::Send { .. } => Taken::Ended,
            Outcome::Packet(packet) => Taken::Packet(packet.len()),
        };
        match outcome {
            Outcome::Send { .. } | Outcome::Packet(_) => {
                self.outbox.note_source(source, local, true);
            }
            // Often a handshake message, which may be one of a flood.
            Outcome::Nothing => self.outbox.note_source(source, local, false),
            Outcome::Refused => {}
        }
        let lost = !copied(&mut self.outbox, &outcome);
        self.note_full(lost);
        taken
    }

    /// Lets the node seal a packet for another peer; it lies behind the header in `datagram`.
    pub(super) fn pass_on(&mut self, now: Instant, on: On, datagram: &mut [u8], sockets: &Sockets) {
        self.make_room(sockets);
        let outcome = self.node.pass_on(now, on, datagram);
        let lost = !copied(&mut self.outbox, &outcome);
        self.note_full(lost);
    }

    /// Lets the node find the way of a packet of the interface and seal it; it lies behind the
    /// header in `slot`.
    pub(super) fn handle_packet(
        &mut self,
        now: Instant,
        slot: &mut [u8],
        length: usize,
        sockets: &Sockets,
    ) {
        self.make_room(sockets);
        let outcome = self.node.handle_packet(now, slot, length);
        let lost = !copied(&mut self.outbox, &outcome);
        self.note_full(lost);
    }

    fn make_room(&mut self, sockets: &Sockets) {
        if !self.outbox.has_room() && self.outbox.blocked.is_none() {
            self.outbox.send(sockets);
        }
    }

    /// Counts a datagram that found no room, as behind any full queue.
    fn note_full(&mut self, lost: bool) {
        if lost {
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

    /// Returns until when the driver may sleep, and towards where it has to wait for room.
    pub(super) fn arm(&mut self) -> (Option<Instant>, Option<SocketAddr>) {
        self.armed = self.node.poll_timeout();
        self.armed_for_room = self.outbox.blocked.is_some();
        (self.armed, self.outbox.blocked)
    }

    /// Returns towards where there is no room to send, so that what the node made has to wait.
    pub(super) fn blocked(&self) -> Option<SocketAddr> {
        self.outbox.blocked
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
            while let Some(packet) = self.node.poll_packet() {
                let lost = interface.write(std::iter::once(&packet[..]));
                lost.count(&mut self.node);
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

/// Copies what is to be sent to `outbox`; false when there is no room for it.
fn copied(outbox: &mut Outbox, outcome: &Outcome<'_>) -> bool {
    match *outcome {
        Outcome::Send {
            destination,
            ecn,
            datagram,
        } => outbox.copy(destination, ecn, datagram),
        Outcome::Packet(_) | Outcome::Nothing | Outcome::Refused => true,
    }
}
