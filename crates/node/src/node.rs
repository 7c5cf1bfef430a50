//! One node: tunnel, stack and map together.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Instant, SystemTime},
};

use model::{
    config::Config,
    endpoint::Endpoint,
    id::{NodeId, OrgId, SiteId},
    key::{PublicKey, SecretKey},
    map::{self, Difference, NetworkMap, OrgChange, Role},
    site::Ipv4Prefix,
    status::Happened,
    zone::{Answer, Question, Zone},
};
use netstack::{Limits, ListenerId, Stack};
use packet::ecn::{self, Ecn, NotEct};
use wireguard::{Device, HEADER, OVERHEAD, PeerId, Received, StaticSecret, Tai64n, Ticket};

use crate::{
    capture::Capture,
    carrier::{Carried, Carriers},
    discard::{Counters, Reason},
    filter::Filter,
    org::Orgs,
    path_mtu::PathMtu,
    probe::Probes,
    refusal,
    resolver::server::Server,
    roster::{self, Roster},
    routed::Routed,
    service::{self, Published, Services},
    site::{self, Sites},
};

mod agreement;
mod carrier;
mod event;
mod flow;
mod parallel;
mod path_mtu;
mod probe;
mod tap;

use flow::Polled;
pub use parallel::{On, Path, Way};

/// Where packets come from that the node sends, and where those go that are for it.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Attachment {
    /// A TUN interface of the caller: [`Node::handle_packet`] and [`Outcome::Packet`].
    Tun,
    /// A stack inside the program. A gateway needs one to answer names.
    Netstack {
        /// The largest IP packet in bytes; at most [`Node::MTU_MAX`] counts.
        mtu: usize,
        /// The secret behind sequence numbers and ports; fresh random bytes for every node.
        seed: [u8; 32],
    },
    /// Nothing: packets for the node itself are discarded.
    None,
}

/// What a datagram or a packet turned into.
#[derive(Debug, Eq, PartialEq)]
pub enum Outcome<'a> {
    /// Nothing to do at once; drain the `poll_` functions.
    Nothing,
    /// The tunnel discarded the datagram: whoever sent it need not be a peer.
    Refused,
    /// An IP packet for the TUN interface.
    Packet(&'a mut [u8]),
    /// A datagram to send.
    Send {
        /// Where it goes.
        destination: SocketAddr,
        /// What its outer header says, as the packet inside does (RFC 6040, 4.1).
        ecn: Ecn,
        /// The whole UDP payload.
        datagram: &'a [u8],
    },
}

/// Datagrams to one destination, one behind the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// Where they go.
    pub destination: SocketAddr,
    /// What their outer headers say, as the packets inside do (RFC 6040, 4.1).
    pub ecn: Ecn,
    /// Bytes of all of them.
    pub length: usize,
    /// Bytes of each but the last, which may be shorter.
    pub segment: usize,
    /// Nobody may fragment it on its way: it probes the path MTU. It is one datagram then.
    pub whole: bool,
}

/// Something that happened.
#[derive(Debug, Eq, PartialEq)]
pub enum Event {
    /// A socket of the stack wants attention; never one of the resolver's.
    Stack(netstack::Event),
    /// The name of an endpoint is to be resolved: [`Node::set_endpoint`] takes the address.
    ResolveEndpoint {
        /// Whose endpoint.
        public_key: PublicKey,
        /// The name and port.
        endpoint: Endpoint,
    },
    /// An initiation came from a key that the map does not hold. Ask control, then
    /// [`Node::insert_node`] or [`Node::apply`] and [`Node::answer_unknown`], or
    /// [`Node::forget_unknown`]. The key is claimed, not proven.
    UnknownInitiator {
        /// The claimed key.
        public_key: PublicKey,
        /// Where it came from.
        source: SocketAddr,
        /// Names the kept initiation.
        ticket: Ticket,
    },
    /// A tunnel stands.
    HandshakeCompleted {
        /// With whom.
        public_key: PublicKey,
    },
    /// Nobody answered for `REKEY_ATTEMPT_TIME`.
    HandshakeAbandoned {
        /// Who did not answer.
        public_key: PublicKey,
    },
    /// A host of a LAN has answered a [`Probe`](crate::Probe), and that came here.
    HostReturned {
        /// The host and its port.
        host: SocketAddrV4,
    },
    /// A gateway has found out something else about the nodes of a site that has several, or has
    /// told one of these that another one carries it now.
    SiteChanged {
        /// Whose site.
        org: OrgId,
        /// Which one.
        site: SiteId,
        /// Who carried it before, if another node does now.
        former: Option<NodeId>,
    },
    /// A peer was heard from another address.
    EndpointMoved {
        /// Who.
        public_key: PublicKey,
        /// Where it is now.
        endpoint: SocketAddr,
    },
}

