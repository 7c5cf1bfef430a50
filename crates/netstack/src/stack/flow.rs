//! UDP flows and echo requests to addresses that are not the stack's own, as a gateway takes them
//! for the hosts behind it.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use packet::{
    icmp::{self, Cause, Echo, Message, Unreachable},
    ip, udp,
};

use super::{
    Due, Pending, Stack,
    udp::{Incoming, Socket, parse},
};
use crate::{
    BindError, Discard, EchoRequestId, Event, Prefix, PrefixId, Stale, UdpId,
    account::Accounts,
    prefix::Prefixes,
    secret::TableKey,
    slab::{AccountId, Slab},
};

/// What a datagram in a queue counts beside its data, so that empty ones are bounded too.
pub(super) const DATAGRAM_OVERHEAD: usize = 64;

/// Prefixes and what goes on in them.
pub(super) struct Flows {
    binders: Slab<PrefixId, Binder>,
    by_prefix: Prefixes<PrefixId>,
    /// By the local and the remote end.
    by_ends: HashMap<(SocketAddr, SocketAddr), UdpId, TableKey>,
    asked: Slab<EchoRequestId, Asked>,
    pub(super) accounts: Accounts,
}

/// Who takes what comes to a prefix.
struct Binder {
    prefix: Prefix,
    backlog: usize,
    flows: VecDeque<UdpId>,
    echoes: VecDeque<EchoRequestId>,
    flows_pending: bool,
    echoes_pending: bool,
}

/// What a socket for one flow of a prefix has beside its queue.
pub(super) struct Flow {
    remote: SocketAddr,
    account: AccountId,
    used_at: Instant,
    armed: Option<Instant>,
    /// Whose queue it waits in, until it is accepted.
    waits_for: Option<PrefixId>,
}

/// An echo request whose answer waits for the owner's word.
struct Asked {
    request: EchoRequest,
    identifier: u16,
    payload: Vec<u8>,
    account: AccountId,
    armed: Option<Instant>,
}

/// An echo request to a host in a prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EchoRequest {
    /// Names it until its answer.
    pub id: EchoRequestId,
    /// Who asks.
    pub from: IpAddr,
    /// Which host is asked.
    pub to: IpAddr,
    /// The number that the asker gave it.
    pub sequence: u16,
    /// Bytes of data, which the answer repeats.
    pub payload_length: usize,
}

impl Flows {
    pub(super) fn new(key: TableKey, bytes_max: usize) -> Self {
        Self {
            binders: Slab::new(),
            by_prefix: Prefixes::new(key),
            by_ends: HashMap::with_hasher(key),
            asked: Slab::new(),
            accounts: Accounts::new(key, bytes_max),
        }
    }

    pub(super) fn find(&self, local: SocketAddr, remote: SocketAddr) -> Option<UdpId> {
        self.by_ends.get(&(local, remote)).copied()
    }

    pub(super) fn is_bound(&self, address: IpAddr) -> bool {
        self.by_prefix.find(address).is_some()
    }

    /// Sockets of flows.
    pub(super) fn sockets(&self) -> usize {
        self.by_ends.len()
    }

    fn len(&self) -> usize {
        self.by_ends.len() + self.asked.len()
    }
}

impl Flow {
    pub(super) fn account(&self) -> AccountId {
        self.account
    }

    pub(super) fn touch(&mut self, now: Instant) {
        self.used_at = now;
    }
}

impl Stack {
    /// Takes UDP datagrams and ICMP echo requests to every address in `prefix`, but for the
    /// stack's own addresses.
    ///
    /// The first datagram from one address and port to another makes a flow, which
    /// [`Stack::accept_flow`] yields as a socket of its own: [`Stack::udp_local`] tells whom the
    /// peer wants to reach, [`Stack::udp_remote`] who the peer is, and `send_to` answers in that
    /// host's name. A flow ends with [`Stack::release_udp`], or with [`Event::FlowExpired`] after
    /// [`Limits::flow_timeout`](crate::Limits::flow_timeout) without a datagram either way.
    /// An echo request comes out of [`Stack::accept_echo`]. The longest of several prefixes
    /// decides. At most `backlog` flows and as many echo requests wait to be accepted.
    pub fn bind_prefix(&mut self, prefix: Prefix, backlog: usize) -> Result<PrefixId, BindError> {
        if self.flows.by_prefix.contains(prefix) {
            return Err(BindError::InUse);
        }
        if self.flows.binders.len() >= self.config.limits.udp_sockets_max {
            return Err(BindError::TooMany);
        }
        let id = self.flows.binders.insert(Binder {
            prefix,
            backlog: backlog.max(1),
            flows: VecDeque::new(),
            echoes: VecDeque::new(),
            flows_pending: false,
            echoes_pending: false,
        });
        self.flows.by_prefix.insert(prefix, id);
        Ok(id)
    }

