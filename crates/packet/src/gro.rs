//! Coalescing of received TCP and UDP packets into super-packets (GRO).
//!
//! A [`Run`] grows while packets of one flow follow each other exactly; what it yields goes to a
//! TUN device with `IFF_VNET_HDR` as one write. Splitting it again gives the same packets.

use std::net::IpAddr;

use crate::{
    checksum::Sum,
    gso::Kind,
    ip,
    tcp::{self, Flags},
    udp,
};

/// The largest super-packet: what the total length of an IP packet can say.
const LENGTH_MAX: usize = 65_535;

/// A super-packet in the making.
#[derive(Debug)]
pub struct Run {
    packet: Vec<u8>,
    kind: Kind,
    transport: usize,
    payload: usize,
    /// Payload of every packet but the last.
    size: usize,
    packets: usize,
    /// A short packet, or PSH, has ended it.
    complete: bool,
}

/// What a virtio-net header says about a super-packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offload {
    /// What it carries.
    pub kind: Kind,
    /// Payload of each part (`gso_size`).
    pub size: usize,
    /// Length of all headers (`hdr_len`).
    pub header_length: usize,
    /// Where the covered bytes of the checksum begin (`csum_start`).
    pub checksum_start: usize,
    /// Where behind that the checksum stands (`csum_offset`).
    pub checksum_offset: usize,
}

impl Run {
    /// Begins a run with a packet that may be followed, and gives `buffer`, in which the run would
    /// grow, back when the packet has to go by itself.
    ///
    /// Checksums are verified, because the kernel will not do so for a super-packet.
    pub fn begin(packet: &[u8], mut buffer: Vec<u8>) -> Result<Self, Vec<u8>> {
        let Some(shape) = shape(packet) else {
            return Err(buffer);
        };
        buffer.clear();
        buffer.extend_from_slice(&packet[..shape.length]);
        Ok(Self {
            packet: buffer,
            kind: shape.kind,
            transport: shape.transport,
            payload: shape.payload,
            size: shape.length - shape.payload,
            packets: 1,
            complete: shape.is_last,
        })
    }

    /// Appends `packet` when it follows exactly, and returns whether it did.
    pub fn append(&mut self, packet: &[u8]) -> bool {
        if self.complete {
            return false;
        }
        let Some(next) = shape(packet) else {
            return false;
        };
        let length = next.length - next.payload;
        let fits = self.packet.len() + length <= LENGTH_MAX && length <= self.size;
        let alike = next.kind == self.kind
            && next.transport == self.transport
            && next.payload == self.payload
            && self.headers_follow(packet);
        if !fits || !alike {
            return false;
        }
        self.packet
            .extend_from_slice(&packet[next.payload..next.length]);
        self.packets += 1;
        self.complete = length < self.size || next.is_last;
        if self.kind == Kind::Tcp {
            let flags = packet[self.transport + 13] & Flags::PSH.0;
            self.packet[self.transport + 13] |= flags;
        }
        true
    }

    /// Tells whether all that is not patched by splitting is the same.
    fn headers_follow(&self, packet: &[u8]) -> bool {
        let head = &self.packet;
        let network = if head[0] >> 4 == 4 {
            // All but length, identification and checksum, which splitting makes anew.
            head[..2] == packet[..2]
                && head[6..10] == packet[6..10]
                && head[12..self.transport] == packet[12..self.transport]
                && self.identification_follows(packet)
        } else {
            head[..4] == packet[..4] && head[6..self.transport] == packet[6..self.transport]
        };
        let (first, next) = (&head[self.transport..], &packet[self.transport..]);
        let transport = match self.kind {
            Kind::Udp => first[..4] == next[..4],
            Kind::Tcp => {
                let word =
                    |bytes: &[u8]| u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                let so_far = u32::try_from(head.len() - self.payload).expect("below 64 KiB");
                let options = self.payload - self.transport;
                first[..4] == next[..4]
                    && word(first).wrapping_add(so_far) == word(next)
                    && first[8..13] == next[8..13]
                    && first[13] | Flags::PSH.0 == next[13] | Flags::PSH.0
                    && first[14..16] == next[14..16]
                    && first[18..options] == next[18..options]
            }
        };
        network && transport
    }