/// One node's data plane.
pub struct Node {
    pub(crate) device: Device,
    pub(crate) attachment: Link,
    pub(crate) roster: Roster,
    pub(crate) orgs: Orgs,
    pub(crate) source: Source,
    /// Nodes that control told ahead of the map, as they stand in the map; a gateway has not more
    /// of them than there are nodes.
    ahead: BTreeMap<(OrgId, NodeId), Option<map::Node>>,
    pub(crate) counters: Counters,
    pub(crate) happened: Happened,
    filter: Filter,
    asks_about_strangers: bool,
    /// Key agreements may wait for the caller.
    defers: bool,
    services: Services,
    sites: Sites,
    carriers: Carriers,
    carried: Carried,
    routed: Routed,
    probes: Probes,
    /// Of the tunnel to the gateway.
    path_mtu: PathMtu,
    server: Server,
    /// Packets of the node's own making, for peers; at most [`QUEUE_MAX`], further ones are not
    /// made.
    outgoing: VecDeque<(PeerId, Vec<u8>)>,
    /// The same for the TUN interface.
    incoming: VecDeque<Vec<u8>>,
    /// Peers to begin a handshake with, one at each poll, so that a restart does not compute all
    /// key agreements before it sends the first.
    initiate: VecDeque<PeerId>,
    /// Bounded by what one input yields: the caller drains after each.
    events: VecDeque<Event>,
    /// Takes a forwarded packet whose own buffer is too short for our padding.
    scratch: Vec<u8>,
    /// Limits ICMP errors to the own side.
    errors: refusal::Bucket,
    /// Boxed, so that a node without one is not larger.
    capture: Option<Box<Capture>>,
}

/// The attachment as it is.
pub(crate) enum Link {
    /// With a stack that serves the hosts of sites and has no address of its own.
    Tun(Box<Stack>),
    // Boxed, because it is many times larger than the others.
    Netstack(Box<Stack>),
    None,
}

/// The MTU of the stack beside a TUN interface: that of the network, as far as the path carries it.
const SITE_MTU: usize = crate::path_mtu::SIZE_MAX as usize;

/// Where the node's knowledge comes from.
pub(crate) enum Source {
    Nothing,
    Map(NetworkMap),
    Config {
        addresses: Vec<IpAddr>,
        dns: Vec<IpAddr>,
    },
}

/// Every organisation of a map.
const ALL: Option<std::iter::Empty<&OrgId>> = None;

/// Packets of the node's own making that wait to be polled.
const QUEUE_MAX: usize = 256;

impl Node {
    /// The longest datagram over UDP (RFC 768 over IPv4): buffers of this length suit every call.
    pub const DATAGRAM_MAX: usize = 65_507;

    /// Bytes by which a packet of the interface may grow: IPv4 of a site becomes IPv6, perhaps with
    /// a packet inside, two headers of 20 bytes and two of fragments; and padding.
    pub const PACKET_GROWTH: u8 = 64;

    /// The largest MTU whose packets fit one datagram after padding and sealing.
    pub const MTU_MAX: usize = (Self::DATAGRAM_MAX - OVERHEAD) / 16 * 16;

    /// Makes a node that knows nobody; `wall` is the time of day at `now`.
    #[must_use]
    pub fn new(
        now: Instant,
        wall: SystemTime,
        mut random: Box<dyn wireguard::Random + Send>,
        private_key: &SecretKey,
        attachment: Attachment,
    ) -> Self {
        let mut key = [0; 16];
        random.fill(&mut key);
        let filter = Filter::new(u128::from_le_bytes(key));
        let mut site_seed = [0; 32];
        random.fill(&mut site_seed);
        let mut device = Device::new(now, wall, random);
        let secret = StaticSecret::new(*private_key.expose());
        device.set_private_key(now, Some(secret));
        let attachment = match attachment {
            Attachment::Tun => Link::Tun(stack(SITE_MTU, site_seed)),
            Attachment::Netstack { mtu, seed } => {
                let mtu = mtu.min(Self::MTU_MAX);
                device.set_mtu(mtu);
                Link::Netstack(stack(mtu, seed))
            }
            Attachment::None => Link::None,
        };
        Self {
            device,
            attachment,
            roster: Roster::default(),
            orgs: Orgs::default(),
            source: Source::Nothing,
            ahead: BTreeMap::new(),
            counters: Counters::default(),
            happened: Happened::default(),
            filter,
            asks_about_strangers: false,
            defers: false,
            services: Services::default(),
            sites: Sites::default(),
            carriers: Carriers::default(),
            carried: Carried::default(),
            routed: Routed::default(),
            probes: Probes::default(),
            path_mtu: PathMtu::default(),
            server: Server::default(),
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            initiate: VecDeque::new(),
            events: VecDeque::new(),
            scratch: Vec::new(),
            errors: refusal::Bucket::new(now),
            capture: None,
        }
    }

