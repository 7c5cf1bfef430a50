//! UDP sockets (RFC 768).

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use packet::{
    icmp::{Cause, Unreachable},
    ip, udp,
};

use super::{
    PORTS_FIRST, PORTS_TRIED, Pending, Stack,
    flow::{DATAGRAM_OVERHEAD, Flow},
    is_unicast,
};
use crate::{
    BindError, Discard, Event, SendToError, UdpFailure, UdpId, secret::TableKey, slab::Slab,
    tcp::buffer::Budget,
};

/// All UDP sockets of a stack.
pub(super) struct Sockets {
    pub(super) sockets: Slab<UdpId, Socket>,
    by_local: HashMap<SocketAddr, UdpId, TableKey>,
    transmit: VecDeque<Outgoing>,
}

pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) queue: VecDeque<Incoming>,
    pub(super) queued_bytes: usize,
    pub(super) readable: bool,
    failure: Option<UdpFailure>,
    pending: bool,
    /// Of a socket that stands for one flow of a prefix.
    pub(super) flow: Option<Box<Flow>>,
}

pub(super) struct Incoming {
    pub(super) from: SocketAddr,
    pub(super) to: IpAddr,
    pub(super) payload: Vec<u8>,
}

struct Outgoing {
    socket: UdpId,
    source: SocketAddr,
    destination: SocketAddr,
    payload: Vec<u8>,
}

impl Sockets {
    pub(super) fn new(key: TableKey) -> Self {
        Self {
            sockets: Slab::new(),
            by_local: HashMap::with_hasher(key),
            transmit: VecDeque::new(),
        }
    }

    fn find(&self, local: SocketAddr) -> Option<UdpId> {
        let any = SocketAddr::new(super::unspecified(local.ip()), local.port());
        self.by_local
            .get(&local)
            .or_else(|| self.by_local.get(&any))
            .copied()
    }
}

impl Socket {
    pub(super) fn new(local: SocketAddr) -> Self {
        Self {
            local,
            queue: VecDeque::new(),
            queued_bytes: 0,
            readable: false,
            failure: None,
            pending: false,
            flow: None,
        }
    }
}

impl Stack {
    /// Makes a UDP socket; port zero draws an ephemeral port, an unspecified address stands for
    /// every own address of its family.
    pub fn bind(&mut self, local: SocketAddr) -> Result<UdpId, BindError> {
        if !local.ip().is_unspecified() && !self.is_own(local.ip()) {
            return Err(BindError::Address);
        }
        let bound = self.config.limits.udp_sockets_max;
        if self.udp.sockets.len() - self.flows.sockets() >= bound {
            return Err(BindError::TooMany);
        }
        let local = if local.port() == 0 {
            self.free_udp_port(local).ok_or(BindError::PortsExhausted)?
        } else {
            local
        };
        if self.udp.by_local.contains_key(&local) {
            return Err(BindError::InUse);
        }
        let id = self.udp.sockets.insert(Socket::new(local));
        self.udp.by_local.insert(local, id);
        Ok(id)
    }

    fn free_udp_port(&mut self, local: SocketAddr) -> Option<SocketAddr> {
        (0..PORTS_TRIED).find_map(|_| {
            let port = PORTS_FIRST | self.secret.port_hint(local);
            let candidate = SocketAddr::new(local.ip(), port);
            (!self.udp.by_local.contains_key(&candidate)).then_some(candidate)
        })
    }

    /// Returns the address and port of a UDP socket.
    #[must_use]
    pub fn udp_local(&self, id: UdpId) -> Option<SocketAddr> {
        self.udp.sockets.get(id).map(|socket| socket.local)
    }

