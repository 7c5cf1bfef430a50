//! Parsers of IP, UDP, TCP and ICMP: total, and what they accept is emitted back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use packet::{
    checksum::Sum,
    icmp, ip, tcp,
    translate::{self, Mapping},
    udp,
};

use crate::input::Input;

/// An IP packet.
pub fn ip(data: &[u8]) {
    let _ = ip::parse_quote(data);
    let holds = ip::v4_checksum_holds(data);
    let addresses = ip::addresses(data);
    let Ok(packet) = ip::parse(data) else {
        return;
    };
    let addresses = addresses.expect("a packet that parses has addresses");
    assert!(addresses.length <= data.len());
    assert_eq!(addresses.source, packet.header.source);
    assert_eq!(addresses.destination, packet.header.destination);
    assert!(
        holds || packet.header.source.is_ipv4(),
        "IPv6 has no checksum"
    );
    assert!(packet.payload.len() <= data.len());
    if packet.header.fragment.is_some() || packet.payload.len() > 65_515 {
        return;
    }
    let mut out = vec![0; 40 + packet.payload.len()];
    let length = ip::emit_header(&packet.header, packet.payload.len(), &mut out);
    out[length..length + packet.payload.len()].copy_from_slice(packet.payload);
    out.truncate(length + packet.payload.len());
    assert!(ip::v4_checksum_holds(&out));
    assert_eq!(ip::parse(&out), Ok(packet));
}

/// A UDP datagram, as it came and with its checksum made right.
pub fn udp(data: &[u8]) {
    let (source, destination, data) = addresses(data);
    let _ = udp::parse(source, destination, data);
    let mut data = data.to_vec();
    if data.len() < udp::HEADER {
        return;
    }
    let length = usize::from(u16::from_be_bytes([data[4], data[5]]));
    if let Some(datagram) = data.get_mut(..length).filter(|it| it.len() >= udp::HEADER) {
        seal(source, destination, ip::UDP, datagram, 6);
        let parsed = udp::parse(source, destination, datagram).expect("only the sum was wrong");
        let mut out = vec![0; datagram.len()];
        let length = udp::emit(source, destination, &parsed, &mut out);
        assert_eq!(&out[..length], &*datagram, "emitted as parsed");
    }
}

/// A TCP segment, as it came and with its checksum made right.
pub fn tcp(data: &[u8]) {
    let (source, destination, data) = addresses(data);
    let parsed = tcp::parse(source, destination, data);
    let Ok(segment) = tcp::parse_unverified(data) else {
        assert!(parsed.is_err());
        return;
    };
    assert!(segment.payload.len() + tcp::HEADER <= data.len());
    let mut out = vec![0; tcp::HEADER + tcp::OPTIONS_MAX + segment.payload.len()];
    let length = tcp::emit(source, destination, &segment, &mut out);
    let again = tcp::parse(source, destination, &out[..length]).expect("our own segment");
    // A window scale above 14 counts as 14 (RFC 7323, 2.3), so only the second time is exact.
    let mut twice = vec![0; out.len()];
    let twice_length = tcp::emit(source, destination, &again, &mut twice);
    assert_eq!(out[..length], twice[..twice_length]);
    assert_eq!(again.payload, segment.payload);
    assert_eq!(again.header.sequence, segment.header.sequence);
    assert_eq!(again.header.options.sack, segment.header.options.sack);
    assert_eq!(
        again.header.options.timestamps,
        segment.header.options.timestamps
    );
}

/// A segment whose header and options are chosen, and its options between foreign ones.
pub fn options(data: &[u8]) {
    let mut input = Input::new(data);
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let (source, destination) = (IpAddr::V4(source), IpAddr::V4(destination));
    let header = chosen(&mut input);
    if header.options.length() > tcp::OPTIONS_MAX {
        return;
    }
    let length = usize::from(input.byte());
    let payload = input.bytes(length);
    let segment = tcp::Segment { header, payload };
    let mut out = vec![0; tcp::HEADER + tcp::OPTIONS_MAX + payload.len()];
    let length = tcp::emit(source, destination, &segment, &mut out);
    out.truncate(length);
    assert_eq!(tcp::parse(source, destination, &out), Ok(segment));
    let offset = out.len() - payload.len();
    assert_eq!(offset, tcp::HEADER + header.options.length());
    let kinds = kinds(&out[tcp::HEADER..offset]);
    assert_eq!(
        kinds,
        expected_kinds(&header.options),
        "each once, well formed"
    );
    let room = tcp::OPTIONS_MAX - header.options.length();
    if let Some(packed) = interleave(&mut input, &out, offset, room) {
        let again = tcp::parse_unverified(&packed).expect("foreign options are skipped");
        assert_eq!(again.header.options, header.options);
        assert_eq!(again.payload, payload);
    }
    let cut = usize::from(input.byte()) % out.len();
    // The checksum of what is left may be right by chance, but there is no whole header.
    let parsed = tcp::parse(source, destination, &out[..cut]);
    assert!(parsed.is_err() || cut >= offset);
    let (place, bit) = (usize::from(input.number()) % out.len(), input.byte() % 8);
    out[place] ^= 1 << bit;
    let flipped = tcp::parse(source, destination, &out);
    assert!(flipped.is_err(), "the checksum tells of one bit");
}