    /// Identifications count up, or stand still with "don't fragment" where they mean nothing.
    fn identification_follows(&self, packet: &[u8]) -> bool {
        let of = |bytes: &[u8]| u16::from_be_bytes([bytes[4], bytes[5]]);
        let count = u16::try_from(self.packets).unwrap_or(u16::MAX);
        let unfragmented = packet[6] & 0x40 != 0;
        of(packet) == of(&self.packet).wrapping_add(count) || unfragmented
    }

    /// Returns how many packets the run holds.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// Returns the packet, and for more than one what the virtio-net header has to say.
    ///
    /// The checksum field of a super-packet holds the sum of the pseudo-header, as the kernel
    /// expects it with `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
    #[must_use]
    pub fn finish(mut self) -> (Vec<u8>, Option<Offload>) {
        if self.packets == 1 {
            return (self.packet, None);
        }
        let length = self.packet.len();
        if self.packet[0] >> 4 == 4 {
            let total = u16::try_from(length).expect("at most 65,535");
            self.packet[2..4].copy_from_slice(&total.to_be_bytes());
            self.packet[10..12].copy_from_slice(&[0, 0]);
            let checksum = Sum::default().add(&self.packet[..self.transport]).finish();
            self.packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let payload = u16::try_from(length - ip::V6_HEADER).expect("at most 65,535");
            self.packet[4..6].copy_from_slice(&payload.to_be_bytes());
        }
        let covered = length - self.transport;
        let addresses = ip::addresses(&self.packet).expect("made of parsed packets");
        let (next_header, checksum_offset) = match self.kind {
            Kind::Tcp => (ip::TCP, 16),
            Kind::Udp => (ip::UDP, 6),
        };
        let (source, destination) = (addresses.source, addresses.destination);
        let sum = Sum::default().add_pseudo_header(source, destination, next_header, covered);
        let transport = &mut self.packet[self.transport..];
        if self.kind == Kind::Udp {
            let stated = u16::try_from(covered).expect("at most 65,535");
            transport[4..6].copy_from_slice(&stated.to_be_bytes());
        }
        transport[checksum_offset..checksum_offset + 2].copy_from_slice(&sum.fold().to_be_bytes());
        let offload = Offload {
            kind: self.kind,
            size: self.size,
            header_length: self.payload,
            checksum_start: self.transport,
            checksum_offset,
        };
        (self.packet, Some(offload))
    }
}

/// Where the parts of a packet are that could stand in a run.
struct Shape {
    kind: Kind,
    transport: usize,
    payload: usize,
    length: usize,
    is_last: bool,
}