    /// Works by `map` from now on. Peers that are as they were are not disturbed; the session keys
    /// of a peer that vanished are gone when this returns.
    pub fn apply(&mut self, now: Instant, map: &NetworkMap) {
        let path = self.probed_path();
        let former = match std::mem::replace(&mut self.source, Source::Nothing) {
            Source::Map(former) => Some(former),
            Source::Nothing | Source::Config { .. } => None,
        };
        self.carriers.apply(now, map, ALL);
        self.carried.apply(map);
        let plan = roster::plan_of_map(map, &self.carriers);
        let names = self.roster.apply(now, &mut self.device, &plan);
        self.ask_for(names);
        self.orgs.apply(now, map, former.as_ref());
        self.filter.changed();
        self.routed.apply(map);
        self.ask_about_strangers(map.own.role == Role::Gateway);
        self.source = Source::Map(map.clone());
        self.name_nodes(map.orgs.keys().copied());
        self.ahead.clear();
        if self.probed_path() != path {
            self.path_mtu = PathMtu::default();
        }
        self.apply_to_stack(now);
        if let Some(former) = former {
            self.end_connections_to_gone(now, &former);
        }
    }

    /// Works by the map after `difference` from now on, as [`Self::apply`] does. A gateway touches
    /// only organisations that changed: there may be very many others. Returns false, and changes
    /// nothing, when the difference is to another map than the node's.
    pub fn apply_difference(&mut self, now: Instant, difference: &Difference) -> bool {
        let Source::Map(map) = &mut self.source else {
            return false;
        };
        if !map.fits(difference) {
            return false;
        }
        let Some(former) = part(map, difference, self.ahead.keys().map(|(org, _)| *org)) else {
            // The former map stays until then: it says what has changed.
            let mut map = map.clone();
            undo(&mut map, &self.ahead);
            map.apply(difference);
            self.apply(now, &map);
            return true;
        };
        undo(map, &std::mem::take(&mut self.ahead));
        map.apply(difference);
        self.carriers.apply(now, map, Some(former.orgs.keys()));
        let plans = [&former, &*map].map(|map| {
            let orgs = former.orgs.keys().filter_map(|id| map.orgs.get(id));
            roster::plan_of_gateway(map.own.id, orgs, &self.carriers)
        });
        if self.roster.has_others(&plans) {
            // Nothing of the former map is known any more.
            if let Source::Map(map) = std::mem::replace(&mut self.source, Source::Nothing) {
                self.apply(now, &map);
            }
            return true;
        }
        self.roster
            .apply_part(now, &mut self.device, &plans[0], &plans[1]);
        self.orgs.apply_part(map, former.orgs.keys());
        self.name_nodes(former.orgs.into_keys());
        self.filter.changed();
        true
    }

    /// Works by a plain configuration from now on; its listen port and mark are for the caller.
    pub fn apply_config(&mut self, now: Instant, config: &Config) {
        let secret = StaticSecret::new(*config.interface.private_key.expose());
        self.device.set_private_key(now, Some(secret));
        self.carriers = Carriers::default();
        let plan = roster::plan_of_config(config);
        let names = self.roster.apply(now, &mut self.device, &plan);
        self.ask_for(names);
        self.orgs.clear();
        self.routed = Routed::default();
        self.path_mtu = PathMtu::default();
        self.ask_about_strangers(false);
        let addresses = config.interface.addresses.iter();
        self.source = Source::Config {
            addresses: addresses.map(|prefix| prefix.address).collect(),
            dns: config.interface.dns.clone(),
        };
        if let Some(mtu) = config.interface.mtu {
            let mtu = usize::from(mtu).min(Self::MTU_MAX);
            self.device.set_mtu(mtu);
            if let Link::Netstack(stack) = &mut self.attachment {
                stack.set_mtu(mtu);
            }
        }
        self.apply_to_stack(now);
    }

