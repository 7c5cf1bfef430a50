//! Which of several queues a flow has: one for both directions, so that it stays in order.

use std::net::IpAddr;

use crate::flow::{Flow, Part, Transport};

/// Returns one of `count` places for the flow of a packet.
///
/// # Panics
/// When `count` is zero.
#[must_use]
pub fn place(packet: &[u8], count: usize) -> usize {
    let hash = match Part::of(packet) {
        Some(
            Part::Opening(flow) | Part::Continuing(flow) | Part::Ending(flow) | Part::Error(flow),
        ) => hash_of(&flow),
        Some(Part::Fragment {
            source,
            destination,
        }) => end(source, 0) ^ end(destination, 0),
        None => 0,
    };
    usize::try_from(hash).map_or(0, |hash| hash % count)
}

/// Not keyed: who chooses ports so that they share a queue slows down nobody but that queue.
fn hash_of(flow: &Flow) -> u32 {
    let (from, to) = match flow.transport {
        Transport::Tcp {
            source,
            destination,
        }
        | Transport::Udp {
            source,
            destination,
        } => (source, destination),
        Transport::Echo(_) | Transport::Other(_) => (0, 0),
    };
    end(flow.source, from) ^ end(flow.destination, to)
}

fn end(address: IpAddr, port: u16) -> u32 {
    let bits = match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [high, low] = [
                address.to_bits() >> 64,
                address.to_bits() & u128::from(u64::MAX),
            ];
            u64::try_from(high ^ low).expect("the upper half is empty")
        }
    };
    let mixed = (bits.rotate_left(16) ^ u64::from(port)).wrapping_mul(GOLDEN);
    u32::try_from(mixed >> 32).expect("half of the bits")
}

/// The odd number next to 2^64 divided by the golden ratio spreads neighbours (Knuth, 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv6Addr};

    use super::*;
    use crate::{ip, udp};

    fn datagram(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
        let header = ip::Header {
            source: from.0,
            destination: to.0,
            next_header: ip::UDP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let mut packet = vec![0; ip::header_length(to.0) + udp::HEADER];
        let at = ip::emit_header(&header, udp::HEADER, &mut packet);
        let datagram = udp::Datagram {
            source_port: from.1,
            destination_port: to.1,
            payload: &[],
        };
        udp::emit(from.0, to.0, &datagram, &mut packet[at..]);
        packet
    }

    #[test]
    fn a_flow_has_one_queue_in_both_directions_and_flows_are_spread() {
        for (one, other) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let [one, other]: [IpAddr; 2] = [one, other].map(|text| text.parse().unwrap());
            let mut places = BTreeSet::new();
            for port in 40_000..40_032 {
                let [here, there] = [(one, port), (other, 53)];
                let out = place(&datagram(here, there), 4);
                assert_eq!(out, place(&datagram(there, here), 4));
                places.insert(out);
            }
            assert_eq!(places, (0..4).collect());
        }
        assert_eq!(place(&[], 4), 0);
        let lone = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(place(&datagram((lone, 1), (lone, 2)), 1), 0);
    }
}
