//! What happened to the sockets of a stack.

use std::{net::IpAddr, time::Duration};

use crate::{
    error::{EchoFailure, UdpFailure},
    slab::{ConnectionId, EchoId, ListenerId, PrefixId, UdpId},
    tcp::CloseReason,
};

/// Something that the owner of a socket waits for.
///
/// At most one event of a kind is pending for a socket, so the queue is bounded by the sockets.
/// An event is a hint: act on the socket until it says that there is no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A connection that [`Stack::connect`](crate::Stack::connect) began is established.
    Connected(ConnectionId),
    /// `recv` has bytes or the end of the stream.
    Readable(ConnectionId),
    /// `send` has room again after it had taken less than it was given.
    Writable(ConnectionId),
    /// The connection has ended; `send` and `recv` will do nothing more, `release` frees the id.
    Closed(ConnectionId, CloseReason),
    /// `accept` has a connection.
    Accepted(ListenerId),
    /// `recv_from` has a datagram.
    UdpReadable(UdpId),
    /// A datagram was not delivered; the latest failure since the event before.
    UdpFailed(UdpId, UdpFailure),
    /// `accept_flow` has a flow of a prefix.
    FlowOpened(PrefixId),
    /// A flow was not used for [`Limits::flow_timeout`](crate::Limits::flow_timeout); the id is
    /// released.
    FlowExpired(UdpId),
    /// `accept_echo` has an echo request to a host in a prefix.
    EchoRequested(PrefixId),
    /// The reply to a `ping`; the id is released.
    EchoReply {
        /// What `ping` returned.
        id: EchoId,
        /// What `ping` was given.
        sequence: u16,
        /// Who answered.
        from: IpAddr,
        /// From the request to the reply.
        round_trip: Duration,
    },
    /// A `ping` has failed; the id is released.
    EchoFailed {
        /// What `ping` returned.
        id: EchoId,
        /// What `ping` was given.
        sequence: u16,
        /// Who said so; the destination when nobody did.
        from: IpAddr,
        /// From the request until it failed.
        elapsed: Duration,
        /// Why.
        failure: EchoFailure,
    },
}
