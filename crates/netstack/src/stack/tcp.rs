//! TCP sockets: listeners, connections, and who is to transmit.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use packet::{
    ecn::Ecn,
    icmp::Unreachable,
    ip,
    tcp::{self, Flags, Header, Segment},
};

use super::{Due, PORTS_FIRST, PORTS_TRIED, Pending, Received, Stack, is_unicast, unspecified};
use crate::{
    CloseReason, CongestionControl, ConnectError, ConnectionId, Discard, Event, ListenError,
    ListenerId, Prefix, RecvError, SendError, Stale, State, Statistics,
    account::Accounts,
    prefix::Prefixes,
    secret::TableKey,
    slab::{AccountId, Slab},
    tcp::{
        buffer::Budget,
        connection::{Connection, End, Opening, Written, signal},
        sequence::Seq,
    },
};

/// All TCP sockets of a stack.
pub(super) struct Sockets {
    pub(super) connections: Slab<ConnectionId, Box<Entry>>,
    /// By a keyed hash of both ends: eight bytes beside the 64 that the connection has anyway.
    by_tuple: HashMap<u64, ConnectionId, TableKey>,
    key: TableKey,
    listeners: Slab<ListenerId, Listener>,
    by_local: HashMap<SocketAddr, ListenerId, TableKey>,
    /// Whose addresses are accepted though they are not the stack's own.
    pub(super) by_prefix: Prefixes<ListenerId>,
    /// Whom the latest segment was for: the next is often for the same.
    recent: Option<ConnectionId>,
    /// How often the table was asked for somebody else.
    pub(super) look_ups: u64,
    /// Oldest first; ids that are gone are skipped.
    time_wait: VecDeque<ConnectionId>,
    /// Connections that may have something to transmit, each once.
    ready: VecDeque<ConnectionId>,
    pub(super) accounts: Accounts,
    /// When a SYN was last answered by a cookie.
    pub(super) cookies_at: Option<Instant>,
    /// Of connections that are opened from now on.
    congestion_control: CongestionControl,
    ecn: bool,
}

/// A connection and its place in the queues.
pub(super) struct Entry {
    pub(super) connection: Connection,
    /// Whose memory its buffers are.
    pub(super) account: AccountId,
    /// What its deadline in the queue of deadlines is.
    armed: Option<Instant>,
    ready: bool,
    pending: bool,
    time_waits: bool,
    mapped: bool,
    half_open: bool,
    /// Who made it; until `accept` it belongs to its listener.
    listener: Option<ListenerId>,
}

impl Entry {
    /// Whether an event about it has to be queued now.
    fn begins_to_tell(&mut self) -> bool {
        let connection = &self.connection;
        let told = connection.signals != 0 && self.listener.is_none() && !connection.orphaned;
        told && !std::mem::replace(&mut self.pending, true)
    }
}

#[cfg(any(test, feature = "invariants"))]
impl Entry {
    /// Panics when an invariant does not hold.
    pub(super) fn assert_invariants(&self) {
        self.connection.assert_invariants();
        let wanted = self.connection.poll_timeout();
        let asked = wanted.is_none_or(|wanted| self.armed.is_some_and(|armed| armed <= wanted));
        assert!(self.ready || asked, "nobody is asked at {wanted:?}");
    }
}

struct Listener {
    at: Place,
    backlog: usize,
    /// Established and not accepted.
    queue: VecDeque<ConnectionId>,
    pending: bool,
}

/// For which destinations somebody listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Local(SocketAddr),
    Prefix(Prefix),
}

impl Sockets {
    pub(super) fn new(key: TableKey, memory_bytes_max: usize) -> Self {
        Self {
            connections: Slab::new(),
            by_tuple: HashMap::with_hasher(key),
            key,
            listeners: Slab::new(),
            by_local: HashMap::with_hasher(key),
            by_prefix: Prefixes::new(key),
            recent: None,
            look_ups: 0,
            time_wait: VecDeque::new(),
            ready: VecDeque::new(),
            accounts: Accounts::new(key, memory_bytes_max),
            cookies_at: None,
            congestion_control: CongestionControl::default(),
            ecn: false,
        }
    }

    pub(super) fn find(&self, local: SocketAddr, remote: SocketAddr) -> Option<ConnectionId> {
        let id = *self.by_tuple.get(&self.key.hash_one((local, remote)))?;
        let connection = &self.connections.get(id)?.connection;
        (connection.local() == local && connection.remote() == remote).then_some(id)
    }