    /// Sends one datagram from the socket's address, or for an unspecified one from the best. The
    /// socket of a flow sends to its peer only.
    pub fn send_to(
        &mut self,
        id: UdpId,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Result<(), SendToError> {
        self.send_from(id, None, remote, payload)
    }

    /// Sends one datagram from `source`, as an answer to a datagram that came to that address.
    ///
    /// `source` counts only for a socket whose own address is unspecified.
    pub fn send_from(
        &mut self,
        id: UdpId,
        source: Option<IpAddr>,
        remote: SocketAddr,
        payload: &[u8],
    ) -> Result<(), SendToError> {
        let local = self.udp_local(id).ok_or(SendToError::Stale)?;
        let other_family = local.is_ipv4() != remote.is_ipv4();
        let other_peer = self.udp_remote(id).is_some_and(|peer| peer != remote);
        if !is_unicast(remote.ip()) || remote.port() == 0 || other_family || other_peer {
            return Err(SendToError::Address);
        }
        let address = if local.ip().is_unspecified() {
            let wanted = source.filter(|&source| self.is_own(source));
            let wanted = wanted.filter(|source| source.is_ipv4() == remote.is_ipv4());
            let best = wanted.or_else(|| self.best_source(remote.ip()));
            best.ok_or(SendToError::NoAddress)?
        } else {
            local.ip()
        };
        let length = ip::header_length(remote.ip()) + udp::HEADER + payload.len();
        if length > self.config.mtu {
            return Err(SendToError::TooLong);
        }
        if self.udp.transmit.len() >= self.config.limits.udp_transmit_datagrams_max {
            return Err(SendToError::QueueFull);
        }
        self.udp.transmit.push_back(Outgoing {
            socket: id,
            source: SocketAddr::new(address, local.port()),
            destination: remote,
            payload: payload.to_vec(),
        });
        Ok(())
    }

    /// Moves the oldest datagram to the front of `out`: its length, who sent it, and to which own
    /// address. What exceeds `out` is cut off.
    pub fn recv_from(&mut self, id: UdpId, out: &mut [u8]) -> Option<(usize, SocketAddr, IpAddr)> {
        let socket = self.udp.sockets.get_mut(id)?;
        let datagram = socket.queue.pop_front()?;
        let cost = datagram.payload.len() + DATAGRAM_OVERHEAD;
        socket.queued_bytes -= cost;
        if socket.queue.is_empty() {
            socket.queue = VecDeque::new();
        }
        if let Some(flow) = &socket.flow {
            let account = flow.account();
            let give_back = |budget: &mut Budget| budget.used -= cost;
            self.flows.accounts.charge(account, give_back);
        }
        let length = datagram.payload.len().min(out.len());
        out[..length].copy_from_slice(&datagram.payload[..length]);
        Some((length, datagram.from, datagram.to))
    }

    /// Gives a UDP socket back; datagrams in its queue are dropped.
    pub fn release_udp(&mut self, id: UdpId) {
        if let Some(mut socket) = self.udp.sockets.remove(id) {
            if socket.flow.is_some() {
                self.close_flow(id, &mut socket);
            } else {
                self.udp.by_local.remove(&socket.local);
            }
        }
    }

    /// Takes a UDP datagram; `packet` is what an ICMP error quotes, when it came in one piece.
    pub(super) fn handle_udp(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
        packet: Option<&[u8]>,
    ) -> Result<(), Discard> {
        let datagram = parse(header, payload)?;
        let local = SocketAddr::new(header.destination, datagram.destination_port);
        let Some(id) = self.udp.find(local) else {
            let cause = Cause::Unreachable(Unreachable::Port);
            self.answer_error(now, cause, header, packet);
            return Err(Discard::UdpNoSocket);
        };
        let bound = self.config.limits.udp_receive_bytes_max;
        let socket = self
            .udp
            .sockets
            .get_mut(id)
            .expect("`by_local` names sockets");
        let cost = datagram.payload.len() + DATAGRAM_OVERHEAD;
        if socket.queued_bytes + cost > bound {
            return Err(Discard::UdpQueueFull);
        }
        socket.queued_bytes += cost;
        socket.queue.push_back(Incoming {
            from: SocketAddr::new(header.source, datagram.source_port),
            to: header.destination,
            payload: datagram.payload.to_vec(),
        });
        socket.readable = true;
        self.tell_udp(id);
        Ok(())
    }

    /// Tells the socket that sent a datagram which did not arrive.
    pub(super) fn handle_udp_error(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        cause: Cause,
    ) -> Result<(), Discard> {
        let own = self.is_own(local.ip()).then(|| self.udp.find(local));
        let id = own
            .unwrap_or_else(|| self.flows.find(local, remote))
            .ok_or(Discard::IcmpUnrelated)?;
        let socket = self
            .udp
            .sockets
            .get_mut(id)
            .expect("tables of ends name sockets");
        socket.failure = Some(UdpFailure { remote, cause });
        self.tell_udp(id);
        Ok(())
    }

    pub(super) fn tell_udp(&mut self, id: UdpId) {
        if let Some(socket) = self.udp.sockets.get_mut(id)
            && !std::mem::replace(&mut socket.pending, true)
        {
            self.events.push_back(Pending::Udp(id));
        }
    }

    pub(super) fn poll_udp_event(&mut self, id: UdpId) -> Option<Event> {
        let socket = self.udp.sockets.get_mut(id)?;
        socket.pending = false;
        if let Some(failure) = socket.failure.take() {
            if socket.readable {
                self.tell_udp(id);
            }
            return Some(Event::UdpFailed(id, failure));
        }
        std::mem::take(&mut socket.readable).then_some(Event::UdpReadable(id))
    }

    pub(super) fn transmit_udp(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let datagram = self.udp.transmit.pop_front()?;
        if let Some(socket) = self.udp.sockets.get_mut(datagram.socket)
            && let Some(flow) = &mut socket.flow
        {
            flow.touch(now);
        }
        let (source, destination) = (datagram.source, datagram.destination);
        let header = super::header(source.ip(), destination.ip(), ip::UDP);
        let length = udp::HEADER + datagram.payload.len();
        let at = ip::emit_header(&header, length, out);
        let datagram = udp::Datagram {
            source_port: source.port(),
            destination_port: destination.port(),
            payload: &datagram.payload,
        };
        Some(at + udp::emit(source.ip(), destination.ip(), &datagram, &mut out[at..]))
    }
}

pub(super) fn parse<'a>(
    header: &ip::Header,
    payload: &'a [u8],
) -> Result<udp::Datagram<'a>, Discard> {
    udp::parse(header.source, header.destination, payload).map_err(|why| match why {
        udp::Malformed::Truncated => Discard::UdpMalformed,
        udp::Malformed::Checksum => Discard::UdpChecksum,
    })
}