fn shape(packet: &[u8]) -> Option<Shape> {
    let parsed = ip::parse(packet).ok()?;
    let length = ip::addresses(packet).ok()?.length;
    let transport = length - parsed.payload.len();
    let header = parsed.header;
    let plain = match header.source {
        // Options might mean something else in a super-packet.
        IpAddr::V4(_) => transport == ip::V4_HEADER && ip::v4_checksum_holds(packet),
        IpAddr::V6(_) => transport == ip::V6_HEADER,
    };
    if !plain || header.fragment.is_some() {
        return None;
    }
    let (source, destination) = (header.source, header.destination);
    let (kind, data, is_last) = match header.next_header {
        ip::TCP => {
            let segment = tcp::parse(source, destination, parsed.payload).ok()?;
            let flags = segment.header.flags;
            // Anything but data ends a run (as in Linux' tcp_gro_receive).
            if flags.0 & !Flags::PSH.0 != Flags::ACK.0 {
                return None;
            }
            (Kind::Tcp, segment.payload, flags.has(Flags::PSH))
        }
        ip::UDP => {
            let absent = parsed.payload.get(6..8)? == [0, 0];
            let datagram = udp::parse(source, destination, parsed.payload).ok()?;
            if absent || udp::HEADER + datagram.payload.len() != parsed.payload.len() {
                return None;
            }
            (Kind::Udp, datagram.payload, false)
        }
        _ => return None,
    };
    if data.is_empty() {
        return None;
    }
    Some(Shape {
        kind,
        transport,
        payload: length - data.len(),
        length,
        is_last,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gso::{
        complete_checksum,
        tests::{ends, parts, tcp_packet, udp_packet},
    };

    fn segment(sequence: u32, flags: Flags, length: usize) -> Vec<u8> {
        let header = tcp::Header {
            sequence,
            flags,
            ..tcp::Header::default()
        };
        tcp_packet(true, header, &vec![9; length])
    }

    #[test]
    fn only_what_follows_exactly_is_appended() {
        let mut run = Run::begin(&segment(100, Flags::ACK, 50), Vec::new()).unwrap();
        assert!(run.append(&segment(150, Flags::ACK, 50)));
        assert!(!run.append(&segment(201, Flags::ACK, 50)), "a gap");
        assert!(
            !run.append(&segment(200, Flags::ACK, 51)),
            "longer than the first"
        );
        assert!(!run.append(&segment(200, Flags::ACK.with(Flags::FIN), 50)));
        let mut corrupt = segment(200, Flags::ACK, 50);
        corrupt[80] ^= 1;
        assert!(!run.append(&corrupt));
        assert!(run.append(&segment(200, Flags::ACK.with(Flags::PSH), 50)));
        assert!(
            !run.append(&segment(250, Flags::ACK, 50)),
            "PSH has ended it"
        );
        assert_eq!(run.packets(), 3);
        assert!(Run::begin(&segment(1, Flags::ACK, 0), Vec::new()).is_err());
        assert!(Run::begin(&segment(1, Flags::SYN, 5), Vec::new()).is_err());
    }

    #[test]
    fn a_run_stays_below_the_length_of_an_ip_packet() {
        let mut run = Run::begin(&udp_packet(true, &[1; 1_200]), Vec::new()).unwrap();
        while run.append(&udp_packet(true, &[1; 1_200])) {}
        let (packet, offload) = run.finish();
        assert_eq!(packet.len(), 48 + 54 * 1_200);
        assert_eq!(offload.unwrap().size, 1_200);
    }

    proptest! {
        #[test]
        fn splitting_takes_coalescing_back(
            v6 in any::<bool>(),
            udp in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 2..9_000),
            size in 100_usize..1_400,
        ) {
            let whole = if udp {
                udp_packet(v6, &payload)
            } else {
                let flags = Flags::ACK.with(Flags::PSH);
                let sequence = u32::MAX - 99;
                let header = tcp::Header { sequence, flags, ..tcp::Header::default() };
                tcp_packet(v6, header, &payload)
            };
            let kind = if udp { Kind::Udp } else { Kind::Tcp };
            let packets = parts(&whole, kind, size);
            let mut run = Run::begin(&packets[0], Vec::new()).unwrap();
            for packet in &packets[1..] {
                prop_assert!(run.append(packet));
            }
            let (mut packet, offload) = run.finish();
            if let Some(offload) = offload {
                prop_assert_eq!(parts(&packet, offload.kind, offload.size), packets);
                let (start, offset) = (offload.checksum_start, offload.checksum_offset);
                complete_checksum(&mut packet, start, offset).unwrap();
                let (source, destination) = ends(v6);
                let body = ip::parse(&packet).unwrap().payload;
                let holds = if udp {
                    udp::parse(source, destination, body).is_ok()
                } else {
                    tcp::parse(source, destination, body).is_ok()
                };
                prop_assert!(holds);
            }
            prop_assert!(ip::v4_checksum_holds(&packet));
        }

        #[test]
        fn beginning_and_appending_are_total(
            first in proptest::collection::vec(any::<u8>(), 0..120),
            second in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            if let Ok(mut run) = Run::begin(&first, Vec::new()) {
                run.append(&second);
            }
        }
    }
}
