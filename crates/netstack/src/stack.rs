//! Sockets, demultiplexing and IP.

mod flow;
mod foreign;
mod icmp;
mod large;
mod opening;
mod reassembly;
mod tcp;
mod udp;

use std::{
    collections::{HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

use packet::{icmp::Cause, ip};

use self::reassembly::Reassembly;
pub use self::{
    flow::EchoRequest,
    foreign::Refusal,
    large::{Large, Transmit},
};
use crate::{
    Config, ConnectionId, Discard, EchoId, EchoRequestId, Event, ListenerId, PrefixId, UdpId,
    deadlines::Deadlines,
    secret::{Secret, TableKey},
    slab::Slab,
};

/// Hop limit of what is sent (RFC 1700's default, as Linux uses).
const HOP_LIMIT: u8 = 64;
/// Ephemeral ports are the upper half (RFC 6056, 3.2 would have as many as possible).
const PORTS_FIRST: u16 = 0x8000;
/// So many ports are drawn before they count as exhausted: with nine of ten in use, a failure has
/// a probability of 10^-12.
const PORTS_TRIED: usize = 256;

/// What `recv` found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// So many bytes were written to the front of the buffer; not zero.
    Bytes(usize),
    /// There is nothing now, or the buffer is empty; [`Event::Readable`] tells when there is.
    WouldBlock,
    /// The peer has finished and everything has been read.
    End,
}

/// A host inside the program: its addresses, sockets and connections.
pub struct Stack {
    config: Config,
    own: HashSet<IpAddr, TableKey>,
    secret: Secret,
    /// The first `now` ever seen; clocks on the wire count from it.
    epoch: Option<Instant>,
    tcp: tcp::Sockets,
    udp: udp::Sockets,
    flows: flow::Flows,
    echoes: Slab<EchoId, icmp::Request>,
    error_limit: icmp::ErrorLimit,
    reassembly: Reassembly,
    deadlines: Deadlines<Due>,
    /// Whole packets that are answers; bounded by `limits.answers_max`.
    answers: VecDeque<Vec<u8>>,
    /// Each socket stands here at most once.
    events: VecDeque<Pending>,
    /// How often a connection was asked for something, for tests of what an event costs.
    operations: u64,
}

/// Who has a deadline.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Due {
    Connection(ConnectionId),
    Echo(EchoId),
    Flow(UdpId),
    Asked(EchoRequestId),
}

/// Who has events.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Connection(ConnectionId),
    Listener(ListenerId),
    Udp(UdpId),
    Echo(EchoId),
    Flows(PrefixId),
    Echoes(PrefixId),
    FlowExpired(UdpId),
}

impl Stack {
    /// Makes a stack without sockets.
    #[must_use]
    pub fn new(mut config: Config) -> Self {
        config.mtu = clamp_mtu(config.mtu);
        let (secret, key) = Secret::new(&config.seed);
        let mut own = HashSet::with_hasher(key);
        own.extend(config.addresses.iter().copied());
        Self {
            own,
            secret,
            epoch: None,
            tcp: tcp::Sockets::new(key, config.limits.memory_bytes_max),
            udp: udp::Sockets::new(key),
            flows: flow::Flows::new(key, config.limits.flow_bytes_max),
            echoes: Slab::new(),
            error_limit: icmp::ErrorLimit::default(),
            reassembly: Reassembly::new(config.limits.reassemblies_max),
            deadlines: Deadlines::new(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
            operations: 0,
            config,
        }
    }

    /// Replaces the addresses; connections and sockets of an address that is gone are kept and
    /// hear nothing more until it comes back.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) {
        self.config.addresses = addresses.to_vec();
        self.own.clear();
        self.own.extend(addresses.iter().copied());
    }

