//! The resolver's sockets in the gateway's stack: one UDP socket and one listener per
//! organisation, at its own address, so that a question can only reach the zone of its asker.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use model::address::OrgPrefix;
use netstack::{ConnectionId, ListenerId, Received, Stack, UdpId};

use super::{QUESTION_MAX, Transport, answer};
use crate::org::Orgs;

/// The sockets and the connections that are open.
#[derive(Debug, Default)]
pub(crate) struct Server {
    sockets: BTreeMap<OrgPrefix, (UdpId, ListenerId)>,
    udp: BTreeMap<UdpId, OrgPrefix>,
    listeners: BTreeMap<ListenerId, OrgPrefix>,
    connections: BTreeMap<ConnectionId, Connection>,
    /// When each connection has been idle for too long, in order.
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    /// Counts the answers, so that each is shuffled anew.
    answers: u64,
}

/// One connection, on which questions follow each other (RFC 7766).
#[derive(Debug)]
struct Connection {
    prefix: OrgPrefix,
    /// Bytes of a question that is not whole yet; less than [`QUESTION_MAX`] and its length.
    incoming: Vec<u8>,
    /// Bytes of an answer that the stack had no room for; while there are any, none is read.
    outgoing: Vec<u8>,
    /// The asker has finished: when everything is sent, so are we.
    ended: bool,
    deadline: Instant,
}

/// Connections of one organisation; at the bound the one idle for longest goes.
const CONNECTIONS_MAX: usize = 128;
const BACKLOG: usize = 32;
/// How long a connection may be silent (RFC 7766, 6.2.3: some seconds).
const IDLE_MAX: Duration = Duration::from_secs(10);
const PORT: u16 = 53;
/// Datagrams and connections that one event may take, so that no asker keeps the others waiting
/// without bound; the rest is taken with the next one.
const TURN_MAX: usize = 256;