    /// Gives a prefix back. What waited to be accepted goes; flows that were accepted stay until
    /// they end, and hear nothing more.
    pub fn release_prefix(&mut self, id: PrefixId) {
        let Some(binder) = self.flows.binders.remove(id) else {
            return;
        };
        self.flows.by_prefix.remove(binder.prefix);
        for flow in binder.flows {
            self.release_udp(flow);
        }
        for echo in binder.echoes {
            self.forget_asked(echo);
        }
    }

    /// Takes the next flow out of the queue of a prefix.
    pub fn accept_flow(&mut self, id: PrefixId) -> Option<UdpId> {
        loop {
            let flow = self.flows.binders.get_mut(id)?.flows.pop_front()?;
            if let Some(socket) = self.udp.sockets.get_mut(flow)
                && let Some(flow_of) = &mut socket.flow
            {
                flow_of.waits_for = None;
                // What came meanwhile is told now that there is somebody to tell.
                if socket.readable {
                    self.tell_udp(flow);
                }
                return Some(flow);
            }
        }
    }

    /// Takes the next echo request out of the queue of a prefix; [`Stack::answer_echo`] or
    /// [`Stack::refuse_echo`] answers it. Without either it is forgotten after
    /// [`Limits::echo_timeout`](crate::Limits::echo_timeout).
    pub fn accept_echo(&mut self, id: PrefixId) -> Option<EchoRequest> {
        loop {
            let echo = self.flows.binders.get_mut(id)?.echoes.pop_front()?;
            if let Some(asked) = self.flows.asked.get(echo) {
                return Some(asked.request);
            }
        }
    }

    /// Answers an echo request in the name of the host that was asked.
    pub fn answer_echo(&mut self, id: EchoRequestId) -> Result<(), Stale> {
        let asked = self.forget_asked(id).ok_or(Stale)?;
        let EchoRequest { from, to, .. } = asked.request;
        if self.answers.len() < self.config.limits.answers_max {
            self.answer_icmp(to, from, &Message::EchoReply(asked.echo()));
        }
        Ok(())
    }

    /// Tells who sent an echo request why the host cannot be asked; the limit for errors holds.
    pub fn refuse_echo(
        &mut self,
        now: Instant,
        id: EchoRequestId,
        what: Unreachable,
    ) -> Result<(), Stale> {
        let asked = self.forget_asked(id).ok_or(Stale)?;
        let EchoRequest { from, to, .. } = asked.request;
        let next_header = if to.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
        let header = super::header(from, to, next_header);
        let at = ip::header_length(to);
        let mut quote = vec![0; at + icmp::HEADER + asked.payload.len()];
        let length = icmp::emit(
            from,
            to,
            &Message::EchoRequest(asked.echo()),
            &mut quote[at..],
        );
        ip::emit_header(&header, length, &mut quote);
        self.answer_error(now, Cause::Unreachable(what), &header, Some(&quote));
        Ok(())
    }

    /// Tells the peer of a flow that its host does not take what it sends; the limit for errors
    /// holds. The flow goes on.
    pub fn refuse_flow(&mut self, now: Instant, id: UdpId, what: Unreachable) -> Result<(), Stale> {
        let socket = self.udp.sockets.get(id).ok_or(Stale)?;
        let (local, flow) = (socket.local, socket.flow.as_ref().ok_or(Stale)?);
        let remote = flow.remote;
        let header = super::header(remote.ip(), local.ip(), ip::UDP);
        let at = ip::header_length(local.ip());
        let mut quote = vec![0; at + udp::HEADER];
        ip::emit_header(&header, udp::HEADER, &mut quote);
        let datagram = udp::Datagram {
            source_port: remote.port(),
            destination_port: local.port(),
            payload: &[],
        };
        udp::emit(remote.ip(), local.ip(), &datagram, &mut quote[at..]);
        self.answer_error(now, Cause::Unreachable(what), &header, Some(&quote));
        Ok(())
    }