    /// Adds or changes one node of an organisation in the map that the node works by, as control
    /// tells it about an unknown initiator; false when the map has no such organisation or the
    /// node cannot be a peer.
    pub fn insert_node(&mut self, now: Instant, org: OrgId, id: NodeId, node: &map::Node) -> bool {
        let Source::Map(map) = &mut self.source else {
            return false;
        };
        if map.own.role != Role::Gateway {
            return false;
        }
        let Some(entry) = map.orgs.get_mut(&org) else {
            return false;
        };
        let Some((key, wanted)) = roster::wanted_node(entry, id, node, &self.carriers) else {
            return false;
        };
        // Only what concerns this node is touched: there may be very many others.
        let former = entry.nodes.insert(id, node.clone());
        self.ahead
            .entry((org, id))
            .or_insert_with(|| former.clone());
        if let Some(former) = former.as_ref().filter(|former| former.public_key != key) {
            self.roster.remove(&mut self.device, &former.public_key);
        }
        self.roster.set(now, &mut self.device, key, wanted);
        self.orgs
            .insert((org, entry), id, former.as_ref(), map.serial);
        if let Some(capture) = &mut self.capture {
            capture.name(tap::named(entry, node));
        }
        if former.is_some() {
            self.filter.changed();
        }
        self.roster.peer(&key).is_some()
    }

    /// Takes the address that the name of an endpoint stands for, and begins a handshake when it is
    /// another one than before.
    pub fn set_endpoint(&mut self, now: Instant, public_key: &PublicKey, endpoint: SocketAddr) {
        let former = self.roster.peer(public_key).map(|peer| peer.id);
        let former = former.and_then(|id| self.device.status(id)?.endpoint);
        let peer = self
            .roster
            .set_endpoint(&mut self.device, public_key, endpoint);
        // The same address again is no reason for another attempt: it would never end, and
        // packets that wait for it would never be given up.
        if let Some(peer) = peer.filter(|_| former != Some(endpoint)) {
            self.leave_path(peer);
            self.device.initiate(now, peer);
        }
    }

    /// Takes another private key: every session ends, and handshakes begin with all peers whose
    /// endpoint is known.
    pub fn set_private_key(&mut self, now: Instant, private_key: &SecretKey) {
        let secret = StaticSecret::new(*private_key.expose());
        self.device.set_private_key(now, Some(secret));
        for (public_key, _) in self.endpoints() {
            self.initiate(now, &public_key);
        }
    }

    /// Begins a handshake with a peer, so that the first packet need not wait for it.
    pub fn initiate(&mut self, now: Instant, public_key: &PublicKey) {
        if let Some(peer) = self.roster.peer(public_key) {
            self.device.initiate(now, peer.id);
        }
    }