impl Server {
    /// Opens and closes sockets until there are those of `prefixes`.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        prefixes: &BTreeSet<OrgPrefix>,
    ) {
        let gone = |prefix: &&OrgPrefix| !prefixes.contains(prefix);
        let gone: Vec<_> = self.sockets.keys().filter(gone).copied().collect();
        for prefix in gone {
            if let Some((udp, listener)) = self.sockets.remove(&prefix) {
                self.udp.remove(&udp);
                self.listeners.remove(&listener);
                stack.release_udp(udp);
                stack.release_listener(now, listener);
            }
            let of = |entry: (&ConnectionId, &Connection)| {
                (entry.1.prefix == prefix).then_some(*entry.0)
            };
            let open: Vec<_> = self.connections.iter().filter_map(of).collect();
            for id in open {
                self.close(now, stack, id);
            }
        }
        for &prefix in prefixes {
            if !self.sockets.contains_key(&prefix) {
                self.open(now, stack, prefix);
            }
        }
    }

    /// Opens both sockets, or none: an organisation without is tried again with the next map.
    fn open(&mut self, now: Instant, stack: &mut Stack, prefix: OrgPrefix) {
        let local = SocketAddr::new(IpAddr::V6(prefix.resolver()), PORT);
        let Ok(listener) = stack.listen(local, BACKLOG) else {
            return;
        };
        let Ok(udp) = stack.bind(local) else {
            stack.release_listener(now, listener);
            return;
        };
        self.sockets.insert(prefix, (udp, listener));
        self.udp.insert(udp, prefix);
        self.listeners.insert(listener, prefix);
    }

    /// Takes an event of the stack; gives it back when it is of no socket of the resolver.
    pub(crate) fn handle_event(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        orgs: &Orgs,
        event: netstack::Event,
    ) -> Option<netstack::Event> {
        match event {
            netstack::Event::UdpReadable(id) if self.udp.contains_key(&id) => {
                self.answer_datagrams(stack, orgs, id);
            }
            netstack::Event::UdpFailed(id, _) if self.udp.contains_key(&id) => {}
            netstack::Event::Accepted(id) if self.listeners.contains_key(&id) => {
                self.accept(now, stack, orgs, id);
            }
            netstack::Event::Readable(id)
            | netstack::Event::Writable(id)
            | netstack::Event::Connected(id)
                if self.connections.contains_key(&id) =>
            {
                self.advance(now, stack, orgs, id);
            }
            netstack::Event::Closed(id, _) if self.connections.contains_key(&id) => {
                self.close(now, stack, id);
            }
            netstack::Event::UdpReadable(_)
            | netstack::Event::UdpFailed(..)
            | netstack::Event::Accepted(_)
            | netstack::Event::Readable(_)
            | netstack::Event::Writable(_)
            | netstack::Event::Connected(_)
            | netstack::Event::Closed(..)
            | netstack::Event::FlowOpened(_)
            | netstack::Event::FlowExpired(_)
            | netstack::Event::EchoRequested(_)
            | netstack::Event::EchoReply { .. }
            | netstack::Event::EchoFailed { .. } => return Some(event),
        }
        None
    }

    /// Closes the connections that have been idle for too long.
    pub(crate) fn handle_timeout(&mut self, now: Instant, stack: &mut Stack) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.close(now, stack, id);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn answer_datagrams(&mut self, stack: &mut Stack, orgs: &Orgs, id: UdpId) {
        let mut question = [0; QUESTION_MAX];
        for _ in 0..TURN_MAX {
            let Some((length, from, to)) = stack.recv_from(id, &mut question) else {
                break;
            };
            let bytes = &question[..length];
            if let Some(answer) = self.answer(orgs, from.ip(), to, bytes, Transport::Udp) {
                // A full queue means more questions than can be answered: the asker asks again.
                let _sent = stack.send_from(id, Some(to), from, &answer).is_ok();
            }
        }
    }

    /// Answers when asker and resolver address are of one organisation.
    fn answer(
        &mut self,
        orgs: &Orgs,
        from: IpAddr,
        to: IpAddr,
        question: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let (prefix, served) = orgs.of(from)?;
        let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else {
            return None;
        };
        if !prefix.contains(to) {
            return None;
        }
        self.answers = self.answers.wrapping_add(1);
        answer(&served.zone, from, question, transport, self.answers)
    }

    fn accept(&mut self, now: Instant, stack: &mut Stack, orgs: &Orgs, listener: ListenerId) {
        let Some(&prefix) = self.listeners.get(&listener) else {
            return;
        };
        while let Some(id) = stack.accept(listener) {
            self.make_room(now, stack, prefix);
            let deadline = now + IDLE_MAX;
            let connection = Connection {
                prefix,
                incoming: Vec::new(),
                outgoing: Vec::new(),
                ended: false,
                deadline,
            };
            self.connections.insert(id, connection);
            self.deadlines.insert((deadline, id));
            self.advance(now, stack, orgs, id);
        }
    }

    fn make_room(&mut self, now: Instant, stack: &mut Stack, prefix: OrgPrefix) {
        let of = |id: &ConnectionId| self.connections.get(id).is_some_and(|c| c.prefix == prefix);
        let mut open = self.deadlines.iter().map(|(_, id)| *id).filter(of);
        let oldest = open.next();
        if let Some(oldest) = oldest
            && open.count() + 1 >= CONNECTIONS_MAX
        {
            self.close(now, stack, oldest);
        }
    }

    /// Sends what waits, then reads and answers questions until either side has to wait.
    fn advance(&mut self, now: Instant, stack: &mut Stack, orgs: &Orgs, id: ConnectionId) {
        let Some(mut connection) = self.connections.remove(&id) else {
            return;
        };
        self.deadlines.remove(&(connection.deadline, id));
        let mut bytes = [0; QUESTION_MAX];
        let open = loop {
            if !connection.outgoing.is_empty() {
                match stack.send(now, id, &connection.outgoing) {
                    Ok(0) => break true,
                    Ok(sent) => drop(connection.outgoing.drain(..sent)),
                    Err(_) => break false,
                }
                continue;
            }
            match take_question(&mut connection.incoming) {
                Question::Whole(question) => {
                    let from = stack.remote(id).map(|remote| remote.ip());
                    let resolver: Ipv6Addr = connection.prefix.resolver();
                    let to = IpAddr::V6(resolver);
                    let answer = from
                        .and_then(|from| self.answer(orgs, from, to, &question, Transport::Tcp));
                    let Some(answer) = answer else {
                        break false;
                    };
                    let length = u16::try_from(answer.len()).expect("bounded by its transport");
                    connection.outgoing.extend(length.to_be_bytes());
                    connection.outgoing.extend(answer);
                    continue;
                }
                Question::TooLong => break false,
                Question::Partial if connection.ended => break false,
                Question::Partial => {}
            }
            match stack.recv(now, id, &mut bytes) {
                Ok(Received::Bytes(length)) => connection.incoming.extend(&bytes[..length]),
                Ok(Received::WouldBlock) => break true,
                Ok(Received::End) => connection.ended = true,
                Err(_) => break false,
            }
        };
        if open {
            connection.deadline = now + IDLE_MAX;
            self.deadlines.insert((connection.deadline, id));
            self.connections.insert(id, connection);
        } else {
            stack.release(now, id);
        }
    }

    fn close(&mut self, now: Instant, stack: &mut Stack, id: ConnectionId) {
        if let Some(connection) = self.connections.remove(&id) {
            self.deadlines.remove(&(connection.deadline, id));
            stack.release(now, id);
        }
    }
}

/// What the bytes of a stream begin with.
enum Question {
    Whole(Vec<u8>),
    Partial,
    TooLong,
}

/// Takes the first message off a stream (RFC 1035, 4.2.2).
fn take_question(stream: &mut Vec<u8>) -> Question {
    let Some(length) = stream.first_chunk() else {
        return Question::Partial;
    };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > QUESTION_MAX {
        return Question::TooLong;
    }
    if stream.len() < 2 + length {
        return Question::Partial;
    }
    let question = stream[2..2 + length].to_vec();
    stream.drain(..2 + length);
    Question::Whole(question)
}
