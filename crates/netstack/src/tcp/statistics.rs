//! What a connection has measured and counted.

use std::{net::SocketAddr, time::Duration};

use super::{CongestionControl, State};

/// How a connection stands at one moment: what `ss -ti` shows of the kernel's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Statistics {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The state (RFC 9293, 3.3.2).
    pub state: State,
    /// Octets of data in a full segment (RFC 6691).
    pub segment_size: u32,
    /// Path MTU in bytes of an IP packet.
    pub mtu: usize,
    /// What decides on the window and the pace.
    pub congestion_control: CongestionControl,
    /// The congestion window, in octets (RFC 5681, 2).
    pub cwnd: u32,
    /// Where slow start ends, in octets; `None` while no loss has told.
    pub ssthresh: Option<u32>,
    /// Octets per second at which new data leaves; `None` before the first sample of the
    /// round-trip time.
    pub pacing_rate: Option<u64>,
    /// SRTT; `None` before the first sample (RFC 6298, 2).
    pub smoothed_rtt: Option<Duration>,
    /// RTTVAR; zero before the first sample.
    pub rtt_variation: Duration,
    /// The smallest round-trip time of the last five minutes.
    pub min_rtt: Option<Duration>,
    /// The retransmission timeout with its backoff.
    pub retransmission_timeout: Duration,
    /// Octets on their way: sent, and neither acknowledged, reported by SACK nor lost.
    pub in_flight: u32,
    /// Octets that the peer lets us have on their way (SND.WND).
    pub send_window: u32,
    /// Octets that we let the peer have on their way, as it was last told (RCV.WND).
    pub receive_window: u32,
    /// Octets that `send` has taken and the peer has not acknowledged.
    pub send_queue: usize,
    /// Octets that wait for `recv`.
    pub receive_queue: usize,
    /// Octets of data that the peer has acknowledged.
    pub acknowledged: u64,
    /// Octets of data that have come in order.
    pub received: u64,
    /// Segments that were transmitted again.
    pub retransmissions: u64,
}