    /// Begins a handshake with each peer whose session is older than `since`: who was restarted
    /// then knows nothing of it, and need not know where this node is.
    pub fn initiate_again(&mut self, now: Instant, since: Instant) {
        let is_older = |peer: &wireguard::PeerStatus<'_>| {
            let known = peer.endpoint.is_some();
            known && peer.last_handshake.is_some_and(|last| last < since)
        };
        let older = self.device.peers().filter(is_older);
        let keys: Vec<_> = older.map(|peer| PublicKey(peer.public_key.0)).collect();
        for key in keys {
            self.initiate(now, &key);
        }
    }

    /// Returns where every peer is that has an endpoint, for [`Node::restore_endpoints`].
    #[must_use]
    pub fn endpoints(&self) -> Vec<(PublicKey, SocketAddr)> {
        let endpoint = |peer: wireguard::PeerStatus<'_>| {
            peer.endpoint
                .map(|endpoint| (PublicKey(peer.public_key.0), endpoint))
        };
        self.device.peers().filter_map(endpoint).collect()
    }

    /// Takes over where peers of the map were before a restart, and begins handshakes with them,
    /// so that traffic flows before they notice. Call it after [`Node::apply`].
    pub fn restore_endpoints(&mut self, endpoints: &[(PublicKey, SocketAddr)]) {
        for (key, endpoint) in endpoints {
            let peer = self.roster.set_endpoint(&mut self.device, key, *endpoint);
            self.initiate.extend(peer);
        }
    }

    /// Takes a datagram from the network, whose outer header says `ecn`: what routers have marked
    /// is marked inside (RFC 6040, 4.2).
    ///
    /// The outcome lies in `datagram`, or in the node where that is too short.
    pub fn handle_datagram<'a>(
        &'a mut self,
        now: Instant,
        source: SocketAddr,
        ecn: Ecn,
        datagram: &'a mut [u8],
    ) -> Outcome<'a> {
        self.hold_received(source, datagram);
        let (peer, length) = match self.device.handle_datagram(now, source, &mut *datagram) {
            Received::Packet { peer, packet } => {
                let length = packet.len();
                self.release_received(now, None);
                (peer, length)
            }
            Received::Handled => {
                // Keys come before what they open.
                self.pump(now);
                self.release_received(now, None);
                return Outcome::Nothing;
            }
            Received::Discarded(discard) => {
                self.counters.add(discard, 1);
                self.release_received(now, Some(discard.into()));
                return Outcome::Refused;
            }
        };
        match self.receive(now, peer, ecn, datagram, length) {
            Way::Ended => Outcome::Nothing,
            Way::Interface(length) => Outcome::Packet(&mut datagram[HEADER..HEADER + length]),
            Way::On(on) => self.pass_on(now, on, datagram),
        }
    }

    /// Finds the way of a packet that `peer` has sealed: it lies behind the header in `datagram`,
    /// whose outer header said `ecn`.
    fn receive(
        &mut self,
        now: Instant,
        peer: PeerId,
        ecn: Ecn,
        datagram: &mut [u8],
        length: usize,
    ) -> Way {
        let packet = &mut datagram[HEADER..HEADER + length];
        if let Err(NotEct) = ecn::decapsulate(ecn, packet) {
            let discard = wireguard::Discard::NotEct;
            self.counters.add(discard, 1);
            self.tap_received(now, packet, Some(discard.into()));
            return Way::Ended;
        }
        if self.is_gateway() {
            return self.forward(now, peer, packet);
        }
        if self.take_path_mtu(now, packet) || self.take_carrier_probe(now, peer, packet) {
            self.tap_received(now, packet, None);
            return Way::Ended;
        }
        self.fit_to_path(now, packet);
        let is_answer = self.answers_host(now, packet);
        if !self.admits(now, packet) {
            self.counters.add(Reason::Policy, 1);
            self.tap_received(now, packet, Some(Reason::Policy.into()));
            return Way::Ended;
        }
        self.scratch.resize(packet.len().max(self.scratch.len()), 0);
        let arriving = !self.is_for_stack(now, packet, is_answer);
        let arriving = arriving.then(|| self.routed.arriving(packet, &mut self.scratch));
        if let Some(length) = arriving.flatten() {
            self.tap_received(now, packet, None);
            packet[..length].copy_from_slice(&self.scratch[..length]);
            return Way::Interface(length);
        }
        let for_site = self.is_for_site(packet);
        match &self.attachment {
            Link::Tun(_) if !for_site => {
                self.tap_received(now, packet, None);
                Way::Interface(packet.len())
            }
            Link::Tun(_) | Link::Netstack(_) | Link::None => {
                let discard = self.deliver(now, packet);
                self.tap_received(now, packet, discard);
                Way::Ended
            }
        }
    }

    /// Takes a packet of `length` bytes from the TUN interface.
    ///
    /// `slot` has [`wireguard::HEADER`] bytes of room in front of it, and behind it room for
    /// padding to 16 and a tag of 16 bytes. The outcome lies in `slot`.
    pub fn handle_packet<'a>(
        &'a mut self,
        now: Instant,
        slot: &'a mut [u8],
        length: usize,
    ) -> Outcome<'a> {
        match self.route_packet(now, slot, length) {
            Some(on) => self.pass_on(now, on, slot),
            None => Outcome::Nothing,
        }
    }

    /// Writes the next datagram to the front of `buffer`: where it goes, and its length.
    ///
    /// A buffer of [`Node::DATAGRAM_MAX`] bytes holds everything; what a shorter one does not hold
    /// is discarded. Drain until `None`.
    ///
    /// # Panics
    /// With a stack, when `buffer` is shorter than its MTU after padding and sealing.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
    ) -> Option<(SocketAddr, usize)> {
        let run = self.poll_transmit_run(now, 0, buffer)?;
        Some((run.destination, run.length))
    }

    /// The same as [`Node::poll_transmit`], but what a connection of the stack sends may come as
    /// several datagrams of together at most `bytes_max` bytes, for one call that sends them all.
    ///
    /// # Panics
    /// As [`Node::poll_transmit`].
    pub fn poll_transmit_run(
        &mut self,
        now: Instant,
        bytes_max: usize,
        buffer: &mut [u8],
    ) -> Option<Run> {
        let run = self.poll_run(now, bytes_max, buffer)?;
        self.tap_sent(now, run.destination, &buffer[..run.length], run.segment);
        Some(run)
    }

    fn poll_run(&mut self, now: Instant, bytes_max: usize, buffer: &mut [u8]) -> Option<Run> {
        let one = |ecn, (destination, length)| Run {
            destination,
            ecn,
            length,
            segment: length,
            whole: false,
        };
        loop {
            if let Some(transmit) = self.device.poll_transmit() {
                self.count_attempt(&transmit);
                let length = transmit.datagram.len();
                let Some(room) = buffer.get_mut(..length) else {
                    self.discard_late(Reason::NoRoom, 1);
                    continue;
                };
                room.copy_from_slice(&transmit.datagram);
                return Some(one(Ecn::NotEct, (transmit.destination, length)));
            }
            if let Some(peer) = self.initiate.pop_front() {
                self.device.initiate(now, peer);
            } else if let Some((peer, packet)) = self.poll_path_probe(now) {
                match self.seal_copy(now, peer, &packet, buffer) {
                    Some(sealed) => {
                        let run = one(Ecn::NotEct, sealed);
                        return Some(Run { whole: true, ..run });
                    }
                    None => self.path_mtu.give_up(now),
                }
            } else if let Some((peer, packet)) = self.next_packet(now) {
                let sealed = self.seal_copy(now, peer, &packet, buffer);
                if let Some(sealed) = sealed {
                    return Some(one(Ecn::of_packet(&packet), sealed));
                }
            } else if let Some(polled) = self.poll_stack(now, bytes_max, buffer) {
                let run = match polled {
                    Polled::Packet(length) => {
                        let packet = &buffer[HEADER..HEADER + length];
                        let ecn = Ecn::of_packet(packet);
                        let whole = self.is_gateway() && path_mtu::is_reply(packet);
                        let sealed = self.send(now, buffer, length);
                        sealed.map(|sealed| Run {
                            whole,
                            ..one(ecn, sealed)
                        })
                    }
                    Polled::Sealed(run) => run,
                    Polled::Loose(packets) => {
                        self.send_loose(now, &packets, buffer);
                        None
                    }
                };
                if run.is_some() {
                    return run;
                }
            } else if !self.pump(now) {
                return None;
            }
        }
    }

    /// Returns the next packet of the node's own making for the TUN interface.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.incoming.pop_front()
    }

    /// Returns the next event. Sockets of [`Node::stack`] report here, never by the stack itself.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event> {
        if self.events.is_empty() {
            self.pump(now);
        }
        self.events.pop_front()
    }

    /// Returns when [`Node::handle_timeout`] is next wanted.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stack = match &self.attachment {
            Link::Tun(stack) | Link::Netstack(stack) => stack.poll_timeout(),
            Link::None => None,
        };
        let deadlines = [
            self.device.poll_timeout(),
            stack,
            self.server.poll_timeout(),
            self.path_mtu.poll_timeout(),
            self.carriers.poll_timeout(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Performs every action that is due at `now`. Calling it early, late or twice is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.device.handle_timeout(now);
        self.path_mtu.handle_timeout(now);
        self.look_at_carriers(now);
        if let Link::Tun(stack) | Link::Netstack(stack) = &mut self.attachment {
            stack.handle_timeout(now);
            self.server.handle_timeout(now, stack);
        }
        self.pump(now);
    }

    /// Returns the stack, to connect, listen, bind and ping; with a TUN interface it has no address
    /// and serves hosts of sites only; `None` without an attachment.
    ///
    /// Its packets and events come by the node: do not poll or feed it.
    pub fn stack(&mut self) -> Option<&mut Stack> {
        match &mut self.attachment {
            Link::Tun(stack) | Link::Netstack(stack) => Some(stack),
            Link::None => None,
        }
    }

    /// Answers an initiation whose initiator the map holds by now; false when it is not kept any
    /// more.
    pub fn answer_unknown(&mut self, now: Instant, ticket: Ticket) -> bool {
        let answered = self.device.answer_unknown(now, ticket);
        self.pump(now);
        answered
    }

    /// Forgets an initiation whose initiator is nobody.
    pub fn forget_unknown(&mut self, ticket: Ticket) {
        self.device.forget_unknown(ticket);
    }

    /// Answers a name for the node itself; `None` without a map that holds it.
    #[must_use]
    pub fn answer(&self, question: &Question, seed: u64) -> Option<Answer> {
        let own = self.orgs.own().next()?;
        Some(self.zone()?.answer(own, question, seed))
    }

    /// Returns the zone of the node's organisation; of a gateway's, that of the first.
    #[must_use]
    pub fn zone(&self) -> Option<&Zone> {
        self.orgs.first().map(|(_, served)| &served.zone)
    }

    /// Returns the resolvers that are to be asked through the tunnel.
    #[must_use]
    pub fn dns_servers(&self) -> Vec<IpAddr> {
        match &self.source {
            Source::Nothing => Vec::new(),
            Source::Map(_) => {
                let prefixes = self.orgs.prefixes();
                prefixes
                    .map(|prefix| IpAddr::V6(prefix.resolver()))
                    .collect()
            }
            Source::Config { dns, .. } => dns.clone(),
        }
    }

    /// Returns the node's own addresses inside the network.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match &self.source {
            Source::Nothing => Vec::new(),
            Source::Map(_) => self.orgs.own().map(IpAddr::V6).collect(),
            Source::Config { addresses, .. } => addresses.clone(),
        }
    }

    /// Returns the map that the node works by.
    #[must_use]
    pub fn map(&self) -> Option<&NetworkMap> {
        match &self.source {
            Source::Map(map) => Some(map),
            Source::Nothing | Source::Config { .. } => None,
        }
    }

    /// Returns what a listener of the stack publishes; `None` for a listener of the caller.
    ///
    /// [`netstack::Event::Accepted`] with such a listener asks the caller to accept, and to
    /// connect to the target.
    #[must_use]
    pub fn published(&self, listener: ListenerId) -> Option<&Published> {
        self.services.published(listener)
    }

    /// Tells whether a listener of the stack takes connections to hosts of the sites behind the
    /// node; the flows and echo requests that the stack takes are all to such hosts.
    #[must_use]
    pub fn listens_for_site(&self, listener: ListenerId) -> bool {
        self.sites.listens(listener)
    }

    /// Lists the IPv4 addresses of other sites that the machine shall route into the TUN interface:
    /// where a site behind the node is routed, those by which its hosts reach the others'; else
    /// all aliases, for the programs of the machine.
    #[must_use]
    pub fn site_routes(&self) -> BTreeSet<Ipv4Prefix> {
        self.routed.wanted()
    }

    /// Returns the address, always [`MACHINE_V4`](crate::MACHINE_V4), from which programs of the
    /// machine have to speak to [`Node::site_routes`]; `None` where the routes are for the hosts of
    /// the sites behind the node, of which the machine is one.
    #[must_use]
    pub fn site_source(&self) -> Option<Ipv4Addr> {
        self.routed.source()
    }

    /// Tells which of [`Node::site_routes`] the machine has. Without its route a site is reached as
    /// if it were not routed.
    pub fn set_site_routes(&mut self, routes: BTreeSet<Ipv4Prefix>) {
        self.routed.set_routes(routes);
    }

    /// Lists the published ports that the stack listens on.
    pub fn services(&self) -> impl Iterator<Item = (ListenerId, &Published)> {
        self.services.all()
    }

    /// Lists the ports that the map says the node publishes, by the addresses to listen at.
    ///
    /// With a stack the node listens by itself; with a TUN interface the caller does.
    #[must_use]
    pub fn published_ports(&self) -> BTreeMap<SocketAddr, Published> {
        match &self.source {
            Source::Map(map) if map.own.role == Role::Client => {
                let own: Vec<_> = self.orgs.own().collect();
                service::published(map, &own)
            }
            Source::Map(_) | Source::Nothing | Source::Config { .. } => BTreeMap::new(),
        }
    }

    /// Returns how many packets were not delivered, by reason.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts packets of the node's that the caller could not pass on.
    pub fn discard(&mut self, reason: Reason, count: u64) {
        self.discard_late(reason, count);
    }

    /// Anchors the time of day anew.
    pub fn set_wall_clock(&mut self, now: Instant, wall: SystemTime) {
        self.device.set_wall_clock(now, wall);
    }

    /// Returns the newest handshake timestamp ever sent, to be kept on disk.
    #[must_use]
    pub fn timestamp_floor(&self) -> Tai64n {
        self.device.timestamp_floor()
    }

    /// Makes every later handshake timestamp newer than `floor`, so that a clock that went back
    /// does not lock the node out.
    pub fn raise_timestamp_floor(&mut self, floor: Tai64n) {
        self.device.raise_timestamp_floor(floor);
    }

    /// Switches [`Event::UnknownInitiator`]; a switch forgets the initiations that are kept, so
    /// this is done only when the role changes.
    fn ask_about_strangers(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.asks_about_strangers, wanted) != wanted {
            self.device.set_unknown_initiators(wanted);
        }
    }

    fn ask_for(&mut self, names: Vec<(PublicKey, Endpoint)>) {
        for (public_key, endpoint) in names {
            self.events.push_back(Event::ResolveEndpoint {
                public_key,
                endpoint,
            });
        }
    }

    /// Ends connections of the own stack to nodes that are in the map no more: nothing would
    /// answer, and their programs would wait for as long as TCP does.
    fn end_connections_to_gone(&mut self, now: Instant, former: &NetworkMap) {
        let (Source::Map(map), Link::Netstack(stack)) = (&self.source, &mut self.attachment) else {
            return;
        };
        let mut gone: HashSet<IpAddr> = addresses(former).collect();
        for address in addresses(map) {
            gone.remove(&address);
        }
        if !gone.is_empty() {
            stack.end_unreachable(now, |address| gone.contains(&address));
        }
    }

    /// Gives the stack its addresses, listeners and resolvers.
    fn apply_to_stack(&mut self, now: Instant) {
        let addresses = self.addresses();
        let published = self.published_ports();
        let mut resolvers = BTreeSet::new();
        if self.is_gateway() {
            resolvers = self.orgs.prefixes().collect();
        }
        let sites = self.map().map(site::own).unwrap_or_default();
        let stack = match &mut self.attachment {
            Link::Netstack(stack) => stack,
            Link::Tun(stack) => {
                self.sites.apply(now, stack, &sites);
                return;
            }
            Link::None => return,
        };
        stack.set_addresses(&addresses);
        self.sites.apply(now, stack, &sites);
        self.services.apply(now, stack, &published);
        self.server.apply(now, stack, &resolvers);
    }
}

