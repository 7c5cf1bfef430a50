//! Another program's parser reads what the writer wrote.

use std::io::Cursor;

use pcap_parser::{
    Block, NameRecord as TheirRecord, NameRecordType, PcapBlockOwned, PcapError, PcapNGOption,
    PcapNGReader, SecretsType as Theirs, traits::PcapReaderIterator as _,
};
use proptest::prelude::*;

use super::*;

/// What a foreign parser found.
#[derive(Debug, Eq, PartialEq)]
enum Found {
    Section(Vec<(u16, Vec<u8>)>),
    Interface(i32, Vec<(u16, Vec<u8>)>),
    Packet {
        interface: u32,
        nanos: u64,
        bytes: Vec<u8>,
        options: Vec<(u16, Vec<u8>)>,
    },
    Statistics(u32, u64, Vec<(u16, Vec<u8>)>),
    Secrets(Vec<u8>),
    Names(Vec<(IpAddr, String)>),
}

/// Reads a whole file with `pcap-parser`.
fn read(file: &[u8]) -> Vec<Found> {
    let mut reader = PcapNGReader::new(2 * PACKET_BLOCK_MAX, Cursor::new(file)).expect("a header");
    let mut found = Vec::new();
    loop {
        let offset = match reader.next() {
            Ok((offset, PcapBlockOwned::NG(block))) => {
                found.push(found_in(&block));
                offset
            }
            Ok((_, PcapBlockOwned::Legacy(_) | PcapBlockOwned::LegacyHeader(_))) => {
                panic!("a block of the older form")
            }
            Err(PcapError::Eof) => return found,
            Err(PcapError::Incomplete(_)) => {
                reader.refill().expect("a cursor");
                continue;
            }
            Err(error) => panic!("{error:?}"),
        };
        reader.consume(offset);
    }
}

fn found_in(block: &Block<'_>) -> Found {
    let nanos = |high: u32, low: u32| (u64::from(high) << 32) | u64::from(low);
    if let Block::SectionHeader(section) = block {
        assert_eq!((section.major_version, section.minor_version), (1, 0));
        assert_eq!(section.section_len, -1);
        Found::Section(options(&section.options))
    } else if let Block::InterfaceDescription(interface) = block {
        assert_eq!((interface.if_tsresol, interface.snaplen), (9, 0));
        Found::Interface(interface.linktype.0, options(&interface.options))
    } else if let Block::EnhancedPacket(packet) = block {
        assert_eq!(packet.caplen, packet.origlen);
        Found::Packet {
            interface: packet.if_id,
            nanos: nanos(packet.ts_high, packet.ts_low),
            bytes: packet.data[..packet.caplen as usize].to_vec(),
            options: options(&packet.options),
        }
    } else if let Block::InterfaceStatistics(told) = block {
        let time = nanos(told.ts_high, told.ts_low);
        Found::Statistics(told.if_id, time, options(&told.options))
    } else if let Block::DecryptionSecrets(secrets) = block {
        assert_eq!(secrets.secrets_type, Theirs(0x5747_4b4c));
        Found::Secrets(secrets.data[..secrets.secrets_len as usize].to_vec())
    } else if let Block::NameResolution(names) = block {
        assert!(names.options.is_empty());
        let (last, records) = names.nr.split_last().expect("they have an end");
        assert_eq!(last.record_type, NameRecordType::End);
        Found::Names(records.iter().map(name_in).collect())
    } else {
        panic!("{block:?} was not written")
    }
}

/// The address and the name before the zero; all behind it is padding.
fn name_in(record: &TheirRecord<'_>) -> (IpAddr, String) {
    let value = record.record_value;
    let (address, rest) = match record.record_type {
        NameRecordType::Ipv4 => {
            let (address, rest) = value.split_first_chunk::<4>().expect("an address");
            (IpAddr::from(*address), rest)
        }
        _ => {
            assert_eq!(record.record_type, NameRecordType::Ipv6);
            let (address, rest) = value.split_first_chunk::<16>().expect("an address");
            (IpAddr::from(*address), rest)
        }
    };
    let end = rest.iter().position(|byte| *byte == 0).expect("a zero");
    assert!(rest[end..].iter().all(|byte| *byte == 0) && rest.len() - end <= 4);
    let name = String::from_utf8(rest[..end].to_vec());
    (address, name.expect("text"))
}

