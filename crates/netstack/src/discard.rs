//! Why a packet was not delivered.

/// Why [`Stack::handle_packet`](crate::Stack::handle_packet) did not deliver a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Discard {
    /// Not an IP packet, or one whose lengths contradict each other.
    IpMalformed,
    /// The IPv4 header checksum is wrong.
    IpChecksum,
    /// The source or destination cannot be one end of a conversation.
    IpAddress,
    /// The destination is not an address of this stack.
    NotForUs,
    /// No socket of this stack speaks that protocol.
    UnknownProtocol,
    /// A fragment that overlaps another, exceeds a packet, or found no room.
    Fragment,
    /// Not a TCP segment.
    TcpMalformed,
    /// The TCP checksum is wrong.
    TcpChecksum,
    /// No connection and no listener for the segment.
    TcpNoSocket,
    /// Outside the receive window, or an acknowledgement of what was never sent.
    TcpUnacceptable,
    /// An old duplicate by its timestamp (RFC 7323, 5).
    TcpPaws,
    /// A segment that a blind attacker could have sent; it was challenged (RFC 5961).
    TcpChallenged,
    /// The data would exceed the out-of-order ranges or the memory budget; the peer sends again.
    TcpNoRoom,
    /// A SYN that found its listener's queue or the table of connections full.
    TcpBacklogFull,
    /// Not a UDP datagram.
    UdpMalformed,
    /// The UDP checksum is wrong.
    UdpChecksum,
    /// No UDP socket for the datagram.
    UdpNoSocket,
    /// The queue of the UDP socket is full.
    UdpQueueFull,
    /// A first datagram or an echo request to a prefix that found its queue or the table of flows
    /// full.
    FlowsFull,
    /// Not an ICMP message.
    IcmpMalformed,
    /// The ICMP checksum is wrong.
    IcmpChecksum,
    /// An ICMP message that answers nothing of ours, or of a type that is not understood.
    IcmpUnrelated,
    /// An answer was due but the queue for answers is full.
    AnswersFull,
}

impl Discard {
    /// All variants in order, for counters: `ALL[discard as usize] == discard`.
    pub const ALL: [Self; 23] = [
        Self::IpMalformed,
        Self::IpChecksum,
        Self::IpAddress,
        Self::NotForUs,
        Self::UnknownProtocol,
        Self::Fragment,
        Self::TcpMalformed,
        Self::TcpChecksum,
        Self::TcpNoSocket,
        Self::TcpUnacceptable,
        Self::TcpPaws,
        Self::TcpChallenged,
        Self::TcpNoRoom,
        Self::TcpBacklogFull,
        Self::UdpMalformed,
        Self::UdpChecksum,
        Self::UdpNoSocket,
        Self::UdpQueueFull,
        Self::FlowsFull,
        Self::IcmpMalformed,
        Self::IcmpChecksum,
        Self::IcmpUnrelated,
        Self::AnswersFull,
    ];

    /// Returns the stable name that counters show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IpMalformed => "ip_malformed",
            Self::IpChecksum => "ip_checksum",
            Self::IpAddress => "ip_address",
            Self::NotForUs => "not_for_us",
            Self::UnknownProtocol => "unknown_protocol",
            Self::Fragment => "fragment",
            Self::TcpMalformed => "tcp_malformed",
            Self::TcpChecksum => "tcp_checksum",
            Self::TcpNoSocket => "tcp_no_socket",
            Self::TcpUnacceptable => "tcp_unacceptable",
            Self::TcpPaws => "tcp_paws",
            Self::TcpChallenged => "tcp_challenged",
            Self::TcpNoRoom => "tcp_no_room",
            Self::TcpBacklogFull => "tcp_backlog_full",
            Self::UdpMalformed => "udp_malformed",
            Self::UdpChecksum => "udp_checksum",
            Self::UdpNoSocket => "udp_no_socket",
            Self::UdpQueueFull => "udp_queue_full",
            Self::FlowsFull => "flows_full",
            Self::IcmpMalformed => "icmp_malformed",
            Self::IcmpChecksum => "icmp_checksum",
            Self::IcmpUnrelated => "icmp_unrelated",
            Self::AnswersFull => "answers_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_lists_every_variant_at_its_own_place_with_its_own_name() {
        let names: BTreeSet<_> = Discard::ALL.iter().map(|discard| discard.name()).collect();
        assert_eq!(names.len(), Discard::ALL.len());
        for (index, discard) in Discard::ALL.iter().enumerate() {
            assert_eq!(*discard as usize, index);
        }
    }
}
