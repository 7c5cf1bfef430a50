//! What is in the file, read by a foreign parser; bounds, and when the file is complete.

use std::io::Cursor;

use pcap_parser::{
    Block, PcapBlockOwned, PcapError, PcapNGOption, PcapNGReader, traits::PcapReaderIterator as _,
};
use wireguard::{Device, Event, PublicKey, StaticSecret};

use super::*;
use crate::discard::Reason;

/// A packet of the file: its interface, bytes and comment.
type Packet = (u32, Vec<u8>, String);

/// What stands in a file.
#[derive(Debug, Default, Eq, PartialEq)]
struct Contents {
    /// A letter for each block: section, interface, names, packet, keys, end.
    order: String,
    packets: Vec<Packet>,
    names: Vec<String>,
    /// Received, accepted and dropped, for each interface.
    statistics: Vec<[u64; 3]>,
    /// The comments of the ends.
    last: Vec<String>,
}

fn contents(file: &[u8]) -> Contents {
    let mut reader = PcapNGReader::new(1 << 20, Cursor::new(file)).expect("a header");
    let mut contents = Contents::default();
    loop {
        let offset = match reader.next() {
            Ok((offset, PcapBlockOwned::NG(block))) => {
                contents.add(&block);
                offset
            }
            Ok((_, PcapBlockOwned::Legacy(_) | PcapBlockOwned::LegacyHeader(_))) => {
                panic!("a block of the older form")
            }
            Err(PcapError::Eof) => return contents,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().expect("a cursor");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        reader.consume(offset);
    }
}

impl Contents {
    fn add(&mut self, block: &Block<'_>) {
        if let Block::SectionHeader(_) = block {
            self.order.push('S');
        } else if let Block::InterfaceDescription(_) = block {
            self.order.push('I');
        } else if let Block::DecryptionSecrets(_) = block {
            self.order.push('K');
        } else if let Block::NameResolution(names) = block {
            self.order.push('N');
            let (_, records) = names.nr.split_last().expect("they have an end");
            self.names.extend(records.iter().map(|record| {
                let name = record.record_value[16..].split(|byte| *byte == 0).next();
                String::from_utf8(name.expect("one").to_vec()).expect("text")
            }));
        } else if let Block::EnhancedPacket(packet) = block {
            self.order.push('P');
            let bytes = packet.data[..packet.caplen as usize].to_vec();
            let comment = comment(&packet.options);
            self.packets.push((packet.if_id, bytes, comment));
        } else if let Block::InterfaceStatistics(told) = block {
            self.order.push('E');
            let count = |code: u16| {
                let option = told.options.iter().find(|option| option.code.0 == code);
                let value = option.expect("it is counted").value().first_chunk();
                u64::from_le_bytes(*value.expect("eight bytes"))
            };
            self.statistics.push([count(4), count(6), count(7)]);
            self.last.push(comment(&told.options));
        } else {
            panic!("{block:?} was not written");
        }
    }
}

fn comment(options: &[PcapNGOption<'_>]) -> String {
    let comment = options.iter().find(|option| option.code.0 == 1);
    let comment = comment.map_or(&[][..], |told| &told.value()[..told.len.into()]);
    String::from_utf8(comment.to_vec()).expect("text")
}

fn both() -> Settings {
    Settings {
        application: String::new(),
        inner: true,
        outer: true,
        filter: None,
        keys: false,
        port: 51_820,
        packets_max: None,
        bytes_max: None,
    }
}

fn start(settings: Settings) -> (Instant, Capture) {
    #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
    let now = Instant::now();
    (now, Capture::new(now, SystemTime::UNIX_EPOCH, settings))
}

fn end(mut capture: Capture, now: Instant) -> Contents {
    capture.finish(now);
    let mut file = buffer();
    capture.take(&mut file);
    contents(&file)
}

/// An IPv4 packet of that protocol.
fn ipv4(protocol: u8) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[3] = 20;
    packet[9] = protocol;
    packet
}

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

/// Transport data for that receiver index.
fn data(index: u32) -> Vec<u8> {
    let mut datagram = vec![0; 32];
    datagram[0] = 4;
    datagram[4..8].copy_from_slice(&index.to_le_bytes());
    datagram
}

/// A handshake message of that type and length with two indices.
fn message(kind: u8, length: usize, first: u32, second: u32) -> Vec<u8> {
    let mut message = vec![0; length];
    message[0] = kind;
    message[4..8].copy_from_slice(&first.to_le_bytes());
    message[8..12].copy_from_slice(&second.to_le_bytes());
    message
}

#[test]
fn both_sides_stand_in_one_file_with_verdicts_and_events() {
    let (now, mut capture) = start(both());
    capture.note("handshake completed".to_owned());
    capture.inner(now, Direction::Inbound, &ipv4(6), None);
    let policy = Some(Reason::Policy.into());
    capture.inner(now, Direction::Inbound, &ipv4(17), policy);
    assert!(capture.hold_outer(Direction::Inbound, peer(), b"abc"));
    capture.note("peer moved".to_owned());
    capture.release_outer(now, Some(wireguard::Discard::Tag.into()));
    capture.release_outer(now, None);
    let found = end(capture, now);
    assert_eq!(found.order, "SIIPPPEE");
    let [first, second, third] = &found.packets[..] else {
        panic!("three packets");
    };
    assert_eq!(first, &(0, ipv4(6), "handshake completed".to_owned()));
    assert_eq!(second, &(0, ipv4(17), "discarded: node.policy".to_owned()));
    let outer = ip::parse(&third.1).expect("an IP packet");
    let (source, destination) = (outer.header.source, outer.header.destination);
    let datagram = udp::parse(source, destination, outer.payload).expect("UDP");
    assert_eq!((source, datagram.source_port), (peer().ip(), 1));
    assert_eq!(datagram.destination_port, 51_820);
    assert_eq!(datagram.payload, b"abc");
    let comment = "peer moved; discarded: wireguard.tag";
    assert_eq!((third.0, &third.2[..]), (1, comment));
    assert_eq!(found.statistics, [[2, 2, 0], [1, 1, 0]]);
}

#[test]
fn a_datagram_over_ipv6_has_a_checksum_that_holds() {
    let (now, mut capture) = start(both());
    for remote in ["[fd00::1]:9", "[::ffff:192.0.2.1]:9"] {
        let remote = remote.parse().expect("an address");
        capture.outer(now, Direction::Outbound, remote, b"odd");
    }
    let found = end(capture, now);
    let sources = found.packets.iter().map(|(_, bytes, _)| {
        let outer = ip::parse(bytes).expect("an IP packet");
        let (source, destination) = (outer.header.source, outer.header.destination);
        let datagram = udp::parse(source, destination, outer.payload).expect("the sum holds");
        assert_eq!(datagram.source_port, 51_820);
        assert_eq!(datagram.destination_port, 9);
        source.to_string()
    });
    assert_eq!(sources.collect::<Vec<_>>(), ["::", "0.0.0.0"]);
}

#[test]
fn a_filter_counts_what_it_did_not_want() {
    let mut settings = both();
    settings.filter = Some(Filter::parse("tcp").expect("an expression"));
    settings.outer = false;
    let (now, mut capture) = start(settings);
    for protocol in [6, 17, 6] {
        capture.inner(now, Direction::Inbound, &ipv4(protocol), None);
    }
    capture.outer(now, Direction::Inbound, peer(), b"abc");
    let found = end(capture, now);
    assert_eq!(found.order, "SIPPE");
    assert_eq!(found.statistics, [[3, 2, 0]]);
}

#[test]
fn what_nobody_takes_in_time_is_dropped_and_counted_and_the_end_still_fits() {
    let (now, mut capture) = start(both());
    let packet = vec![0x45; 60_000];
    let fits = u64::try_from(QUEUE_MAX / packet.len()).expect("few");
    for _ in 0..fits + 5 {
        capture.inner(now, Direction::Inbound, &packet, None);
    }
    let mut first = buffer();
    capture.take(&mut first);
    assert!(first.len() <= QUEUE_MAX);
    capture.inner(now, Direction::Inbound, &ipv4(6), None);
    capture.finish(now);
    let mut last = buffer();
    capture.take(&mut last);
    first.extend_from_slice(&last);
    let found = contents(&first);
    let [received, accepted, dropped] = found.statistics[0];
    assert_eq!((received, accepted), (fits + 6, fits + 6));
    assert!((5..=6).contains(&dropped));
    let written = u64::try_from(found.packets.len()).expect("few");
    assert_eq!(written + dropped, accepted);
}

#[test]
fn a_capture_is_complete_after_its_packets_or_bytes() {
    let mut settings = both();
    settings.packets_max = Some(2);
    let (now, mut capture) = start(settings);
    for _ in 0..5 {
        capture.inner(now, Direction::Inbound, &ipv4(6), None);
    }
    assert!(capture.is_complete());
    assert_eq!(end(capture, now).statistics[0], [2, 2, 0]);
    let mut settings = both();
    settings.bytes_max = Some(2_000);
    let (now, mut capture) = start(settings);
    for _ in 0..50 {
        capture.inner(now, Direction::Inbound, &ipv4(6), None);
    }
    assert!(capture.is_complete());
    capture.finish(now);
    let mut file = buffer();
    capture.take(&mut file);
    assert!((1_500..=2_000).contains(&file.len()), "{}", file.len());
}

#[test]
fn what_is_discarded_after_the_last_packet_is_told_at_the_end_if_it_fits() {
    let discard = Discard::from(wireguard::Discard::Handshake);
    let (now, mut capture) = start(both());
    capture.inner(now, Direction::Inbound, &ipv4(6), None);
    capture.discarded(discard, 2);
    let told = format!("2 discarded since: {}", discard.name());
    assert_eq!(end(capture, now).last, [told.as_str(), ""]);
    for bytes_max in 2_000..2_100 {
        let mut settings = both();
        settings.bytes_max = Some(bytes_max);
        let (now, mut capture) = start(settings);
        while !capture.is_complete() {
            capture.inner(now, Direction::Inbound, &ipv4(6), None);
        }
        capture.discarded(discard, 2);
        capture.finish(now);
        let mut file = buffer();
        capture.take(&mut file);
        assert!(file.len() as u64 <= bytes_max);
        assert!(told.starts_with(&contents(&file).last[0]));
    }
}

/// An address and a name for each number.
fn names(numbers: std::ops::Range<u32>) -> impl Iterator<Item = (IpAddr, String)> {
    numbers.map(|number| {
        let address = Ipv6Addr::from(0xfd00 << 112 | u128::from(number));
        (address.into(), format!("n{number}.acme.internal"))
    })
}

#[test]
fn names_stand_before_the_packets_once_and_again_when_they_change() {
    let (now, mut capture) = start(both());
    let inner = |capture: &mut Capture| capture.inner(now, Direction::Inbound, &ipv4(6), None);
    capture.name(names(0..3));
    inner(&mut capture);
    capture.name(names(0..3));
    inner(&mut capture);
    capture.name(names(0..4));
    let (address, _) = names(1..2).next().expect("one");
    capture.name([(address, "new.acme.internal".to_owned())]);
    capture.name([(address, "$(id)".to_owned())]);
    inner(&mut capture);
    let found = end(capture, now);
    assert_eq!(found.order, "SIINPPNNPEE");
    let once = ["n0", "n1", "n2", "n3", "new"];
    let once = once.map(|name| format!("{name}.acme.internal"));
    assert_eq!(found.names, once);
}

#[test]
fn names_are_written_only_where_addresses_inside_the_tunnel_are_seen() {
    for (inner, keys, written) in [
        (true, false, true),
        (false, false, false),
        (false, true, true),
    ] {
        let settings = Settings {
            inner,
            keys,
            ..both()
        };
        let (now, mut capture) = start(settings);
        assert_eq!(capture.wants_names(), written);
        capture.name(names(0..3));
        assert_eq!(end(capture, now).names.len(), if written { 3 } else { 0 });
    }
}

#[test]
fn names_are_bounded_and_leave_the_file_to_packets() {
    let (now, mut capture) = start(both());
    let more = u32::try_from(name::NAMES_MAX).expect("few") + 5;
    capture.name(names(0..more));
    capture.name(names(0..more));
    let found = end(capture, now);
    assert_eq!(found.names.len(), name::NAMES_MAX);
    for bytes_max in (2_000..40_000).step_by(997) {
        let settings = Settings {
            bytes_max: Some(bytes_max),
            ..both()
        };
        let (now, mut capture) = start(settings);
        capture.name(names(0..1_000));
        capture.name(names(1_000..1_001));
        while !capture.is_complete() {
            capture.inner(now, Direction::Inbound, &ipv4(6), None);
        }
        capture.finish(now);
        let mut file = buffer();
        capture.take(&mut file);
        let (length, found) = (file.len() as u64, contents(&file));
        assert!(length <= bytes_max && length + 200 > bytes_max);
        let names = found.names.len() as u64;
        // A name takes 40 bytes here, and the block 16 more.
        assert_eq!(names, (bytes_max / 8).saturating_sub(16) / 40);
        assert_eq!(found.names.last(), names_of_last(names).as_ref());
    }
}

/// The last of so many names.
fn names_of_last(count: u64) -> Option<String> {
    count
        .checked_sub(1)
        .map(|last| format!("n{last}.acme.internal"))
}

#[test]
fn names_that_find_the_queue_full_come_before_the_packet_that_does_not() {
    let (now, mut capture) = start(both());
    let packet = vec![0x45; 60_000];
    for _ in 0..QUEUE_MAX / packet.len() + 1 {
        capture.inner(now, Direction::Inbound, &packet, None);
    }
    let [mut first, mut last] = [buffer(), buffer()];
    capture.name(names(0..3));
    capture.take(&mut first);
    assert_eq!(contents(&first).names.len(), 0);
    capture.inner(now, Direction::Inbound, &ipv4(6), None);
    capture.take(&mut last);
    let before = contents(&first).packets.len();
    first.extend_from_slice(&last);
    let found = contents(&first);
    assert_eq!((found.names.len(), found.packets.len()), (3, before + 1));
    assert!(found.order.ends_with("PNP"));
}

#[test]
fn with_keys_only_sessions_are_written_whose_handshake_is_in_the_file() {
    let mut settings = both();
    settings.keys = true;
    let (now, mut capture) = start(settings);
    let mut send = |direction, datagram: &[u8]| {
        capture.outer(now, direction, peer(), datagram);
    };
    // Of a session that is older.
    send(Direction::Outbound, &data(7));
    // A response to what we did not send.
    send(Direction::Inbound, &message(2, RESPONSE, 7, 1));
    send(Direction::Outbound, &data(7));
    send(Direction::Outbound, &message(1, INITIATION, 1, 0));
    send(Direction::Inbound, &message(2, RESPONSE, 9, 1));
    send(Direction::Outbound, &data(9));
    send(Direction::Inbound, &data(1));
    // The indices of the two sides are apart.
    send(Direction::Inbound, &data(9));
    // A forged response opens nothing.
    assert!(capture.hold_outer(Direction::Inbound, peer(), &message(2, RESPONSE, 5, 1)));
    capture.release_outer(now, Some(wireguard::Discard::Handshake.into()));
    capture.outer(now, Direction::Outbound, peer(), &data(5));
    let found = end(capture, now);
    let packets = found.packets.iter();
    let lengths: Vec<_> = packets.map(|(_, bytes, _)| bytes.len() - 28).collect();
    assert_eq!(lengths, [RESPONSE, INITIATION, RESPONSE, 32, 32, RESPONSE]);
}

#[test]
fn keys_are_written_only_when_they_are_wanted() {
    #[expect(clippy::disallowed_methods, reason = "the base of virtual time")]
    let now = Instant::now();
    let mut device = Device::new(now, SystemTime::UNIX_EPOCH, Box::new(Sevens));
    device.set_private_key(now, Some(StaticSecret::new([0x42; 32])));
    device.set_key_log(true);
    let other = StaticSecret::new([0x43; 32]).public_key();
    let id = device.add_peer(now, PublicKey(other.0)).expect("a peer");
    device.set_endpoint(id, Some(peer()));
    device.initiate(now, id);
    let mut logs = std::iter::from_fn(|| device.poll_event()).filter_map(|event| {
        if let Event::KeyLog { log, remote, .. } = event {
            Some((log, remote))
        } else {
            None
        }
    });
    let (log, remote) = logs.next().expect("keys of the initiation");
    assert_eq!(remote, peer());
    let at = format!("host {} and udp port {}", peer().ip(), peer().port());
    for (keys, filter, written) in [
        (false, None, false),
        (true, None, true),
        (true, Some(&*at), true),
        (true, Some("host 203.0.113.200"), false),
        // One of the two messages is not enough.
        (true, Some("less 130"), false),
        (true, Some("greater 130"), false),
    ] {
        for initiator in [false, true] {
            let mut settings = both();
            settings.keys = keys;
            settings.filter = filter.map(|text| Filter::parse(text).expect("it is well formed"));
            let (now, mut capture) = start(settings);
            capture.write_keys(&log, remote, initiator);
            let order = if written { "SIIKEE" } else { "SIIEE" };
            assert_eq!(end(capture, now).order, order, "{filter:?}");
        }
    }
}

/// The same key every time: one handshake is all that there is.
struct Sevens;

impl wireguard::Random for Sevens {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}
