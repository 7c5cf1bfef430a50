//! Coalescing of received TCP and UDP packets into super-packets (GRO).
//!
//! A [`Train`] grows while packets of one flow follow each other exactly; what leaves it goes to a
//! TUN device with `IFF_VNET_HDR` as one write. Splitting that again gives the same packets. A
//! [`Run`] does the same with copies, by which fuzz targets and the tests of the stack judge.

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
            && self.head().is_followed_by(packet);
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
}

/// The run that a packet may join: its headers, and where they end.
struct Head<'h> {
    bytes: &'h [u8],
    kind: Kind,
    transport: usize,
    payload: usize,
    packets: usize,
    /// Length of headers and payloads so far.
    length: usize,
}

impl Head<'_> {
    /// Tells whether all that is not patched by splitting is the same.
    fn is_followed_by(&self, packet: &[u8]) -> bool {
        let head = self.bytes;
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
                let so_far = u32::try_from(self.length - self.payload).expect("below 64 KiB");
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
        of(packet) == of(self.bytes).wrapping_add(count) || unfragmented
    }
}

impl Run {
    fn head(&self) -> Head<'_> {
        Head {
            bytes: &self.packet,
            kind: self.kind,
            transport: self.transport,
            payload: self.payload,
            packets: self.packets,
            length: self.packet.len(),
        }
    }

    /// Returns what the packets carry.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
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
        let offload = patch(&mut self.packet, self.kind, self.transport, length);
        let offload = Offload {
            size: self.size,
            header_length: self.payload,
            ..offload
        };
        (self.packet, Some(offload))
    }
}