    /// Returns the addresses in the order in which they were given.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.config.addresses
    }

    /// Changes the MTU of the link, from 576 to 65,535 bytes; values outside count as the nearest.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.config.mtu = clamp_mtu(mtu);
    }

    /// Returns the MTU of the link.
    #[must_use]
    pub fn mtu(&self) -> usize {
        self.config.mtu
    }

    /// Takes one IP packet from the link.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) -> Result<(), Discard> {
        let parsed = ip::parse(packet).map_err(|_| Discard::IpMalformed)?;
        if !ip::v4_checksum_holds(packet) {
            return Err(Discard::IpChecksum);
        }
        let header = parsed.header;
        if !is_unicast(header.source) {
            return Err(Discard::IpAddress);
        }
        let own = self.is_own(header.destination);
        if !own && !self.is_accepted(header.destination) {
            return Err(Discard::NotForUs);
        }
        match header.fragment {
            None if !own => self.dispatch_foreign(now, &header, parsed.payload),
            None => self.dispatch(now, &header, parsed.payload, Some(packet)),
            Some(fragment) => {
                let whole = self
                    .reassembly
                    .insert(now, &header, fragment, parsed.payload)?;
                match whole {
                    Some(payload) if !own => self.dispatch_foreign(now, &header, &payload),
                    Some(payload) => self.dispatch(now, &header, &payload, None),
                    None => Ok(()),
                }
            }
        }
    }

    fn dispatch(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
        packet: Option<&[u8]>,
    ) -> Result<(), Discard> {
        let v4 = header.source.is_ipv4();
        match header.next_header {
            ip::TCP => self.handle_tcp(now, header, payload),
            ip::UDP => self.handle_udp(now, header, payload, packet),
            ip::ICMP if v4 => self.handle_icmp(now, header, payload),
            ip::ICMPV6 if !v4 => self.handle_icmp(now, header, payload),
            _ => {
                // RFC 1122, 3.2.2.1 and RFC 4443, 3.4: the next header at fault is named.
                let cause = if v4 {
                    Cause::Unreachable(packet::icmp::Unreachable::Other(2))
                } else {
                    Cause::ParameterProblem {
                        code: 1,
                        pointer: 6,
                    }
                };
                self.answer_error(now, cause, header, packet);
                Err(Discard::UnknownProtocol)
            }
        }
    }

    /// Writes the next IP packet for the link to the front of `out` and returns its length.
    ///
    /// `out` has at least MTU bytes; drain until `None`.
    ///
    /// # Panics
    /// When `out` is shorter than the MTU.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        match self.poll_transmit_large(now, 1, out)? {
            Transmit::Packet(length) => Some(length),
            // Of one segment there is no run.
            Transmit::Large(_) => None,
        }
    }

    /// Answers and datagrams, which go before segments.
    fn transmit_first(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        assert!(out.len() >= self.config.mtu, "`out` has at least MTU bytes");
        while let Some(answer) = self.answers.pop_front() {
            // The MTU may have shrunk meanwhile.
            if let Some(out) = out.get_mut(..answer.len()) {
                out.copy_from_slice(&answer);
                return Some(answer.len());
            }
        }
        self.transmit_udp(now, out)
    }

    /// Performs every action that is due at `now`. Calling it early, late or twice is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(due) = self.deadlines.pop_due(now) {
            self.operations += 1;
            match due {
                Due::Connection(id) => self.handle_connection_timeout(now, id),
                Due::Echo(id) => self.handle_echo_timeout(now, id),
                Due::Flow(id) => self.handle_flow_timeout(now, id),
                Due::Asked(id) => self.handle_asked_timeout(id),
            }
        }
        self.reassembly.handle_timeout(now);
    }

    /// Returns when [`Stack::handle_timeout`] is next wanted; `None` while nothing waits for time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [self.deadlines.next(), self.reassembly.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(pending) = self.events.pop_front() {
            let event = match pending {
                Pending::Connection(id) => self.poll_connection_event(id),
                Pending::Listener(id) => self.poll_listener_event(id),
                Pending::Udp(id) => self.poll_udp_event(id),
                Pending::Echo(id) => self.poll_echo_event(id),
                Pending::Flows(id) => self.poll_flows_event(id),
                Pending::Echoes(id) => self.poll_echoes_event(id),
                Pending::FlowExpired(id) => self.poll_flow_expired(id),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn is_own(&self, address: IpAddr) -> bool {
        // Most nodes have one, and most packets are for the first.
        self.config.addresses.first() == Some(&address) || self.own.contains(&address)
    }

    /// Returns the own address that shares the longest prefix with `remote` (RFC 6724, rule 8).
    fn best_source(&self, remote: IpAddr) -> Option<IpAddr> {
        let own = self.config.addresses.iter().copied();
        let own = own.filter(|address| address.is_ipv4() == remote.is_ipv4());
        // The first of equals, so that the order of the configuration decides.
        own.rev()
            .max_by_key(|&address| common_prefix(address, remote))
    }

    fn epoch(&mut self, now: Instant) -> Instant {
        *self.epoch.get_or_insert(now)
    }
}

fn clamp_mtu(mtu: usize) -> usize {
    mtu.clamp(576, usize::from(u16::MAX))
}

pub(crate) fn header(source: IpAddr, destination: IpAddr, next_header: u8) -> ip::Header {
    ip::Header {
        source,
        destination,
        next_header,
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        fragment: None,
    }
}

/// Tells whether `address` can be one end of a conversation.
fn is_unicast(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_multicast() || address.is_unspecified() || broadcast)
}

pub(crate) fn unspecified(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

fn common_prefix(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Stack {
    /// Panics when an invariant of a connection does not hold; a stale id has none.
    ///
    /// # Panics
    /// That is what it is for.
    pub fn assert_invariants(&self, id: ConnectionId) {
        if let Some(entry) = self.tcp.connections.get(id) {
            entry.assert_invariants();
        }
    }
}

#[cfg(test)]
impl Stack {
    /// The congestion window of a connection in octets.
    pub(crate) fn cwnd(&self, id: ConnectionId) -> u32 {
        self.tcp.connections.get(id).unwrap().connection.cwnd()
    }

    /// pipeACK of a connection in octets; `None` while it is undefined (RFC 7661, 4.2).
    pub(crate) fn pipe_ack(&self, id: ConnectionId) -> Option<u32> {
        self.tcp.connections.get(id)?.connection.pipe_ack()
    }

    pub(crate) fn is_validated(&self, id: ConnectionId) -> bool {
        let entry = self.tcp.connections.get(id);
        entry.is_some_and(|entry| entry.connection.is_validated())
    }

    pub(crate) fn is_recovering(&self, id: ConnectionId) -> bool {
        let entry = self.tcp.connections.get(id);
        entry.is_some_and(|entry| entry.connection.is_recovering())
    }

    /// What the peer lets the connection send.
    pub(crate) fn send_window(&self, id: ConnectionId) -> u32 {
        let entry = self.tcp.connections.get(id);
        entry.map_or(0, |entry| entry.connection.send_window())
    }

    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }

    /// Searches for the connection of a segment so far.
    pub(crate) fn look_ups(&self) -> u64 {
        self.tcp.look_ups
    }
}
