//! What a stack is made with.

use std::{net::IpAddr, time::Duration};

/// Everything that a [`Stack`](crate::Stack) is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses that the stack answers for; they can change later.
    pub addresses: Vec<IpAddr>,
    /// The largest IP packet that the link carries, in bytes, from 576 to 65,535.
    pub mtu: usize,
    /// The secret behind sequence numbers and ports; fresh random bytes for every stack.
    pub seed: [u8; 32],
    /// The bounds.
    pub limits: Limits,
}

/// Bounds of one stack, and what happens at each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// TCP connections of all kinds. At the bound the oldest connection in TIME-WAIT goes, and if
    /// there is none, `connect` fails and a SYN is discarded. The SYN of a peer is also discarded
    /// when it has as many connections as are free.
    pub connections_max: usize,
    /// TCP connections that wait in TIME-WAIT; at the bound the oldest goes.
    pub time_wait_max: usize,
    /// TCP listeners; at the bound `listen` fails.
    pub listeners_max: usize,
    /// Connections in SYN-RECEIVED, of which one peer has at most as many as are free. At the bound
    /// a SYN is answered by a cookie, and the peer's ACK makes the connection (RFC 4987, 3.6); one
    /// for a prefix, which must wait for the owner's word, is discarded.
    pub half_open_max: usize,
    /// Bytes that all send and receive buffers hold together, and of which one peer holds at most
    /// as much as is free. At the bound windows close and `send` takes nothing; every connection
    /// may still hold 4 KiB each way. Beside that a stack keeps up to 1 MiB that no buffer holds.
    pub memory_bytes_max: usize,
    /// Bytes that one connection may hold for sending; at the bound `send` takes nothing.
    pub send_bytes_max: usize,
    /// Bytes that one connection may hold for `recv`; at the bound its window is closed.
    pub receive_bytes_max: usize,
    /// UDP sockets; at the bound `bind` fails.
    pub udp_sockets_max: usize,
    /// Bytes that wait in one UDP socket; at the bound further datagrams are discarded.
    pub udp_receive_bytes_max: usize,
    /// UDP datagrams of all sockets that wait to be transmitted; at the bound `send_to` fails.
    pub udp_transmit_datagrams_max: usize,
    /// Flows of prefixes and echo requests to them, of which one peer has at most as many as are
    /// free; at the bound the first datagram of a further one is discarded.
    pub flows_max: usize,
    /// Bytes that wait in all flows and echo requests to prefixes, of which one peer holds at most
    /// as much as is free; at the bound further datagrams are discarded.
    pub flow_bytes_max: usize,
    /// How long a flow of a prefix lives without a datagram either way.
    pub flow_timeout: Duration,
    /// Echo requests without an answer; at the bound `ping` fails.
    pub echoes_max: usize,
    /// How long an echo request waits for its reply; then it fails. One to a prefix is forgotten.
    pub echo_timeout: Duration,
    /// Answers (RST, echo replies, ICMP errors) that wait to be transmitted; at the bound further
    /// ones are not made.
    pub answers_max: usize,
    /// Packets in reassembly; at the bound the oldest is discarded.
    pub reassemblies_max: usize,
    /// How long a TCP connection waits for an acknowledgement before it ends with
    /// [`CloseReason::TimedOut`](crate::CloseReason::TimedOut) (RFC 9293, 3.8.3).
    pub user_timeout: Duration,
    /// The same while a connection opens.
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 65_536,
            time_wait_max: 16_384,
            listeners_max: 1_024,
            half_open_max: 1_024,
            memory_bytes_max: 256 << 20,
            send_bytes_max: 8 << 20,
            receive_bytes_max: 8 << 20,
            udp_sockets_max: 4_096,
            udp_receive_bytes_max: 256 << 10,
            udp_transmit_datagrams_max: 512,
            flows_max: 8_192,
            flow_bytes_max: 16 << 20,
            // What RFC 4787, 4.3 recommends.
            flow_timeout: Duration::from_secs(300),
            echoes_max: 1_024,
            echo_timeout: Duration::from_secs(10),
            answers_max: 512,
            reassemblies_max: 64,
            // The lower end of what RFC 1122, 4.2.3.5 asks for R2 is 100 s.
            user_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(30),
        }
    }
}
