//! Which conversation a packet belongs to: addresses, protocol and ports (RFC 6146, 2).

use std::net::IpAddr;

use crate::{icmp, ip};

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Flow {
    /// Who sent the packet.
    pub source: IpAddr,
    /// Who shall receive it.
    pub destination: IpAddr,
    /// What tells it from others between the two.
    pub transport: Transport,
}

/// What tells conversations between two addresses apart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Transport {
    /// TCP (RFC 9293, 3.1).
    Tcp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        destination: u16,
    },
    /// UDP (RFC 768).
    Udp {
        /// The sender's port.
        source: u16,
        /// The receiver's port.
        destination: u16,
    },
    /// ICMP echo: request and reply carry the same identifier (RFC 792, RFC 4443, 4.1).
    Echo(u16),
    /// Another protocol, by its number; all of it between two addresses is one conversation.
    Other(u8),
}

/// What a packet is to a conversation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// It may be the first of a conversation.
    Opening(Flow),
    /// It continues one, and can open none: an echo reply, a TCP segment that is no bare SYN.
    Continuing(Flow),
    /// It ends one from its sender's side: a TCP segment with FIN or RST.
    Ending(Flow),
    /// An ICMP error about a packet of this conversation, to its sender, from its receiver
    /// or a host between.
    Error(Flow),
    /// A fragment but the first, which names no ports.
    Fragment {
        /// Who sent it.
        source: IpAddr,
        /// Who shall receive it.
        destination: IpAddr,
    },
}

impl Flow {
    /// Returns the other direction.
    #[must_use]
    pub fn reversed(self) -> Self {
        let transport = match self.transport {
            Transport::Tcp {
                source,
                destination,
            } => Transport::Tcp {
                source: destination,
                destination: source,
            },
            Transport::Udp {
                source,
                destination,
            } => Transport::Udp {
                source: destination,
                destination: source,
            },
            Transport::Echo(_) | Transport::Other(_) => self.transport,
        };
        Self {
            source: self.destination,
            destination: self.source,
            transport,
        }
    }
}

impl Part {
    /// Finds the part that a packet plays.
    ///
    /// `None` when its headers are malformed, when it is too short to say, as a first fragment
    /// without the ports (RFC 1858, 3; RFC 7112, 5), and for an ICMP error that quotes what its
    /// receiver never sent (RFC 5927, 4).
    #[must_use]
    pub fn of(packet: &[u8]) -> Option<Self> {
        let parsed = ip::parse(packet).ok()?;
        let header = parsed.header;
        if header.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Some(Self::Fragment {
                source: header.source,
                destination: header.destination,
            });
        }
        if is_icmp(&header) {
            return icmp_part(&header, parsed.payload);
        }
        let flow = Flow {
            source: header.source,
            destination: header.destination,
            transport: transport(header.next_header, parsed.payload)?,
        };
        if header.next_header != ip::TCP {
            return Some(Self::Opening(flow));
        }
        Some(match *parsed.payload.get(TCP_FLAGS)? {
            flags if flags & (FIN | RST) != 0 => Self::Ending(flow),
            flags if flags & (SYN | ACK) == SYN => Self::Opening(flow),
            _ => Self::Continuing(flow),
        })
    }
}

/// Where the flags stand in a TCP header, and those that matter here (RFC 9293, 3.1).
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn is_icmp(header: &ip::Header) -> bool {
    match header.source {
        IpAddr::V4(_) => header.next_header == ip::ICMP,
        IpAddr::V6(_) => header.next_header == ip::ICMPV6,
    }
}

/// Reads the ports; `None` when they are not there.
fn transport(next_header: u8, payload: &[u8]) -> Option<Transport> {
    let ports = || {
        let &[a, b, c, d] = payload.first_chunk()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    };
    Some(match next_header {
        ip::TCP => {
            let (source, destination) = ports()?;
            Transport::Tcp {
                source,
                destination,
            }
        }
        ip::UDP => {
            let (source, destination) = ports()?;
            Transport::Udp {
                source,
                destination,
            }
        }
        other => Transport::Other(other),
    })
}

/// The types of ICMP and of ICMPv6 that matter here (RFC 792; RFC 4443, 2.1).
fn icmp_part(header: &ip::Header, payload: &[u8]) -> Option<Part> {
    let &[kind, ..] = payload.first_chunk::<{ icmp::HEADER }>()?;
    let identifier = u16::from_be_bytes([payload[4], payload[5]]);
    let flow = |transport| Flow {
        source: header.source,
        destination: header.destination,
        transport,
    };
    let v4 = header.source.is_ipv4();
    let is_error = if v4 {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    } else {
        kind < 128
    };
    Some(match (v4, kind) {
        _ if is_error => {
            let flow = quoted(&payload[icmp::HEADER..])?;
            (flow.source == header.destination).then_some(Part::Error(flow))?
        }
        (true, 8) | (false, 128) => Part::Opening(flow(Transport::Echo(identifier))),
        (true, 0) | (false, 129) => Part::Continuing(flow(Transport::Echo(identifier))),
        _ => Part::Opening(flow(Transport::Other(header.next_header))),
    })
}