    /// Returns the peer of a flow of a prefix; `None` for every other socket.
    #[must_use]
    pub fn udp_remote(&self, id: UdpId) -> Option<SocketAddr> {
        let flow = self.udp.sockets.get(id)?.flow.as_ref()?;
        Some(flow.remote)
    }

    /// Takes a datagram to an address in a prefix.
    pub(super) fn handle_flow(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
    ) -> Result<(), Discard> {
        if !self.flows.is_bound(header.destination) {
            return Err(Discard::NotForUs);
        }
        let datagram = parse(header, payload)?;
        let local = SocketAddr::new(header.destination, datagram.destination_port);
        let remote = SocketAddr::new(header.source, datagram.source_port);
        // Whoever sends from port zero wants no answer (RFC 768), and nothing can be sent there.
        if remote.port() == 0 || local.port() == 0 {
            return Err(Discard::UdpNoSocket);
        }
        let id = match self.flows.find(local, remote) {
            Some(id) => id,
            None => self.open_flow(now, local, remote)?,
        };
        let socket = self.udp.sockets.get_mut(id);
        let socket = socket.expect("`by_ends` names sockets");
        let flow = socket.flow.as_mut();
        let flow = flow.expect("a socket in `by_ends` has a flow");
        flow.touch(now);
        let (account, waits) = (flow.account, flow.waits_for.is_some());
        let length = datagram.payload.len();
        let bound = self.config.limits.udp_receive_bytes_max;
        let room = self.flows.accounts.budget(account).room();
        let cost = length + DATAGRAM_OVERHEAD;
        if cost > room || socket.queued_bytes + cost > bound {
            return Err(Discard::UdpQueueFull);
        }
        self.flows
            .accounts
            .charge(account, |budget| budget.used += cost);
        socket.queued_bytes += cost;
        socket.queue.push_back(Incoming {
            from: remote,
            to: local.ip(),
            payload: datagram.payload.to_vec(),
        });
        socket.readable = true;
        if !waits {
            self.tell_udp(id);
        }
        Ok(())
    }

