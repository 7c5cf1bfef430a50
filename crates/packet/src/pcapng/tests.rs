//! Another program's parser reads what the writer wrote.

use std::io::Cursor;

use pcap_parser::{
    Block, PcapBlockOwned, PcapError, PcapNGOption, PcapNGReader, SecretsType as Theirs,
    traits::PcapReaderIterator as _,
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
    } else {
        panic!("{block:?} was not written")
    }
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

proptest! {
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
