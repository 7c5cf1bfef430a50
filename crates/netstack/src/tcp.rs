//! TCP (RFC 9293): what a connection is made of.

pub(crate) mod buffer;
mod congestion;
pub(crate) mod connection;
pub(crate) mod cookie;
mod delivery;
mod pacing;
mod rtt;
mod scoreboard;
pub(crate) mod sequence;
mod statistics;

use packet::icmp::Unreachable;
use thiserror::Error;

pub use self::{congestion::CongestionControl, statistics::Statistics};

/// The state of a connection (RFC 9293, 3.3.2); LISTEN belongs to listeners.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Our SYN waits for its answer.
    SynSent,
    /// A SYN has come and ours waits for its acknowledgement.
    SynReceived,
    /// Data flows both ways.
    Established,
    /// Our FIN waits for its acknowledgement; the peer has not finished.
    FinWait1,
    /// Our FIN is acknowledged; the peer has not finished.
    FinWait2,
    /// The peer has finished; we have not.
    CloseWait,
    /// Both have finished at once; our FIN waits for its acknowledgement.
    Closing,
    /// Both have finished, the peer first; our FIN waits for its acknowledgement.
    LastAck,
    /// Both have finished; late segments of the connection are waited out.
    TimeWait,
    /// The connection has ended.
    Closed,
}

impl State {
    /// Returns its name in RFC 9293, 3.3.2.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::Established => "ESTABLISHED",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
            Self::Closed => "CLOSED",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CloseReason {
    /// Both sides have finished and everything was acknowledged.
    #[error("both sides have finished")]
    Finished,
    /// The peer refused our SYN.
    #[error("connection refused")]
    Refused,
    /// The peer reset the connection.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer acknowledged nothing within the user timeout.
    #[error("the peer does not answer")]
    TimedOut,
    /// The same, and ICMP told why the peer is unreachable.
    #[error("the peer is unreachable")]
    Unreachable(Unreachable),
    /// `abort` was called.
    #[error("the connection was aborted")]
    Aborted,
}