/// Codes and values, up to the end of options.
fn options(options: &[PcapNGOption<'_>]) -> Vec<(u16, Vec<u8>)> {
    let value = |option: &PcapNGOption<'_>| option.value()[..usize::from(option.len)].to_vec();
    let mut all: Vec<_> = options.iter().map(|o| (o.code.0, value(o))).collect();
    assert_eq!(all.pop(), Some((0, Vec::new())), "they have an end");
    all
}

fn text(code: u16, text: &str) -> (u16, Vec<u8>) {
    (code, text.as_bytes().to_vec())
}

#[test]
fn a_foreign_parser_finds_every_block_as_it_was_meant() {
    let mut file = Vec::new();
    section_header(&mut file, "ginnel 1.0");
    let mut interface = Interface {
        link_type: LinkType::Raw,
        name: "inner",
        description: "decrypted",
        filter: None,
    };
    interface_description(&mut file, &interface);
    (interface.name, interface.filter) = ("outer", Some("tcp port 22"));
    interface_description(&mut file, &interface);
    decryption_secrets(&mut file, SecretsType::WireGuardKeyLog, b"A = b\n");
    let time = Duration::new(1_800_000_000, 123_456_789);
    let mut packet = EnhancedPacket {
        interface: 0,
        time,
        direction: Direction::Inbound,
        pieces: &[b"abc", b"de"],
        comment: "",
    };
    enhanced_packet(&mut file, &packet);
    (packet.interface, packet.direction) = (1, Direction::Outbound);
    packet.comment = "why not";
    enhanced_packet(&mut file, &packet);
    let counted = Statistics {
        received: 9,
        accepted: 2,
        dropped: 1,
    };
    let start = time - Duration::from_secs(1);
    interface_statistics(&mut file, 1, start, time, &counted, "the end");
    let nanos = 1_800_000_000_123_456_789_u64;
    let told = |number: u64| number.to_le_bytes().to_vec();
    let halves = |nanos: u64| told(nanos.rotate_left(32));
    let described = |name| vec![text(2, name), text(3, "decrypted"), (9, vec![9])];
    let mut outer = described("outer");
    outer.push(text(11, "\0tcp port 22"));
    let found = read(&file);
    let expected = [
        Found::Section(vec![text(4, "ginnel 1.0")]),
        Found::Interface(101, described("inner")),
        Found::Interface(101, outer),
        Found::Secrets(b"A = b\n".to_vec()),
        Found::Packet {
            interface: 0,
            nanos,
            bytes: b"abcde".to_vec(),
            options: vec![(2, vec![1, 0, 0, 0])],
        },
        Found::Packet {
            interface: 1,
            nanos,
            bytes: b"abcde".to_vec(),
            options: vec![(2, vec![2, 0, 0, 0]), text(1, "why not")],
        },
        Found::Statistics(
            1,
            nanos,
            vec![
                (2, halves(nanos - 1_000_000_000)),
                (3, halves(nanos)),
                (4, told(9)),
                (6, told(2)),
                (7, told(1)),
                text(1, "the end"),
            ],
        ),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_block_of_the_longest_packet_and_comment_has_the_stated_length() {
    let packet = [7; PACKET_MAX];
    let mut file = Vec::new();
    enhanced_packet(
        &mut file,
        &EnhancedPacket {
            interface: 0,
            time: Duration::MAX,
            direction: Direction::Inbound,
            pieces: &[&packet],
            comment: &"ä".repeat(TEXT_MAX),
        },
    );
    assert_eq!(file.len(), PACKET_BLOCK_MAX);
}

/// Writes names into as many blocks as they need, after the header that a file has.
fn names_of(records: &[NameRecord<'_>], length_max: usize) -> (Vec<Found>, usize) {
    let mut file = Vec::new();
    section_header(&mut file, "names");
    let (mut rest, mut taken) = (records, 0);
    loop {
        let before = file.len();
        let count = name_resolution(&mut file, rest, length_max);
        assert!(file.len() - before <= length_max.min(NAMES_BLOCK_MAX));
        if count == 0 {
            break;
        }
        taken += count;
        rest = &rest[count..];
    }
    let mut found = read(&file);
    found.remove(0);
    (found, taken)
}

#[test]
fn a_foreign_parser_finds_names_of_both_families_and_no_other_text() {
    let v4 = IpAddr::from([192, 0, 2, 1]);
    let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
    let (label, long) = ("a".repeat(63), "abc.".repeat(63));
    let longest = format!("{long}a");
    let (too_long, label_too_long) = (format!("{long}ab"), format!("{label}a"));
    let good = [
        "a",
        "db.acme.internal",
        "xn--bcher-kva.example",
        "1",
        &label,
        &longest,
    ];
    let bad = [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a.-b",
        "a b",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\"",
        "$(id)",
        "bücher",
        "\u{202e}a",
        "a_b",
        "*.a",
        &too_long,
        &label_too_long,
    ];
    for address in [v4, v6] {
        let texts = good.iter().chain(&bad).chain(&good);
        let records: Vec<_> = texts.map(|&name| NameRecord { address, name }).collect();
        let (found, taken) = names_of(&records, usize::MAX);
        assert_eq!(taken, records.len());
        let expected = good.iter().chain(&good);
        let expected = expected.map(|name| (address, (*name).to_owned()));
        assert_eq!(found, [Found::Names(expected.collect())]);
        let bad = bad.map(|name| NameRecord { address, name });
        assert_eq!(names_of(&bad, usize::MAX), (Vec::new(), bad.len()));
    }
}

#[test]
fn many_names_stand_in_blocks_of_bounded_length() {
    let label = "a".repeat(63);
    let texts: Vec<_> = (0..2_000_u32).map(|n| format!("n{n}.{label}")).collect();
    let records: Vec<_> = (0_u32..)
        .zip(&texts)
        .map(|(number, name)| {
            let address = IpAddr::from(number.to_be_bytes());
            NameRecord { address, name }
        })
        .collect();
    let all = |found: Vec<Found>| -> Vec<(IpAddr, String)> {
        let names = found.into_iter().flat_map(|block| {
            let Found::Names(names) = block else {
                panic!("{block:?}");
            };
            names
        });
        names.collect()
    };
    let expected: Vec<_> = records
        .iter()
        .map(|record| (record.address, record.name.to_owned()))
        .collect();
    for (length_max, blocks) in [(usize::MAX, 3), (1_000, 167), (100, 2_000)] {
        let (found, taken) = names_of(&records, length_max);
        assert_eq!((found.len(), taken), (blocks, records.len()));
        assert_eq!(all(found), expected);
    }
    assert_eq!(names_of(&records, 90), (Vec::new(), 0));
}

proptest! {
    #[test]
    fn no_text_but_names_of_hosts_stands_in_a_block(
        names in prop::collection::vec("[-.a-z0-9]{0,9}|\\PC{0,9}", 0..20),
        length_max in 0..300_usize,
    ) {
        let address = IpAddr::from([192, 0, 2, 1]);
        let records = names.iter().map(|name| NameRecord { address, name });
        let (found, _) = names_of(&records.collect::<Vec<_>>(), length_max);
        for block in found {
            let Found::Names(found) = block else { panic!("{block:?}") };
            prop_assert!(!found.is_empty());
            for (_, name) in found {
                prop_assert!(names.contains(&name));
                let mut labels = name.split('.');
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                prop_assert!(labels.all(|label| !label.is_empty() && label.bytes().all(plain)));
            }
        }
    }

    #[test]
    fn whatever_is_written_is_read_back(
        packets in prop::collection::vec(
            (any::<[u8; 40]>(), 0..40_usize, any::<u64>(), "\\PC{0,40}"),
            0..20,
        ),
        name in "\\PC{0,40}",
    ) {
        let mut file = Vec::new();
        section_header(&mut file, &name);
        let (link_type, description, filter) = (LinkType::Raw, "", None);
        let interface = Interface { link_type, name: &name, description, filter };
        interface_description(&mut file, &interface);
        for (bytes, length, nanos, comment) in &packets {
            enhanced_packet(&mut file, &EnhancedPacket {
                interface: 0,
                time: Duration::from_nanos(*nanos),
                direction: Direction::Inbound,
                pieces: &[&bytes[..*length]],
                comment,
            });
        }
        let found = read(&file);
        prop_assert_eq!(found.len(), packets.len() + 2);
        for (found, (sent, length, sent_nanos, comment)) in found[2..].iter().zip(&packets) {
            let mut options = vec![(2, vec![1, 0, 0, 0])];
            if !comment.is_empty() {
                options.push(text(1, comment));
            }
            let expected = Found::Packet {
                interface: 0,
                nanos: *sent_nanos,
                bytes: sent[..*length].to_vec(),
                options,
            };
            prop_assert_eq!(found, &expected);
        }
    }
}