/// Returns the address of every node in `map`.
fn addresses(map: &NetworkMap) -> impl Iterator<Item = IpAddr> {
    let nodes = map.orgs.values().flat_map(|org| org.nodes.values());
    nodes.map(|node| node.address.into())
}

/// Takes back what control told `ahead` of the map: it may have been undone since.
fn undo(map: &mut NetworkMap, ahead: &BTreeMap<(OrgId, NodeId), Option<map::Node>>) {
    for ((org, id), node) in ahead {
        let Some(org) = map.orgs.get_mut(org) else {
            continue;
        };
        match node {
            Some(node) => drop(org.nodes.insert(*id, node.clone())),
            None => drop(org.nodes.remove(id)),
        }
    }
}

/// Returns `others` and the organisations of a gateway's map that `difference` changes; `None`
/// where that is not all that has to be looked at.
fn part(
    map: &NetworkMap,
    difference: &Difference,
    others: impl Iterator<Item = OrgId>,
) -> Option<NetworkMap> {
    if map.own != difference.own || map.own.role != Role::Gateway {
        return None;
    }
    let others = others.filter_map(|id| Some((id, map.orgs.get(&id)?.clone())));
    let mut orgs: BTreeMap<_, _> = others.collect();
    for (id, change) in &difference.orgs {
        let org = map.orgs.get(id)?;
        match change {
            Some(OrgChange::Parts(parts)) => {
                let head = parts.head.as_ref();
                head.is_none_or(|head| head.prefix == org.prefix)
                    .then_some(())?;
            }
            Some(OrgChange::Whole(whole)) => (whole.prefix == org.prefix).then_some(())?,
            None => return None,
        }
        orgs.insert(*id, org.clone());
    }
    Some(NetworkMap {
        serial: map.serial,
        own: map.own.clone(),
        orgs,
    })
}

fn stack(mtu: usize, seed: [u8; 32]) -> Box<Stack> {
    Box::new(Stack::new(netstack::Config {
        addresses: Vec::new(),
        mtu,
        seed,
        limits: Limits::default(),
    }))
}
