//! What comes to addresses that are not the stack's own, as a gateway accepts them for the hosts
//! behind it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use packet::{
    flow::{Flow, Transport},
    icmp::{self, Cause, Message, Unreachable},
    ip,
    tcp::{self, Segment},
};

use super::{
    Stack,
    tcp::{Place, owned},
};
use crate::{ConnectionId, Discard, ListenError, ListenerId, Prefix, Stale};

/// How a peer learns that its destination is not to be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// By a RST: the host is there and nobody listens.
    Reset,
    /// By an ICMP error; the limit for errors holds.
    Unreachable(Unreachable),
    /// Not at all, as by a filter that drops.
    Silence,
}

impl Stack {
    /// Accepts TCP connections to every address in `prefix` and every port, but for the stack's
    /// own addresses.
    ///
    /// [`Stack::accept`] yields a connection when its SYN has come. [`Stack::local`] tells whom
    /// the peer wants to reach; the SYN has no answer until [`Stack::admit`], when that host has
    /// answered, or [`Stack::refuse`]. Without either the connection ends after
    /// [`Limits::connect_timeout`](crate::Limits::connect_timeout). The longest of several
    /// prefixes decides. At most `backlog` connections wait for `accept`.
    pub fn listen_prefix(
        &mut self,
        prefix: Prefix,
        backlog: usize,
    ) -> Result<ListenerId, ListenError> {
        if self.tcp.by_prefix.contains(prefix) {
            return Err(ListenError::InUse);
        }
        let id = self.insert_listener(Place::Prefix(prefix), backlog)?;
        self.tcp.by_prefix.insert(prefix, id);
        Ok(id)
    }

    /// Tells whether packets of this flow belong to a connection or UDP flow of the stack.
    #[must_use]
    pub fn holds(&self, flow: &Flow) -> bool {
        let ends = |source, destination| {
            let local = SocketAddr::new(flow.destination, destination);
            (local, SocketAddr::new(flow.source, source))
        };
        match flow.transport {
            Transport::Tcp {
                source,
                destination,
            } => {
                let (local, remote) = ends(source, destination);
                self.tcp.find(local, remote).is_some()
            }
            Transport::Udp {
                source,
                destination,
            } => {
                let (local, remote) = ends(source, destination);
                self.flows.find(local, remote).is_some()
            }
            Transport::Echo(_) | Transport::Other(_) => false,
        }
    }

    /// Answers the SYN of a connection to a prefix; [`Event::Connected`](crate::Event::Connected)
    /// or [`Event::Closed`](crate::Event::Closed) follows. Does nothing where it was answered.
    pub fn admit(&mut self, now: Instant, id: ConnectionId) -> Result<(), Stale> {
        owned(&mut self.tcp.connections, id)
            .ok_or(Stale)?
            .admit(now);
        self.settle(now, id);
        Ok(())
    }

    /// Tells the peer of a connection to a prefix why it cannot be, and releases the id. A
    /// connection whose SYN was answered is reset, whatever `refusal` says.
    pub fn refuse(
        &mut self,
        now: Instant,
        id: ConnectionId,
        refusal: Refusal,
    ) -> Result<(), Stale> {
        let connection = owned(&mut self.tcp.connections, id).ok_or(Stale)?;
        let (local, remote, syn) = (connection.local(), connection.remote(), connection.syn());
        if !connection.is_held() || refusal == Refusal::Reset {
            self.abort(now, id);
            self.release(now, id);
            return Ok(());
        }
        self.tcp
            .act(id, |connection, budget| connection.drop_held(budget));
        self.settle(now, id);
        if let Refusal::Unreachable(what) = refusal {
            let header = super::header(remote.ip(), local.ip(), ip::TCP);
            let at = ip::header_length(local.ip());
            let mut quote = vec![0; at + tcp::HEADER];
            ip::emit_header(&header, tcp::HEADER, &mut quote);
            let segment = Segment {
                header: syn,
                payload: &[],
            };
            tcp::emit(remote.ip(), local.ip(), &segment, &mut quote[at..]);
            self.answer_error(now, Cause::Unreachable(what), &header, Some(&quote));
        }
        Ok(())
    }

    /// Tells whether some socket accepts packets to `address`, which is not the stack's own.
    pub(super) fn is_accepted(&self, address: IpAddr) -> bool {
        self.tcp.by_prefix.find(address).is_some() || self.flows.is_bound(address)
    }

    /// A packet for an address that is not the stack's own. Only what somebody asked for counts:
    /// no answer comes from a host of which we know nothing.
    pub(super) fn dispatch_foreign(
        &mut self,
        now: Instant,
        header: &ip::Header,
        payload: &[u8],
    ) -> Result<(), Discard> {
        let (from, to) = (header.source, header.destination);
        match header.next_header {
            ip::TCP if self.tcp.by_prefix.find(to).is_some() => {
                self.handle_tcp(now, header, payload)
            }
            ip::UDP => self.handle_flow(now, header, payload),
            ip::ICMP | ip::ICMPV6 if (header.next_header == ip::ICMP) == from.is_ipv4() => {
                let message = icmp::parse(from, to, payload).map_err(|why| match why {
                    icmp::Malformed::Truncated => Discard::IcmpMalformed,
                    icmp::Malformed::Checksum => Discard::IcmpChecksum,
                })?;
                match message {
                    // About what we sent in that host's name.
                    Message::Error { cause, quote } => {
                        self.handle_icmp_error(now, from, to, cause, quote)
                    }
                    Message::EchoRequest(echo) => self.hold_echo(now, header, &echo),
                    Message::EchoReply(_) | Message::Other { .. } => Err(Discard::NotForUs),
                }
            }
            _ => Err(Discard::NotForUs),
        }
    }
}
