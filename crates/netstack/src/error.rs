//! What a caller of the stack branches on: one enum for each operation that can fail.

use packet::icmp::Cause;
use thiserror::Error;

use crate::tcp::CloseReason;

/// The id names a socket that has been released.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the socket has been released")]
pub struct Stale;

/// Why a connection cannot even begin to open.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ConnectError {
    /// The remote address or port cannot be one end of a connection.
    #[error("the remote address cannot be connected to")]
    Address,
    /// The stack has no address of the remote's family.
    #[error("no own address of that family")]
    NoAddress,
    /// Every port towards this remote is in use.
    #[error("every local port towards this address is in use")]
    PortsExhausted,
    /// The table of connections is full.
    #[error("too many connections")]
    TooMany,
}

/// Why a listener cannot be made.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ListenError {
    /// The address is not one of the stack's, or the port is zero.
    #[error("not an own address and port")]
    Address,
    /// Another listener has that address and port.
    #[error("address and port are in use")]
    InUse,
    /// The table of listeners is full.
    #[error("too many listeners")]
    TooMany,
}

/// Why no data can be given to a connection any more.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SendError {
    /// The id names a connection that has been released.
    #[error("the connection has been released")]
    Stale,
    /// `shutdown` was called before.
    #[error("the connection was shut down for sending")]
    ShutDown,
    /// The connection has ended.
    #[error("the connection has ended: {0}")]
    Closed(CloseReason),
}

/// Why no data can come out of a connection any more.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RecvError {
    /// The id names a connection that has been released.
    #[error("the connection has been released")]
    Stale,
    /// The connection has ended in another way than by the peer's FIN.
    #[error("the connection has ended: {0}")]
    Closed(CloseReason),
}

/// Why a UDP socket cannot be made.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BindError {
    /// The address is not one of the stack's.
    #[error("not an own address")]
    Address,
    /// Another socket has that address and port.
    #[error("address and port are in use")]
    InUse,
    /// Every ephemeral port is in use.
    #[error("every local port is in use")]
    PortsExhausted,
    /// The table of sockets is full.
    #[error("too many sockets")]
    TooMany,
}

/// Why a datagram cannot be sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SendToError {
    /// The id names a socket that has been released.
    #[error("the socket has been released")]
    Stale,
    /// The remote address or port cannot receive a datagram from this socket.
    #[error("the remote address cannot be sent to")]
    Address,
    /// The stack has no address of the remote's family.
    #[error("no own address of that family")]
    NoAddress,
    /// The datagram exceeds the MTU; fragments are not sent.
    #[error("the datagram exceeds the path MTU")]
    TooLong,
    /// The transmit queue is full; drain [`Stack::poll_transmit`](crate::Stack::poll_transmit).
    #[error("the transmit queue is full")]
    QueueFull,
}

/// Why an echo request cannot be sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PingError {
    /// The remote address cannot be asked.
    #[error("the remote address cannot be pinged")]
    Address,
    /// The stack has no address of the remote's family.
    #[error("no own address of that family")]
    NoAddress,
    /// The request exceeds the MTU; fragments are not sent.
    #[error("the request exceeds the path MTU")]
    TooLong,
    /// Too many requests wait for an answer.
    #[error("too many requests without an answer")]
    TooMany,
}

/// Why an echo request had no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EchoFailure {
    /// Nothing came within [`Limits::echo_timeout`](crate::Limits::echo_timeout).
    TimedOut,
    /// A node on the way told why.
    Icmp(Cause),
}

/// What an ICMP error told about a datagram of a UDP socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UdpFailure {
    /// Where the datagram was sent.
    pub remote: std::net::SocketAddr,
    /// Why it was not delivered.
    pub cause: Cause,
}
