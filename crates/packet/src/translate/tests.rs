//! Stories of packets that go from one family to the other and back.

use proptest::prelude::*;

use super::*;
use crate::{icmp::Echo, tcp, udp};

/// 192.0.2.0/24 is what is told of; everything else has no counterpart.
struct Documentation;

const PREFIX: [u8; 12] = [0xfd, 1, 2, 3, 4, 5, 0, 2, 0, 0, 0, 7];
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd01, 0x203, 0x405, 1, 0, 0, 0, 9);
const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);

impl Mapping for Documentation {
    fn embed(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let mut octets = [0; 16];
        octets[..12].copy_from_slice(&PREFIX);
        octets[12..].copy_from_slice(&address.octets());
        (address.octets()[..3] == [192, 0, 2]).then_some(octets.into())
    }

    fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = address.octets();
        let address = Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]);
        (self.embed(address)?.octets() == octets).then_some(address)
    }
}

fn v6(address: Ipv4Addr) -> Ipv6Addr {
    Documentation.embed(address).expect("a known one")
}

/// An IPv4 packet from the one to the other.
fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
    between(ONE.into(), OTHER.into(), next_header, payload)
}

fn between(source: IpAddr, destination: IpAddr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source,
        destination,
        next_header,
        hop_limit: 63,
        traffic_class: 0xb9,
        fragment: None,
    };
    let mut out = vec![0; ip::header_length(source) + payload.len()];
    let at = ip::emit_header(&header, payload.len(), &mut out);
    out[at..].copy_from_slice(payload);
    out
}

fn udp_payload(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; udp::HEADER + payload.len()];
    let datagram = udp::Datagram {
        source_port: 5353,
        destination_port: 53,
        payload,
    };
    udp::emit(ONE.into(), OTHER.into(), &datagram, &mut out);
    out
}

fn there(packet: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; packet.len() + GROWTH];
    let length = to_v6(packet, &Documentation, ROUTER, &mut out)?;
    out.truncate(length);
    Some(out)
}

fn back(packet: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; packet.len() + GROWTH];
    let length = to_v4(packet, &Documentation, &mut out)?;
    out.truncate(length);
    Some(out)
}

#[test]
fn a_datagram_has_its_addresses_and_a_true_checksum_in_both_families() {
    let sent = packet(ip::UDP, &udp_payload(b"question"));
    let inside = there(&sent).expect("it has a counterpart");
    let parsed = ip::parse(&inside).expect("well-formed");
    let header = parsed.header;
    assert_eq!(header.source, IpAddr::V6(v6(ONE)));
    assert_eq!(header.destination, IpAddr::V6(v6(OTHER)));
    assert_eq!((header.hop_limit, header.traffic_class), (63, 0xb9));
    let datagram = udp::parse(header.source, header.destination, parsed.payload);
    assert_eq!(datagram.expect("a true checksum").payload, b"question");
    assert_eq!(back(&inside), Some(sent));
}

#[test]
fn what_was_broken_stays_so_and_a_missing_checksum_is_made() {
    let mut broken = udp_payload(b"question");
    broken[9] ^= 1;
    let inside = there(&packet(ip::UDP, &broken)).expect("not looked at");
    let parsed = ip::parse(&inside).expect("well-formed");
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    assert!(udp::parse(source, destination, parsed.payload).is_err());
    let mut none = udp_payload(b"question");
    none[6..8].fill(0);
    let inside = there(&packet(ip::UDP, &none)).expect("made");
    let parsed = ip::parse(&inside).expect("well-formed");
    assert!(udp::parse(source, destination, parsed.payload).is_ok());
    let mut fragment = packet(ip::UDP, &none);
    make_fragment(&mut fragment, 0, true);
    assert_eq!(there(&fragment), None);
}

#[test]
fn an_echo_is_asked_and_answered_across() {
    let echo = Echo {
        identifier: 7,
        sequence: 1,
        payload: b"0123456",
    };
    for message in [Message::EchoRequest(echo), Message::EchoReply(echo)] {
        let mut payload = [0; 15];
        icmp::emit(ONE.into(), OTHER.into(), &message, &mut payload);
        let sent = packet(ip::ICMP, &payload);
        let inside = there(&sent).expect("it has a counterpart");
        let parsed = ip::parse(&inside).expect("well-formed");
        assert_eq!(parsed.header.next_header, ip::ICMPV6);
        let read = icmp::parse(v6(ONE).into(), v6(OTHER).into(), parsed.payload);
        assert_eq!(read, Ok(message));
        assert_eq!(back(&inside), Some(sent));
    }
}