    /// The same for a segment: a run of them costs one look-up.
    fn find_again(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<ConnectionId> {
        if let Some(id) = self.recent
            && let Some(entry) = self.connections.get(id)
            && entry.mapped
            && (entry.connection.local(), entry.connection.remote()) == (local, remote)
        {
            return Some(id);
        }
        self.look_ups += 1;
        self.recent = self.find(local, remote);
        self.recent
    }

    /// Lets a connection act on what its peer may hold.
    pub(super) fn act<R>(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection, &mut Budget) -> R,
    ) -> Option<R> {
        let entry = self.connections.get_mut(id)?;
        let connection = &mut entry.connection;
        let charge = |budget: &mut Budget| act(connection, budget);
        Some(self.accounts.charge(entry.account, charge))
    }

    /// The same for its owner, who has not released it.
    fn act_owned<R>(
        &mut self,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection, &mut Budget) -> R,
    ) -> Option<R> {
        owned(&mut self.connections, id)?;
        self.act(id, act)
    }

    /// Tells whether as many connections wait for `accept` as may.
    pub(super) fn is_backlogged(&self, listener: ListenerId) -> bool {
        let listener = self.listeners.get(listener);
        listener.is_none_or(|listener| listener.queue.len() >= listener.backlog)
    }

    pub(super) fn is_prefix(&self, listener: ListenerId) -> bool {
        let listener = self.listeners.get(listener);
        listener.is_some_and(|listener| matches!(listener.at, Place::Prefix(_)))
    }

    pub(super) fn find_listener(&self, local: SocketAddr) -> Option<ListenerId> {
        let any = SocketAddr::new(unspecified(local.ip()), local.port());
        self.by_local
            .get(&local)
            .or_else(|| self.by_local.get(&any))
            .copied()
    }
}