    fn open_flow(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<UdpId, Discard> {
        let prefix = self.flows.by_prefix.find(local.ip());
        let prefix = prefix.ok_or(Discard::NotForUs)?;
        let binder = self.flows.binders.get(prefix);
        let backlogged = binder.is_none_or(|binder| binder.flows.len() >= binder.backlog);
        if backlogged || !self.admits_flow(remote.ip()) {
            return Err(Discard::FlowsFull);
        }
        let account = self.flows.accounts.open(remote.ip());
        let mut socket = Socket::new(local);
        socket.flow = Some(Box::new(Flow {
            remote,
            account,
            used_at: now,
            armed: None,
            waits_for: Some(prefix),
        }));
        let id = self.udp.sockets.insert(socket);
        self.flows.by_ends.insert((local, remote), id);
        self.arm_flow(now, id);
        if let Some(binder) = self.flows.binders.get_mut(prefix) {
            binder.flows.push_back(id);
            if !std::mem::replace(&mut binder.flows_pending, true) {
                self.events.push_back(Pending::Flows(prefix));
            }
        }
        Ok(id)
    }

    /// Tells whether the peer may hold one more flow or echo request: at most as many as are free.
    fn admits_flow(&self, remote: IpAddr) -> bool {
        let (all, max) = (self.flows.len(), self.config.limits.flows_max);
        self.flows.accounts.admits(remote, all, max)
    }

    fn arm_flow(&mut self, now: Instant, id: UdpId) {
        let timeout = self.config.limits.flow_timeout;
        if let Some(socket) = self.udp.sockets.get_mut(id)
            && let Some(flow) = &mut socket.flow
        {
            let deadline = Some(flow.used_at + timeout);
            self.deadlines
                .arm(now, Due::Flow(id), &mut flow.armed, deadline);
        }
    }

    /// A flow ends, or lives on because it was used meanwhile.
    pub(super) fn handle_flow_timeout(&mut self, now: Instant, id: UdpId) {
        let timeout = self.config.limits.flow_timeout;
        let Some(socket) = self.udp.sockets.get_mut(id) else {
            return;
        };
        let Some(flow) = &mut socket.flow else { return };
        flow.armed = None;
        if flow.used_at + timeout > now {
            self.arm_flow(now, id);
            return;
        }
        if flow.waits_for.is_some() {
            self.release_udp(id);
        } else {
            self.events.push_back(Pending::FlowExpired(id));
        }
    }

    pub(super) fn poll_flow_expired(&mut self, id: UdpId) -> Option<Event> {
        self.udp.sockets.get(id)?;
        self.release_udp(id);
        Some(Event::FlowExpired(id))
    }

    /// A socket was given back: so are the place and the memory of its flow.
    pub(super) fn close_flow(&mut self, id: UdpId, socket: &mut Socket) {
        if let Some(flow) = &mut socket.flow {
            self.flows.by_ends.remove(&(socket.local, flow.remote));
            let queued = socket.queued_bytes;
            self.flows
                .accounts
                .charge(flow.account, |budget| budget.used -= queued);
            self.flows.accounts.close(flow.account);
            self.deadlines.disarm(Due::Flow(id), &mut flow.armed);
        }
    }

    /// Takes an echo request to a host in a prefix.
    pub(super) fn hold_echo(
        &mut self,
        now: Instant,
        header: &ip::Header,
        echo: &Echo<'_>,
    ) -> Result<(), Discard> {
        let (from, to) = (header.source, header.destination);
        let prefix = self.flows.by_prefix.find(to).ok_or(Discard::NotForUs)?;
        // The answer is as long, and is not sent in fragments.
        let length = ip::header_length(to) + icmp::HEADER + echo.payload.len();
        if length > self.config.mtu {
            return Err(Discard::IcmpUnrelated);
        }
        let binder = self.flows.binders.get(prefix);
        let backlogged = binder.is_none_or(|binder| binder.echoes.len() >= binder.backlog);
        if backlogged || !self.admits_flow(from) {
            return Err(Discard::FlowsFull);
        }
        let account = self.flows.accounts.open(from);
        let payload_length = echo.payload.len();
        if payload_length > self.flows.accounts.budget(account).room() {
            self.flows.accounts.close(account);
            return Err(Discard::FlowsFull);
        }
        self.flows
            .accounts
            .charge(account, |budget| budget.used += payload_length);
        let (identifier, sequence) = (echo.identifier, echo.sequence);
        let payload = echo.payload.to_vec();
        let id = self.flows.asked.insert_with(|id| Asked {
            request: EchoRequest {
                id,
                from,
                to,
                sequence,
                payload_length,
            },
            identifier,
            payload,
            account,
            armed: None,
        });
        if let Some(asked) = self.flows.asked.get_mut(id) {
            let deadline = Some(now + self.config.limits.echo_timeout);
            self.deadlines
                .arm(now, Due::Asked(id), &mut asked.armed, deadline);
        }
        if let Some(binder) = self.flows.binders.get_mut(prefix) {
            binder.echoes.push_back(id);
            if !std::mem::replace(&mut binder.echoes_pending, true) {
                self.events.push_back(Pending::Echoes(prefix));
            }
        }
        Ok(())
    }

    pub(super) fn handle_asked_timeout(&mut self, id: EchoRequestId) {
        if let Some(asked) = self.flows.asked.get_mut(id) {
            asked.armed = None;
            self.forget_asked(id);
        }
    }

    fn forget_asked(&mut self, id: EchoRequestId) -> Option<Asked> {
        let mut asked = self.flows.asked.remove(id)?;
        let length = asked.payload.len();
        self.flows
            .accounts
            .charge(asked.account, |budget| budget.used -= length);
        self.flows.accounts.close(asked.account);
        self.deadlines.disarm(Due::Asked(id), &mut asked.armed);
        Some(asked)
    }

    pub(super) fn poll_flows_event(&mut self, id: PrefixId) -> Option<Event> {
        self.flows.binders.get_mut(id)?.flows_pending = false;
        Some(Event::FlowOpened(id))
    }

    pub(super) fn poll_echoes_event(&mut self, id: PrefixId) -> Option<Event> {
        self.flows.binders.get_mut(id)?.echoes_pending = false;
        Some(Event::EchoRequested(id))
    }
}

impl Asked {
    fn echo(&self) -> Echo<'_> {
        Echo {
            identifier: self.identifier,
            sequence: self.request.sequence,
            payload: &self.payload,
        }
    }
}