/// Lets the other host, or a router that nobody knows, answer a datagram of the one with an error,
/// and returns what the one sees: the source, the cause, and what the error quotes.
fn told(router: Option<Ipv4Addr>, cause: Cause) -> Option<(IpAddr, Cause, Vec<u8>)> {
    let inside = there(&packet(ip::UDP, &udp_payload(b"question"))).expect("a counterpart");
    let arrived = back(&inside).expect("a counterpart");
    let source = router.unwrap_or(OTHER).into();
    let quote = &arrived[..28];
    let mut payload = vec![0; icmp::HEADER + quote.len()];
    icmp::emit(
        source,
        ONE.into(),
        &Message::Error { cause, quote },
        &mut payload,
    );
    let error = there(&between(source, ONE.into(), ip::ICMP, &payload))?;
    let parsed = ip::parse(&error).expect("well-formed");
    let (source, destination) = (parsed.header.source, parsed.header.destination);
    match icmp::parse(source, destination, parsed.payload) {
        Ok(Message::Error { cause, quote }) => {
            assert_eq!(quote, &inside[..quote.len()], "what was sent");
            Some((source, cause, quote.to_vec()))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_error_quotes_the_packet_as_its_sender_knows_it() {
    let port = Cause::Unreachable(Unreachable::Port);
    let (source, cause, quote) = told(None, port).expect("a counterpart");
    assert_eq!((source, cause), (v6(OTHER).into(), port));
    assert_eq!(quote.len(), ip::V6_HEADER + 8);
    let elsewhere = Ipv4Addr::new(198, 51, 100, 1);
    let (source, ..) = told(Some(elsewhere), port).expect("a counterpart");
    assert_eq!(source, IpAddr::V6(ROUTER));
    let cause = |cause| told(None, cause).map(|(_, cause, _)| cause);
    let too_big = |mtu| Cause::PacketTooBig { mtu };
    assert_eq!(cause(too_big(1400)), Some(too_big(1420)));
    assert_eq!(cause(too_big(576)), Some(too_big(1280)));
    let expired = Cause::TimeExceeded { code: 0 };
    assert_eq!(cause(expired), Some(expired));
    let protocol = Cause::Unreachable(Unreachable::Other(2));
    let problem = Cause::ParameterProblem {
        code: 1,
        pointer: 6,
    };
    assert_eq!(cause(protocol), Some(problem));
    assert_eq!(
        cause(Cause::ParameterProblem {
            code: 0,
            pointer: 3
        }),
        None
    );
}

#[test]
fn an_error_of_a_router_of_ipv6_comes_from_the_address_for_that() {
    let inside = there(&packet(ip::UDP, &udp_payload(b"question"))).expect("a counterpart");
    let (source, destination) = (IpAddr::V6(ROUTER), IpAddr::V6(v6(ONE)));
    let message = Message::Error {
        cause: Cause::PacketTooBig { mtu: 1280 },
        quote: &inside,
    };
    let mut payload = vec![0; icmp::HEADER + inside.len()];
    icmp::emit(source, destination, &message, &mut payload);
    let error = back(&between(source, destination, ip::ICMPV6, &payload)).expect("a counterpart");
    let parsed = ip::parse(&error).expect("well-formed");
    assert_eq!(parsed.header.source, IpAddr::V4(DUMMY_V4));
    let quote = packet(ip::UDP, &udp_payload(b"question"));
    let expected = Message::Error {
        cause: Cause::PacketTooBig { mtu: 1260 },
        quote: &quote,
    };
    let read = icmp::parse(DUMMY_V4.into(), ONE.into(), parsed.payload);
    assert_eq!(read, Ok(expected));
}

fn make_fragment(packet: &mut [u8], offset: u16, more: bool) {
    packet[4..6].copy_from_slice(&[0xab, 0xcd]);
    let flags = (offset / 8) | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&flags.to_be_bytes());
    packet[10..12].fill(0);
    let sum = Sum::default().add(&packet[..ip::V4_HEADER]).finish();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn fragments_stay_fragments() {
    let whole = udp_payload(&[9; 64]);
    for (offset, payload, more) in [(0, &whole[..40], true), (40, &whole[40..], false)] {
        let mut sent = packet(ip::UDP, payload);
        make_fragment(&mut sent, offset, more);
        let inside = there(&sent).expect("it has a counterpart");
        let fragment = ip::parse(&inside).expect("well-formed").header.fragment;
        let expected = Fragment {
            identification: 0xabcd,
            offset,
            more,
        };
        assert_eq!(fragment, Some(expected));
        assert_eq!(back(&inside), Some(sent));
    }
}

#[test]
fn what_has_no_counterpart_is_left() {
    let sent = packet(ip::TCP, &[0; tcp::HEADER]);
    assert!(there(&sent).is_some());
    assert_eq!(back(&sent), None, "the wrong family");
    assert_eq!(
        to_v6(&sent, &Documentation, ROUTER, &mut [0; 50]),
        None,
        "no room"
    );
    assert_eq!(there(&packet(ip::TCP, &[0; 17])), None, "no checksum");
    assert_eq!(there(&packet(ip::ICMPV6, &[0; 8])), None);
    assert_eq!(there(&packet(44, &[0; 8])), None);
    assert_eq!(
        there(&packet(ip::ICMP, &[13, 0, 0, 0])),
        None,
        "a timestamp request"
    );
    let mut header = sent.clone();
    header[8] -= 1;
    assert_eq!(there(&header), None, "a wrong header checksum");
    let elsewhere = Ipv4Addr::new(198, 51, 100, 1).into();
    let out = between(ONE.into(), elsewhere, ip::TCP, &[0; tcp::HEADER]);
    assert_eq!(there(&out), None, "a foreign destination");
    let stranger = between(elsewhere, ONE.into(), ip::TCP, &[0; tcp::HEADER]);
    assert_eq!(there(&stranger), None, "a foreign source");
    // Options: nothing, and a strict source route by nobody.
    let mut routed = packet(ip::TCP, &[&[1, 137, 3, 4][..], &[0; tcp::HEADER]].concat());
    routed[0] = 0x46;
    make_fragment(&mut routed, 0, false);
    routed[10..12].fill(0);
    let sum = Sum::default().add(&routed[..24]).finish();
    routed[10..12].copy_from_slice(&sum.to_be_bytes());
    assert!(ip::v4_checksum_holds(&routed));
    assert_eq!(there(&routed), None, "a source route");
}

proptest! {
    #[test]
    fn segments_come_back_as_they_were(payload in proptest::collection::vec(any::<u8>(), 18..200)) {
        let sent = packet(ip::TCP, &payload);
        let inside = there(&sent).expect("it has a counterpart");
        prop_assert_eq!(inside.len(), sent.len() + 20);
        // Of the two sums that are zero an update returns the one (RFC 1624, 3).
        let arrived = back(&inside).expect("a counterpart");
        let sums = [&sent, &arrived].map(|bytes| [bytes[36], bytes[37]]);
        if sums[0] != [0xff, 0xff] && sums[0] != [0, 0] {
            prop_assert_eq!(arrived, sent);
        }
    }

    #[test]
    fn whatever_comes_is_a_packet_of_the_other_family_or_nothing(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        v4 in any::<bool>(),
        kind in prop::sample::select(vec![1, 6, 17, 44, 58]),
    ) {
        if v4 && bytes.len() >= 20 {
            let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
            bytes[..4].copy_from_slice(&[0x45, 0, length[0], length[1]]);
            bytes[9] = kind;
            bytes[12..16].copy_from_slice(&ONE.octets());
            bytes[16..20].copy_from_slice(&OTHER.octets());
            bytes[10..12].fill(0);
            let sum = Sum::default().add(&bytes[..20]).finish();
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else if bytes.len() >= 40 {
            let length = u16::try_from(bytes.len() - 40).expect("short").to_be_bytes();
            bytes[0] = 0x60;
            bytes[4..7].copy_from_slice(&[length[0], length[1], kind]);
            bytes[8..24].copy_from_slice(&v6(ONE).octets());
            bytes[24..40].copy_from_slice(&v6(OTHER).octets());
        }
        for made in [there(&bytes), back(&bytes)].into_iter().flatten() {
            prop_assert!(made.len() <= bytes.len() + GROWTH);
            let parsed = ip::parse(&made).expect("well-formed");
            prop_assert!(ip::v4_checksum_holds(&made));
            prop_assert_eq!(parsed.header.source.is_ipv4(), bytes[0] >> 4 == 6);
        }
    }
}