fn chosen(input: &mut Input<'_>) -> tcp::Header {
    let which = input.byte();
    let mut word = || u32::from(input.number()) << 16 | u32::from(input.number());
    let (ports, sequence, acknowledgement, rest) = (word(), word(), word(), word());
    let half = |word: u32, shift: u32| u16::try_from(word >> shift & 0xffff).expect("masked");
    let [flags, scale, ..] = word().to_be_bytes();
    let mut options = tcp::Options {
        maximum_segment_size: (which & 1 != 0).then(|| half(word(), 0)),
        window_scale: (which & 2 != 0).then_some(scale % 15),
        sack_permitted: which & 4 != 0,
        timestamps: (which & 8 != 0).then(|| tcp::Timestamps {
            value: word(),
            echo: word(),
        }),
        ..tcp::Options::default()
    };
    for _ in 0..which >> 4 & 7 {
        options.sack.push(word(), word());
    }
    tcp::Header {
        source_port: half(ports, 0),
        destination_port: half(ports, 16),
        sequence,
        acknowledgement,
        flags: tcp::Flags(flags),
        window: half(rest, 0),
        urgent: half(rest, 16),
        options,
    }
}

/// The kinds of a list of options, read as RFC 9293, 3.1 says; panics when it is malformed.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [kind, rest @ ..] = bytes {
        match kind {
            0 => break,
            1 => bytes = rest,
            _ => {
                kinds.push(*kind);
                bytes = &bytes[usize::from(rest[0]).max(2)..];
            }
        }
    }
    kinds.sort_unstable();
    kinds
}

fn expected_kinds(options: &tcp::Options) -> Vec<u8> {
    let present = [
        (2, options.maximum_segment_size.is_some()),
        (3, options.window_scale.is_some()),
        (4, options.sack_permitted),
        (5, !options.sack.as_slice().is_empty()),
        (8, options.timestamps.is_some()),
    ];
    let kinds = present.iter().filter(|(_, present)| *present);
    kinds.map(|(kind, _)| *kind).collect()
}

/// The segment with an unknown option before its own, where there is room.
fn interleave(input: &mut Input<'_>, out: &[u8], offset: usize, room: usize) -> Option<Vec<u8>> {
    let words = usize::from(input.byte()) % (room / 4 + 1);
    let length = words.checked_mul(4).filter(|length| *length > 0)?;
    let mut packed = out[..tcp::HEADER].to_vec();
    packed.extend([100 + input.byte() % 100, u8::try_from(length).ok()?]);
    packed.extend((2..length).map(|_| input.byte()));
    packed.extend(&out[tcp::HEADER..]);
    packed[12] = u8::try_from((offset + length) / 4).ok()? << 4;
    Some(packed)
}

/// Every IPv4 address has an IPv6 address, and the other way round the last four bytes count.
struct Everything;

impl Mapping for Everything {
    fn embed(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        Some(Ipv6Addr::from_bits(
            0xfd << 120 | u128::from(address.to_bits()),
        ))
    }

    fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let [.., a, b, c, d] = address.octets();
        Some(Ipv4Addr::new(a, b, c, d))
    }
}

fn pseudo_header(source: IpAddr, destination: IpAddr, kind: u8, length: usize) -> Sum {
    Sum::default().add_pseudo_header(source, destination, kind, length)
}