impl Stack {
    /// Begins to open a connection to `remote`; [`Event::Connected`] or [`Event::Closed`] follows.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
    ) -> Result<ConnectionId, ConnectError> {
        if !is_unicast(remote.ip()) || remote.port() == 0 {
            return Err(ConnectError::Address);
        }
        let address = self
            .best_source(remote.ip())
            .ok_or(ConnectError::NoAddress)?;
        if !self.make_room(now) {
            return Err(ConnectError::TooMany);
        }
        let local = (0..PORTS_TRIED).find_map(|_| {
            let port = PORTS_FIRST | self.secret.port_hint(remote);
            let local = SocketAddr::new(address, port);
            self.tcp.find(local, remote).is_none().then_some(local)
        });
        let local = local.ok_or(ConnectError::PortsExhausted)?;
        let opening = self.opening(now, local, remote, None);
        let connection = Connection::connect(now, opening);
        Ok(self.insert_connection(now, connection, None))
    }

    pub(super) fn opening(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        floor: Option<Seq>,
    ) -> Opening {
        let epoch = self.epoch(now);
        let uptime = now.saturating_duration_since(epoch);
        let iss = Seq(self.secret.initial_sequence(local, remote, uptime));
        let limits = &self.config.limits;
        Opening {
            local: End::new(local),
            remote: End::new(remote),
            iss: floor.map_or(iss, |floor| floor.max(iss)),
            mtu: self.config.mtu,
            stamp_base: (epoch, self.secret.timestamp_offset(local, remote)),
            // Windows are below 4 GiB (RFC 7323, 2.3).
            send_bytes_max: u32::try_from(limits.send_bytes_max).unwrap_or(u32::MAX),
            receive_bytes_max: u32::try_from(limits.receive_bytes_max).unwrap_or(u32::MAX),
            user_timeout: limits.user_timeout,
            connect_timeout: limits.connect_timeout,
            congestion_control: self.tcp.congestion_control,
            ecn: self.tcp.ecn,
        }
    }

    pub(super) fn insert_connection(
        &mut self,
        now: Instant,
        connection: Connection,
        listener: Option<ListenerId>,
    ) -> ConnectionId {
        let tuple = (connection.local(), connection.remote());
        let account = self.tcp.accounts.open(tuple.1.ip());
        let id = self.tcp.connections.insert(Box::new(Entry {
            connection,
            account,
            armed: None,
            ready: false,
            pending: false,
            time_waits: false,
            mapped: true,
            half_open: false,
            listener,
        }));
        let hash = self.tcp.key.hash_one(tuple);
        self.tcp.by_tuple.insert(hash, id);
        self.settle(now, id);
        id
    }

    /// Makes room for one more connection at the expense of the oldest in TIME-WAIT.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        while self.tcp.connections.len() >= self.config.limits.connections_max {
            if !self.end_oldest_time_wait(now) {
                return false;
            }
        }
        true
    }

    /// Tells whether the peer may open one more connection to us beside those that it has, also
    /// at the expense of the oldest in TIME-WAIT.
    pub(super) fn admits(&mut self, now: Instant, remote: SocketAddr) -> bool {
        let bound = self.config.limits.connections_max;
        loop {
            let all = self.tcp.connections.len();
            if self.tcp.accounts.admits(remote.ip(), all, bound) {
                return true;
            }
            if !self.end_oldest_time_wait(now) {
                return false;
            }
        }
    }

    /// Assigns remote addresses to peers, in place of what was assigned before: all addresses in
    /// prefixes of one number share one account, an address in no prefix has its own.
    ///
    /// A peer may hold as much buffer memory, as many connections that it has opened and as many
    /// flows of prefixes as are free beside its own; so a greedy one starves no other. Connections
    /// and flows keep their account.
    pub fn set_accounts(&mut self, accounts: &[(Prefix, u64)]) {
        self.tcp.accounts.assign(accounts);
        self.flows.accounts.assign(accounts);
    }

    fn end_oldest_time_wait(&mut self, now: Instant) -> bool {
        let Some(id) = self.tcp.time_wait.pop_front() else {
            return false;
        };
        self.tcp.act(id, |connection, budget| {
            if connection.state == State::TimeWait {
                connection.close(CloseReason::Finished, budget);
            }
        });
        self.settle(now, id);
        true
    }

    /// Listens on `local`; an unspecified address stands for every own address of its family.
    ///
    /// At most `backlog` established connections wait for [`Stack::accept`]; further SYNs are
    /// discarded.
    pub fn listen(&mut self, local: SocketAddr, backlog: usize) -> Result<ListenerId, ListenError> {
        if local.port() == 0 || !(local.ip().is_unspecified() || self.is_own(local.ip())) {
            return Err(ListenError::Address);
        }
        if self.tcp.by_local.contains_key(&local) {
            return Err(ListenError::InUse);
        }
        let id = self.insert_listener(Place::Local(local), backlog)?;
        self.tcp.by_local.insert(local, id);
        Ok(id)
    }

    pub(super) fn insert_listener(
        &mut self,
        at: Place,
        backlog: usize,
    ) -> Result<ListenerId, ListenError> {
        if self.tcp.listeners.len() >= self.config.limits.listeners_max {
            return Err(ListenError::TooMany);
        }
        Ok(self.tcp.listeners.insert(Listener {
            at,
            backlog: backlog.max(1),
            queue: VecDeque::new(),
            pending: false,
        }))
    }

    /// Takes the next established connection out of the queue of a listener.
    pub fn accept(&mut self, listener: ListenerId) -> Option<ConnectionId> {
        loop {
            let id = self.tcp.listeners.get_mut(listener)?.queue.pop_front()?;
            if let Some(entry) = self.tcp.connections.get_mut(id) {
                entry.listener = None;
                // What has happened meanwhile is told now that there is somebody to tell.
                if entry.connection.signals != 0 && !std::mem::replace(&mut entry.pending, true) {
                    self.events.push_back(Pending::Connection(id));
                }
                return Some(id);
            }
        }
    }

    /// Stops listening and aborts the connections that wait in the queue.
    pub fn release_listener(&mut self, now: Instant, listener: ListenerId) {
        let Some(released) = self.tcp.listeners.remove(listener) else {
            return;
        };
        match released.at {
            Place::Local(local) => {
                self.tcp.by_local.remove(&local);
            }
            Place::Prefix(prefix) => self.tcp.by_prefix.remove(prefix),
        }
        let ids: Vec<_> = self.tcp.connections.ids().collect();
        for id in ids {
            let Some(entry) = self.tcp.connections.get_mut(id) else {
                continue;
            };
            if entry.listener == Some(listener) {
                entry.listener = None;
                self.tcp.act(id, |connection, budget| {
                    connection.orphaned = true;
                    connection.abort(budget);
                });
                self.settle(now, id);
            }
        }
    }

    /// Takes as many bytes as there is room for and returns their number; zero means no room now,
    /// and [`Event::Writable`] tells when there is some.
    pub fn send(
        &mut self,
        now: Instant,
        id: ConnectionId,
        bytes: &[u8],
    ) -> Result<usize, SendError> {
        let connection = owned(&mut self.tcp.connections, id).ok_or(SendError::Stale)?;
        if let Some(reason) = connection.reason {
            return Err(SendError::Closed(reason));
        }
        if connection.is_finishing() {
            return Err(SendError::ShutDown);
        }
        let send =
            |connection: &mut Connection, budget: &mut Budget| connection.send(now, bytes, budget);
        let taken = self.tcp.act(id, send).ok_or(SendError::Stale)?;
        self.settle(now, id);
        Ok(taken)
    }

    /// Moves received bytes to the front of `out`.
    pub fn recv(
        &mut self,
        now: Instant,
        id: ConnectionId,
        out: &mut [u8],
    ) -> Result<Received, RecvError> {
        let connection = owned(&mut self.tcp.connections, id).ok_or(RecvError::Stale)?;
        if connection.readable() > 0 && !out.is_empty() {
            let recv = |connection: &mut Connection, budget: &mut Budget| {
                connection.recv(now, out, budget)
            };
            let length = self.tcp.act(id, recv).ok_or(RecvError::Stale)?;
            self.settle(now, id);
            return Ok(Received::Bytes(length));
        }
        if connection.readable() == 0 && connection.is_at_end() {
            return Ok(Received::End);
        }
        match connection.reason {
            Some(reason) => Err(RecvError::Closed(reason)),
            None => Ok(Received::WouldBlock),
        }
    }

    /// Finishes our side: what was sent before is delivered, then the peer reads the end.
    pub fn shutdown(&mut self, now: Instant, id: ConnectionId) {
        if let Some(connection) = owned(&mut self.tcp.connections, id) {
            connection.shutdown();
            self.settle(now, id);
        }
    }

    /// Ends the connection at once with a RST; the id stays until `release`.
    pub fn abort(&mut self, now: Instant, id: ConnectionId) {
        self.tcp.act_owned(id, Connection::abort);
        self.settle(now, id);
    }

    /// Ends every connection to an address of which `is_gone` says that nothing comes from there
    /// any more; the owner is told that the host is unreachable. It looks at all connections.
    ///
    /// An ICMP error may be forged and ends no connection that stands (RFC 5927, 5.2): this is for
    /// who knows.
    pub fn end_unreachable(&mut self, now: Instant, is_gone: impl Fn(IpAddr) -> bool) {
        let connections = &self.tcp.connections;
        let gone = |id: &ConnectionId| {
            let entry = connections.get(*id);
            entry.is_some_and(|entry| is_gone(entry.connection.remote().ip()))
        };
        let ended: Vec<_> = connections.ids().filter(gone).collect();
        for id in ended {
            let reason = CloseReason::Unreachable(Unreachable::Host);
            self.tcp
                .act(id, |connection, budget| connection.close(reason, budget));
            self.settle(now, id);
        }
    }

    /// Gives the id back; the stack finishes the close by itself.
    ///
    /// What was sent is still delivered. Bytes that were received and not read, or that come
    /// later, reset the connection (RFC 1122, 4.2.2.13).
    pub fn release(&mut self, now: Instant, id: ConnectionId) {
        self.tcp
            .act_owned(id, |connection, budget| connection.release(now, budget));
        self.settle(now, id);
    }

    /// Returns the own address and port of a connection.
    #[must_use]
    pub fn local(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.connection(id).map(Connection::local)
    }

    /// Returns the peer's address and port.
    #[must_use]
    pub fn remote(&self, id: ConnectionId) -> Option<SocketAddr> {
        self.connection(id).map(Connection::remote)
    }

    /// Returns the state of a connection.
    #[must_use]
    pub fn state(&self, id: ConnectionId) -> Option<State> {
        self.connection(id).map(|connection| connection.state)
    }

    /// Returns how a connection ended; `None` while it has not.
    #[must_use]
    pub fn close_reason(&self, id: ConnectionId) -> Option<CloseReason> {
        self.connection(id).and_then(|connection| connection.reason)
    }

    /// Returns what a connection has measured and counted.
    #[must_use]
    pub fn statistics(&self, id: ConnectionId) -> Option<Statistics> {
        self.connection(id).map(Connection::statistics)
    }

    /// Returns the same of all connections, also of those that only finish their close.
    pub fn all_statistics(&self) -> impl Iterator<Item = Statistics> {
        let connections = &self.tcp.connections;
        connections
            .ids()
            .filter_map(|id| connections.get(id))
            .map(|entry| entry.connection.statistics())
    }

    fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        let connection = &self.tcp.connections.get(id)?.connection;
        (!connection.orphaned).then_some(connection)
    }

    /// Turns Nagle's algorithm (RFC 9293, 3.7.4) on or off; it is off in a new connection.
    pub fn set_nagle(&mut self, now: Instant, id: ConnectionId, on: bool) -> Result<(), Stale> {
        owned(&mut self.tcp.connections, id)
            .ok_or(Stale)?
            .set_nagle(on);
        self.settle(now, id);
        Ok(())
    }

    /// Chooses the congestion control of a connection, also while data is on its way.
    pub fn set_congestion_control(
        &mut self,
        now: Instant,
        id: ConnectionId,
        control: CongestionControl,
    ) -> Result<(), Stale> {
        owned(&mut self.tcp.connections, id)
            .ok_or(Stale)?
            .set_congestion_control(now, control);
        self.settle(now, id);
        Ok(())
    }

    /// Chooses the congestion control of all connections that are opened or accepted from now on;
    /// it is [`CongestionControl::Cubic`] in a new stack.
    pub fn set_default_congestion_control(&mut self, control: CongestionControl) {
        self.tcp.congestion_control = control;
    }

    /// Lets connections that are opened from now on ask for explicit congestion notification
    /// (RFC 3168), by which routers mark instead of dropping. A peer that asks is always answered;
    /// a new stack does not ask, as hosts commonly do not.
    pub fn set_ecn(&mut self, asks: bool) {
        self.tcp.ecn = asks;
    }

    /// Asks the peer of an idle connection for a sign of life every `interval`; after three
    /// questions without an answer the connection ends (RFC 9293, 3.8.4). Off when new.
    pub fn set_keepalive(
        &mut self,
        now: Instant,
        id: ConnectionId,
        interval: Option<Duration>,
    ) -> Result<(), Stale> {
        owned(&mut self.tcp.connections, id)
            .ok_or(Stale)?
            .set_keepalive(interval);
        self.settle(now, id);
        Ok(())
    }

    /// Changes how long sent data may stay without acknowledgement (RFC 5482).
    pub fn set_user_timeout(
        &mut self,
        now: Instant,
        id: ConnectionId,
        timeout: Duration,
    ) -> Result<(), Stale> {
        owned(&mut self.tcp.connections, id)
            .ok_or(Stale)?
            .set_user_timeout(timeout);
        self.settle(now, id);
        Ok(())
    }

    pub(super) fn handle_tcp(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let (source, destination) = (header.source, header.destination);
        let segment = tcp::parse(source, destination, payload).map_err(|why| match why {
            tcp::Malformed::Truncated | tcp::Malformed::Length => Discard::TcpMalformed,
            tcp::Malformed::Checksum => Discard::TcpChecksum,
        })?;
        self.handle_tcp_segment(now, header, &segment)
    }

    /// Takes a segment whose checksum is right.
    pub(super) fn handle_tcp_segment(
        &mut self,
        now: Instant,
        header: &ip::Header,
        segment: &Segment<'_>,
    ) -> Result<(), Discard> {
        let (source, destination) = (header.source, header.destination);
        let local = SocketAddr::new(destination, segment.header.destination_port);
        let remote = SocketAddr::new(source, segment.header.source_port);
        let mut floor = None;
        if let Some(id) = self.tcp.find_again(local, remote) {
            let entry = self
                .tcp
                .connections
                .get_mut(id)
                .expect("`by_tuple` names connections");
            let connection = &mut entry.connection;
            if !(begins(&segment.header) && connection.yields_to(&segment.header)) {
                let outcome = self.tcp.accounts.charge(entry.account, |budget| {
                    connection.handle_segment(now, segment, budget)
                });
                if outcome.is_ok() {
                    let congested = Ecn::of_traffic_class(header.traffic_class) == Ecn::Ce;
                    connection.handle_marks(now, segment, congested);
                }
                self.settle(now, id);
                if outcome == Err(Discard::TcpNoSocket) {
                    self.answer_reset(local, remote, segment);
                }
                return outcome;
            }
            // A new incarnation takes the place of one in TIME-WAIT (RFC 6191).
            floor = Some(connection.next_iss());
            self.tcp.accounts.charge(entry.account, |budget| {
                connection.close(CloseReason::Finished, budget);
            });
            self.settle(now, id);
        }
        let outcome = self.handle_opening(now, local, remote, segment, floor);
        if outcome == Err(Discard::TcpNoSocket) {
            self.answer_reset(local, remote, segment);
        }
        outcome
    }

    /// RFC 9293, 3.10.7.1.
    fn answer_reset(&mut self, local: SocketAddr, remote: SocketAddr, segment: &Segment<'_>) {
        let refused = &segment.header;
        let full = self.answers.len() >= self.config.limits.answers_max;
        if refused.flags.has(Flags::RST) || full {
            return;
        }
        let mut reset = Header {
            source_port: local.port(),
            destination_port: remote.port(),
            ..Header::default()
        };
        if refused.flags.has(Flags::ACK) {
            reset.sequence = refused.acknowledgement;
            reset.flags = Flags::RST;
        } else {
            reset.acknowledgement = refused.sequence.wrapping_add(segment.sequence_length());
            reset.flags = Flags::RST.with(Flags::ACK);
        }
        self.answer_segment(local, remote, reset);
    }

    /// Brings everything around a connection up to date after it has changed.
    pub(super) fn settle(&mut self, now: Instant, id: ConnectionId) {
        let Some(entry) = self.tcp.connections.get_mut(id) else {
            return;
        };
        let half_open = entry.connection.state == State::SynReceived;
        let was_half_open = std::mem::replace(&mut entry.half_open, half_open);
        match (was_half_open, half_open) {
            (false, true) => self.tcp.accounts.begin_opening(entry.account),
            (true, false) => self.tcp.accounts.finish_opening(entry.account),
            (false, false) | (true, true) => {}
        }
        if entry.listener.is_some() {
            self.settle_unaccepted(id);
        }
        let Some(entry) = self.tcp.connections.get_mut(id) else {
            return;
        };
        let connection = &mut entry.connection;
        if connection.state == State::Closed {
            if std::mem::take(&mut entry.mapped) {
                let tuple = (connection.local(), connection.remote());
                let hash = self.tcp.key.hash_one(tuple);
                // Of two whose hashes are equal, which nobody will see, the later is found.
                if self.tcp.by_tuple.get(&hash) == Some(&id) {
                    self.tcp.by_tuple.remove(&hash);
                }
            }
            if connection.orphaned && !connection.owes_reset() {
                self.remove(now, id);
                return;
            }
        }
        if connection.state == State::TimeWait && !std::mem::replace(&mut entry.time_waits, true) {
            self.tcp.time_wait.push_back(id);
        }
        if entry.begins_to_tell() {
            self.events.push_back(Pending::Connection(id));
        }
        if !std::mem::replace(&mut entry.ready, true) {
            self.tcp.ready.push_back(id);
        }
        let wanted = entry.connection.poll_timeout();
        self.deadlines
            .arm(now, Due::Connection(id), &mut entry.armed, wanted);
        while self.tcp.time_wait.len() > self.config.limits.time_wait_max {
            self.end_oldest_time_wait(now);
        }
    }

    /// A connection that belongs to a listener: it enters the queue, or ends unseen.
    fn settle_unaccepted(&mut self, id: ConnectionId) {
        let Some(entry) = self.tcp.connections.get_mut(id) else {
            return;
        };
        let connection = &mut entry.connection;
        if connection.state == State::Closed {
            connection.orphaned = true;
        } else if connection.signals & signal::ACCEPTED != 0 {
            connection.signals &= !signal::ACCEPTED;
            let Some(listener_id) = entry.listener else {
                return;
            };
            self.offer(listener_id, id);
        }
    }

    /// Puts a connection into the queue of its listener.
    pub(super) fn offer(&mut self, listener_id: ListenerId, id: ConnectionId) {
        let Some(listener) = self.tcp.listeners.get_mut(listener_id) else {
            return;
        };
        listener.queue.push_back(id);
        if !std::mem::replace(&mut listener.pending, true) {
            self.events.push_back(Pending::Listener(listener_id));
        }
    }

    fn remove(&mut self, now: Instant, id: ConnectionId) {
        if let Some(mut entry) = self.tcp.connections.remove(id) {
            self.tcp
                .accounts
                .charge(entry.account, |budget| entry.connection.free(budget));
            self.tcp.accounts.close(entry.account);
            self.deadlines
                .arm(now, Due::Connection(id), &mut entry.armed, None);
        }
    }

    pub(super) fn handle_connection_timeout(&mut self, now: Instant, id: ConnectionId) {
        if let Some(entry) = self.tcp.connections.get_mut(id) {
            entry.armed = None;
            self.tcp.act(id, |connection, budget| {
                connection.handle_timeout(now, budget);
            });
            self.settle(now, id);
        }
    }

    pub(super) fn poll_connection_event(&mut self, id: ConnectionId) -> Option<Event> {
        let entry = self.tcp.connections.get_mut(id)?;
        let connection = &mut entry.connection;
        entry.pending = false;
        if connection.orphaned {
            return None;
        }
        let first = connection.signals & connection.signals.wrapping_neg();
        connection.signals &= !first;
        if connection.signals != 0 {
            entry.pending = true;
            self.events.push_front(Pending::Connection(id));
        }
        match first {
            signal::CONNECTED => Some(Event::Connected(id)),
            signal::READABLE => Some(Event::Readable(id)),
            signal::WRITABLE => Some(Event::Writable(id)),
            signal::CLOSED => {
                let reason = connection.reason.unwrap_or(CloseReason::Finished);
                Some(Event::Closed(id, reason))
            }
            _ => None,
        }
    }

    pub(super) fn poll_listener_event(&mut self, id: ListenerId) -> Option<Event> {
        let listener = self.tcp.listeners.get_mut(id)?;
        listener.pending = false;
        Some(Event::Accepted(id))
    }

    /// Lets every ready connection transmit in turn: at most `segments_max` segments, of which the
    /// header stands in `out` behind the room for an IP header.
    pub(super) fn transmit_connection(
        &mut self,
        now: Instant,
        segments_max: usize,
        out: &mut [u8],
    ) -> Option<(ConnectionId, Written)> {
        while let Some(id) = self.tcp.ready.pop_front() {
            let Some(entry) = self.tcp.connections.get_mut(id) else {
                continue;
            };
            let connection = &mut entry.connection;
            connection.bound_mtu(self.config.mtu);
            let at = ip::header_length(connection.remote().ip());
            let bound = Self::segments_in_packet(connection.data_size());
            let segments_max = segments_max.min(bound);
            let budget = self.tcp.accounts.budget(entry.account);
            let written = connection.poll_transmit(now, &budget, segments_max, &mut out[at..]);
            self.operations += 1;
            let Some(written) = written else {
                entry.ready = false;
                if connection.state == State::Closed && connection.orphaned {
                    self.remove(now, id);
                } else {
                    let wanted = connection.poll_timeout();
                    self.deadlines
                        .arm(now, Due::Connection(id), &mut entry.armed, wanted);
                }
                continue;
            };
            if entry.begins_to_tell() {
                self.events.push_back(Pending::Connection(id));
            }
            self.tcp.ready.push_back(id);
            return Some((id, written));
        }
        None
    }

    /// Bytes that all send and receive buffers hold now; bounded by
    /// [`Limits::memory_bytes_max`](crate::Limits::memory_bytes_max) and a floor per connection.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.tcp.accounts.bytes()
    }

    /// Connections of all kinds, those included that only finish their close.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.tcp.connections.len()
    }
}

/// The connection of an id that has not been released.
pub(super) fn owned(
    connections: &mut Slab<ConnectionId, Box<Entry>>,
    id: ConnectionId,
) -> Option<&mut Connection> {
    let connection = &mut connections.get_mut(id)?.connection;
    (!connection.orphaned).then_some(connection)
}

pub(super) fn begins(header: &Header) -> bool {
    header.flags.has(Flags::SYN) && !header.flags.has(Flags::ACK) && !header.flags.has(Flags::RST)
}