/// Makes the headers in front of `head` those of a super-packet of `length` bytes.
fn patch(head: &mut [u8], kind: Kind, transport: usize, length: usize) -> Offload {
    let v4 = head[0] >> 4 == 4;
    if v4 {
        let total = u16::try_from(length).expect("at most 65,535");
        head[2..4].copy_from_slice(&total.to_be_bytes());
        head[10..12].copy_from_slice(&[0, 0]);
        let checksum = Sum::default().add(&head[..transport]).finish();
        head[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        let payload = u16::try_from(length - ip::V6_HEADER).expect("at most 65,535");
        head[4..6].copy_from_slice(&payload.to_be_bytes());
    }
    let covered = length - transport;
    let (next_header, checksum_offset) = match kind {
        Kind::Tcp => (ip::TCP, 16),
        Kind::Udp => (ip::UDP, 6),
    };
    // Both addresses stand side by side: their sum does not depend on where one ends.
    let addresses = if v4 { 12..20 } else { 8..40 };
    let stated = u16::try_from(covered).expect("at most 65,535");
    let sum = Sum::default()
        .add(&head[addresses])
        .add_word(u16::from(next_header))
        .add_word(stated);
    let header = &mut head[transport..];
    if kind == Kind::Udp {
        header[4..6].copy_from_slice(&stated.to_be_bytes());
    }
    header[checksum_offset..checksum_offset + 2].copy_from_slice(&sum.fold().to_be_bytes());
    Offload {
        kind,
        size: 0,
        header_length: 0,
        checksum_start: transport,
        checksum_offset,
    }
}

/// Where the parts of a packet are that could stand in a run.
#[derive(Debug)]
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
    let body = parsed.payload;
    let (kind, data, is_last) = match header.next_header {
        ip::TCP => {
            let fixed: &[u8; tcp::HEADER] = body.first_chunk()?;
            let offset = usize::from(fixed[12] >> 4) * 4;
            let flags = Flags(fixed[13]);
            // Anything but data ends a run (as in Linux' tcp_gro_receive).
            if offset < tcp::HEADER || flags.0 & !Flags::PSH.0 != Flags::ACK.0 {
                return None;
            }
            (Kind::Tcp, body.get(offset..)?, flags.has(Flags::PSH))
        }
        ip::UDP => {
            let fixed: &[u8; udp::HEADER] = body.first_chunk()?;
            let stated = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
            if fixed[6..8] == [0, 0] || stated != body.len() {
                return None;
            }
            (Kind::Udp, &body[udp::HEADER..], false)
        }
        _ => return None,
    };
    let sum = Sum::default().add_pseudo_header(
        header.source,
        header.destination,
        header.next_header,
        body.len(),
    );
    if data.is_empty() || sum.add(body).fold() != 0xffff {
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

/// A super-packet in the making whose payloads stay where they are: what [`Run`] is with copies.
#[derive(Debug)]
pub struct Train<'a> {
    head: [u8; HEAD_MAX],
    shape: Option<Shape>,
    udp: bool,
    /// Payload of every packet but the last.
    size: usize,
    length: usize,
    complete: bool,
    packets: [&'a [u8]; Train::PACKETS_MAX],
    count: usize,
}

/// What leaves a [`Train`].
#[derive(Debug)]
pub enum Leaving<'t, 'a> {
    /// A packet by itself, as it came.
    Single(&'a [u8]),
    /// A super-packet.
    Super {
        /// What the virtio-net header says.
        offload: Offload,
        /// All headers; the payload of each packet follows.
        head: &'t [u8],
        /// The packets as they came, each with headers of the same length.
        packets: &'t [&'a [u8]],
    },
}

impl Default for Train<'_> {
    fn default() -> Self {
        Self {
            head: [0; HEAD_MAX],
            shape: None,
            udp: true,
            size: 0,
            length: 0,
            complete: false,
            packets: [&[]; Self::PACKETS_MAX],
            count: 0,
        }
    }
}

impl<'a> Train<'a> {
    /// The most packets of a super-packet: UDP_MAX_SEGMENTS of Linux before 6.9.
    pub const PACKETS_MAX: usize = 64;

    /// Makes a train that lets UDP pass unless `udp`: super-packets of it are newer than of TCP.
    #[must_use]
    pub fn new(udp: bool) -> Self {
        Self {
            udp,
            ..Self::default()
        }
    }

    /// Takes the next packet; what cannot grow any more leaves by `write`, in order.
    ///
    /// Checksums of packets that may be joined are verified, because the kernel will not do so for
    /// a super-packet.
    pub fn push(&mut self, packet: &'a [u8], mut write: impl FnMut(Leaving<'_, 'a>)) {
        let joins = |shape: &Shape| self.udp || shape.kind == Kind::Tcp;
        let Some(shape) = shape(packet).filter(joins) else {
            self.finish(&mut write);
            write(Leaving::Single(packet));
            return;
        };
        let packet = &packet[..shape.length];
        if self.is_followed_by(packet, &shape) {
            let length = shape.length - shape.payload;
            self.length += length;
            self.complete = length < self.size || shape.is_last;
            if shape.kind == Kind::Tcp {
                self.head[shape.transport + 13] |= packet[shape.transport + 13] & Flags::PSH.0;
            }
        } else {
            self.finish(&mut write);
            self.head[..shape.payload].copy_from_slice(&packet[..shape.payload]);
            self.size = shape.length - shape.payload;
            self.length = shape.length;
            self.complete = shape.is_last;
            self.shape = Some(shape);
        }
        self.packets[self.count] = packet;
        self.count += 1;
    }

    /// Lets go of what is there.
    pub fn finish(&mut self, mut write: impl FnMut(Leaving<'_, 'a>)) {
        let Some(shape) = self.shape.take() else {
            return;
        };
        let packets = &self.packets[..std::mem::take(&mut self.count)];
        if let [packet] = packets {
            return write(Leaving::Single(packet));
        }
        let head = &mut self.head[..shape.payload];
        let offload = patch(head, shape.kind, shape.transport, self.length);
        write(Leaving::Super {
            offload: Offload {
                size: self.size,
                header_length: shape.payload,
                ..offload
            },
            head,
            packets,
        });
    }

    fn is_followed_by(&self, packet: &[u8], next: &Shape) -> bool {
        let Some(shape) = &self.shape else {
            return false;
        };
        let length = next.length - next.payload;
        let head = Head {
            bytes: &self.head[..shape.payload],
            kind: shape.kind,
            transport: shape.transport,
            payload: shape.payload,
            packets: self.count,
            length: self.length,
        };
        !self.complete
            && self.count < Self::PACKETS_MAX
            && self.length + length <= LENGTH_MAX
            && length <= self.size
            && next.kind == shape.kind
            && next.transport == shape.transport
            && next.payload == shape.payload
            && head.is_followed_by(packet)
    }
}

/// Headers of IPv6 and TCP with all options.
const HEAD_MAX: usize = ip::V6_HEADER + tcp::HEADER + tcp::OPTIONS_MAX;

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

    type Output = Vec<(Vec<u8>, Option<Offload>)>;

    fn by_train(packets: &[Vec<u8>]) -> Output {
        let mut out = Vec::new();
        let mut write = |leaving: Leaving<'_, '_>| match leaving {
            Leaving::Single(packet) => out.push((packet.to_vec(), None)),
            Leaving::Super {
                offload,
                head,
                packets,
            } => {
                let payloads = packets.iter().flat_map(|packet| &packet[head.len()..]);
                let bytes = head.iter().chain(payloads).copied().collect();
                out.push((bytes, Some(offload)));
            }
        };
        let mut train = Train::default();
        for packet in packets {
            train.push(packet, &mut write);
        }
        train.finish(&mut write);
        out
    }

    fn by_runs(packets: &[Vec<u8>]) -> Output {
        let mut out = Vec::new();
        let mut run: Option<Run> = None;
        for packet in packets {
            if run.as_mut().is_some_and(|run| run.append(packet)) {
                continue;
            }
            out.extend(run.take().map(Run::finish));
            match Run::begin(packet, Vec::new()) {
                Ok(begun) => run = Some(begun),
                Err(_) => out.push((packet.clone(), None)),
            }
        }
        out.extend(run.map(Run::finish));
        out
    }

    #[test]
    fn a_train_lets_strangers_pass_in_order_and_ends_at_its_bound() {
        let data = |n: u32| segment(100 + 50 * n, Flags::ACK, 50);
        let mut packets: Vec<_> = (0..70).map(data).collect();
        packets.insert(2, segment(7, Flags::SYN, 0));
        let out = by_train(&packets);
        let counts: Vec<_> = out
            .iter()
            .map(|(bytes, offload)| offload.map_or(0, |o| (bytes.len() - o.header_length) / 50))
            .collect();
        assert_eq!(counts, [2, 0, 64, 4]);
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
        fn a_train_gives_what_runs_give(
            v6 in any::<bool>(),
            udp in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 2..9_000),
            // At most 60 packets: a train is shorter than a run may be.
            size in 150_usize..1_400,
            lost in 0_usize..9,
        ) {
            let whole = if udp {
                udp_packet(v6, &payload)
            } else {
                let header = tcp::Header { flags: Flags::ACK, ..tcp::Header::default() };
                tcp_packet(v6, header, &payload)
            };
            let kind = if udp { Kind::Udp } else { Kind::Tcp };
            let mut packets = parts(&whole, kind, size);
            if packets.len() > lost + 1 {
                packets.remove(lost);
            }
            prop_assert_eq!(by_train(&packets), by_runs(&packets));
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