/// A packet in the other family, as it came and with its checksums made right.
pub fn translate(data: &[u8]) {
    translate_one(data);
    let mut data = data.to_vec();
    let Ok(parsed) = ip::parse(&data) else {
        return;
    };
    let (header, length) = (parsed.header, parsed.payload.len());
    let stated = ip::addresses(&data).expect("it parses").length;
    let (source, destination) = (header.source, header.destination);
    let kind = header.next_header;
    let payload = &mut data[stated - length..stated];
    let (at, sum) = match kind {
        ip::ICMP => (2, Sum::default()),
        ip::ICMPV6 => (2, pseudo_header(source, destination, kind, length)),
        ip::TCP => (16, pseudo_header(source, destination, kind, length)),
        _ => (6, pseudo_header(source, destination, kind, length)),
    };
    if let Some(place) = payload.get_mut(at..at + 2) {
        place.fill(0);
        let sum = sum.add(payload).finish();
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    if source.is_ipv4() {
        let header = &mut data[..stated - length];
        header[10..12].fill(0);
        let sum = Sum::default().add(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    translate_one(&data);
}

/// A SYN that a router passes on with a smaller segment size has changed in nothing else.
fn clamp(data: &[u8]) {
    let mut packet = data.to_vec();
    tcp::clamp_mss(&mut packet, MSS);
    let read = |packet| {
        let parsed = ip::parse(packet).ok()?;
        let header = parsed.header;
        let segment = tcp::parse(header.source, header.destination, parsed.payload).ok()?;
        let first = header.next_header == ip::TCP && header.fragment.is_none();
        first.then_some((header, segment))
    };
    let Some((header, mut sent)) = read(data) else {
        return;
    };
    if sent.header.flags.has(tcp::Flags::SYN) {
        let size = &mut sent.header.options.maximum_segment_size;
        *size = size.map(|size| size.min(MSS));
    }
    assert_eq!(read(&packet), Some((header, sent)));
}

const MSS: u16 = 1212;

fn translate_one(data: &[u8]) {
    clamp(data);
    let mut out = vec![0; data.len() + translate::GROWTH];
    let lengths = [
        translate::to_v6(data, &Everything, Ipv6Addr::LOCALHOST, &mut out),
        translate::to_v4(data, &Everything, &mut out),
    ];
    let ([None, length] | [length, None]) = lengths else {
        panic!("it is of one family");
    };
    let Some(length) = length else {
        return;
    };
    let packet = ip::parse(&out[..length]).expect("what is made is well-formed");
    assert_eq!(packet.header.source.is_ipv4(), data[0] >> 4 == 6);
    assert!(ip::v4_checksum_holds(&out[..length]));
    let kind = packet.header.next_header;
    if matches!(kind, ip::ICMP | ip::ICMPV6) {
        let (source, destination) = (packet.header.source, packet.header.destination);
        let read = icmp::parse(source, destination, packet.payload);
        assert!(!matches!(read, Ok(icmp::Message::Other { .. })), "{read:?}");
    }
}

/// An ICMP message, as it came and with its checksum made right; its quote too.
pub fn icmp(data: &[u8]) {
    let (source, destination, data) = addresses(data);
    let _ = icmp::parse(source, destination, data);
    let mut data = data.to_vec();
    if data.len() < icmp::HEADER {
        return;
    }
    if source.is_ipv4() {
        data[2..4].copy_from_slice(&[0, 0]);
        let checksum = Sum::default().add(&data).finish();
        data[2..4].copy_from_slice(&checksum.to_be_bytes());
    } else {
        seal(source, destination, ip::ICMPV6, &mut data, 2);
    }
    let message = icmp::parse(source, destination, &data).expect("only the sum was wrong");
    if let icmp::Message::Error { quote, .. } = message {
        let _ = ip::parse_quote(quote);
    }
    let mut out = vec![0; data.len()];
    let length = icmp::emit(source, destination, &message, &mut out);
    let again = icmp::parse(source, destination, &out[..length]).expect("our own message");
    assert_eq!(again, message);
}

/// The first byte chooses the family, so that one corpus covers both.
fn addresses(data: &[u8]) -> (IpAddr, IpAddr, &[u8]) {
    match data.split_first() {
        Some((first, rest)) if first & 1 == 1 => {
            let source = Ipv4Addr::new(10, 0, 0, 1);
            (source.into(), Ipv4Addr::new(10, 0, 0, 2).into(), rest)
        }
        Some((_, rest)) => {
            let source = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
            let destination = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
            (source.into(), destination.into(), rest)
        }
        None => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into(), &[]),
    }
}

/// Writes the checksum of `data` at `at`.
fn seal(source: IpAddr, destination: IpAddr, protocol: u8, data: &mut [u8], at: usize) {
    data[at..at + 2].copy_from_slice(&[0, 0]);
    let sum = Sum::default().add_pseudo_header(source, destination, protocol, data.len());
    let checksum = match sum.add(data).finish() {
        0 => 0xffff,
        checksum => checksum,
    };
    data[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