/// Finds the conversation of the packet that an ICMP error quotes.
fn quoted(quote: &[u8]) -> Option<Flow> {
    let parsed = ip::parse_quote(quote).ok()?;
    let header = parsed.header;
    if header.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return None;
    }
    let transport = if is_icmp(&header) {
        // Only an echo has a conversation: no error is sent about an error (RFC 4443, 2.4 e).
        let &[kind, _, _, _, high, low] = parsed.payload.first_chunk()?;
        matches!(kind, 0 | 8 | 128 | 129)
            .then_some(Transport::Echo(u16::from_be_bytes([high, low])))?
    } else {
        transport(header.next_header, parsed.payload)?
    };
    Some(Flow {
        source: header.source,
        destination: header.destination,
        transport,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::icmp::{Cause, Echo, Message, Unreachable};

    const A: &str = "fd00::a";
    const B: &str = "fd00::b";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn packet(source: &str, destination: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
        let header = ip::Header {
            source: address(source),
            destination: address(destination),
            next_header,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let at = ip::header_length(header.destination);
        let mut out = vec![0; at + payload.len()];
        ip::emit_header(&header, payload.len(), &mut out);
        out[at..].copy_from_slice(payload);
        out
    }

    fn tcp(flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[..4].copy_from_slice(&[0x10, 0x00, 0x00, 22]);
        segment[12] = 5 << 4;
        segment[TCP_FLAGS] = flags;
        segment
    }

    fn ssh(source: &str, destination: &str) -> Flow {
        Flow {
            source: address(source),
            destination: address(destination),
            transport: Transport::Tcp {
                source: 4096,
                destination: 22,
            },
        }
    }

    #[test]
    fn only_a_bare_syn_opens_a_tcp_connection() {
        for (source, destination) in [(A, B), ("10.0.0.1", "10.0.0.2")] {
            let flow = ssh(source, destination);
            for (flags, part) in [
                (SYN, Part::Opening(flow)),
                (SYN | ACK, Part::Continuing(flow)),
                (ACK, Part::Continuing(flow)),
                (0, Part::Continuing(flow)),
                (FIN | ACK, Part::Ending(flow)),
                (RST, Part::Ending(flow)),
                (SYN | FIN, Part::Ending(flow)),
            ] {
                let packet = packet(source, destination, ip::TCP, &tcp(flags));
                assert_eq!(Part::of(&packet), Some(part), "{flags:#x}");
            }
        }
    }

    #[test]
    fn a_reply_to_an_echo_has_the_flow_of_its_request_reversed() {
        for (source, destination) in [(A, B), ("10.0.0.1", "10.0.0.2")] {
            let (from, to) = (address(source), address(destination));
            let echo = Echo {
                identifier: 7,
                sequence: 1,
                payload: b"",
            };
            let emit = |from: IpAddr, to: IpAddr, message: &Message<'_>| {
                let next_header = if from.is_ipv4() { ip::ICMP } else { ip::ICMPV6 };
                let mut payload = vec![0; icmp::HEADER];
                icmp::emit(from, to, message, &mut payload);
                packet(&from.to_string(), &to.to_string(), next_header, &payload)
            };
            let request = Part::of(&emit(from, to, &Message::EchoRequest(echo)));
            let reply = Part::of(&emit(to, from, &Message::EchoReply(echo)));
            let (Some(Part::Opening(request)), Some(Part::Continuing(reply))) = (request, reply)
            else {
                panic!("a request opens, a reply continues");
            };
            assert_eq!(request.transport, Transport::Echo(7));
            assert_eq!(reply.reversed(), request);
        }
    }

    #[test]
    fn an_error_belongs_to_the_flow_that_it_quotes() {
        let offending = packet(A, B, ip::TCP, &tcp(SYN));
        let message = Message::Error {
            cause: Cause::Unreachable(Unreachable::Host),
            quote: &offending,
        };
        let mut payload = vec![0; icmp::HEADER + offending.len()];
        icmp::emit(address("fd00::35"), address(A), &message, &mut payload);
        let error = |to| packet("fd00::35", to, ip::ICMPV6, &payload);
        assert_eq!(Part::of(&error(A)), Some(Part::Error(ssh(A, B))));
        // Told to another than the sender, it is about nothing.
        assert_eq!(Part::of(&error(B)), None);
    }

    #[test]
    fn what_names_no_ports_is_no_flow() {
        assert_eq!(Part::of(&packet(A, B, ip::UDP, &[0, 53, 0])), None);
        assert_eq!(Part::of(&packet(A, B, ip::TCP, &tcp(SYN)[..12])), None);
        assert_eq!(Part::of(&packet(A, B, ip::ICMPV6, &[1, 0, 0, 0])), None);
        assert_eq!(Part::of(&[]), None);
    }

    #[test]
    fn a_later_fragment_names_only_addresses() {
        let mut fragment = packet("10.0.0.1", "10.0.0.2", ip::UDP, &[0; 16]);
        fragment[7] = 1;
        let part = Part::Fragment {
            source: address("10.0.0.1"),
            destination: address("10.0.0.2"),
        };
        assert_eq!(Part::of(&fragment), Some(part));
    }
}
