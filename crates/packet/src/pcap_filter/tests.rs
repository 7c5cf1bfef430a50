//! Which expressions want which packets, and what is said about those that are none.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::udp;

/// A UDP datagram, or an IP packet of another protocol with the same first bytes.
fn packet(source: &str, destination: &str, protocol: u8, ports: (u16, u16)) -> Vec<u8> {
    let [source, destination] = [source, destination].map(|a| a.parse::<IpAddr>().unwrap());
    let header = ip::Header {
        source,
        destination,
        next_header: protocol,
        hop_limit: 64,
        traffic_class: 0,
        fragment: None,
    };
    let datagram = udp::Datagram {
        source_port: ports.0,
        destination_port: ports.1,
        payload: b"payload",
    };
    let mut bytes = vec![0; 100];
    let length = ip::emit_header(&header, udp::HEADER + 7, &mut bytes);
    let end = length + udp::emit(source, destination, &datagram, &mut bytes[length..]);
    bytes.truncate(end);
    bytes
}

/// Sees which of five packets an expression wants, by their letters.
#[track_caller]
fn check(text: &str, wanted: &str) {
    let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(filter.text(), text);
    let packets = [
        ('a', packet("10.0.0.1", "10.0.0.2", ip::TCP, (40_000, 22))),
        ('b', packet("10.0.0.2", "10.0.0.1", ip::TCP, (22, 40_000))),
        ('c', packet("10.0.0.1", "192.0.2.1", ip::UDP, (5_000, 53))),
        ('d', packet("fd00::1", "fd00::2", ip::UDP, (53, 5_000))),
        ('e', packet("10.0.0.1", "10.0.0.1", ip::ICMP, (22, 22))),
        ('f', packet("fd00::1", "fd01::2", ip::ICMPV6, (22, 22))),
    ];
    let found: String = packets
        .iter()
        .filter(|(_, packet)| filter.matches(packet, packet.len()))
        .map(|(letter, _)| letter)
        .collect();
    assert_eq!(found, wanted, "{text}");
}

#[test]
fn primitives_look_at_what_they_name() {
    check("ip", "abce");
    check("ip6", "df");
    check("tcp", "ab");
    check("udp", "cd");
    check("icmp", "e");
    check("icmp6", "f");
    check("host 10.0.0.1", "abce");
    check("10.0.0.2", "ab");
    check("src host 10.0.0.1", "ace");
    check("dst 10.0.0.1", "be");
    check("src or dst host 10.0.0.2", "ab");
    check("src and dst host 10.0.0.1", "e");
    check("ip6 host fd00::1", "df");
    check("net 10.0.0.0/8", "abce");
    check("dst net 192.0.2.0/24", "c");
    check("net 0.0.0.0/0", "abce");
    check("net ::/0", "df");
    check("ip6 dst net fd00::/16", "d");
    check("net 10.0.0.2", "ab");
    check("port 22", "ab");
    check("udp port 22", "");
    check("tcp src port 22", "b");
    check("udp dst port 53", "c");
    check("portrange 50-60", "cd");
    check("src portrange 4999-40000", "ac");
    check("less 35", "abce");
    check("greater 36", "df");
}

#[test]
fn operators_have_one_precedence_from_the_left_and_not_binds_closest() {
    check("tcp or udp", "abcd");
    check("tcp || udp && ip6", "d");
    check("tcp or (udp and ip6)", "abd");
    check("tcp or ( udp&& ip6)", "abd");
    check("not tcp", "cdef");
    check("!tcp and ip", "ce");
    check("not (tcp or udp)", "ef");
    check("not not tcp", "ab");
    check("!(!(tcp)) or icmp", "abe");
    check("host 10.0.0.1 and not port 22 and not icmp", "c");
}

#[test]
fn a_value_alone_repeats_the_qualifiers_before_it() {
    check("port 22 or 53", "abcd");
    check("udp src port 22 or 5000", "c");
    check("dst host 10.0.0.2 or 192.0.2.1", "ac");
    check("port 22 or host 192.0.2.1 or 10.0.0.2", "abc");
}

#[test]
fn a_fragment_but_the_first_has_no_ports_and_no_packet_has_a_length_only() {
    let mut bytes = packet("10.0.0.1", "10.0.0.2", ip::UDP, (53, 53));
    let (port, udp) = (
        Filter::parse("port 53").unwrap(),
        Filter::parse("udp").unwrap(),
    );
    assert!(port.matches(&bytes, 35));
    bytes[7] = 1;
    assert!(!port.matches(&bytes, 35));
    assert!(udp.matches(&bytes, 35));
    let neither = Filter::parse("not (ip or ip6) and greater 9").unwrap();
    assert!(neither.matches(b"nothing", 10));
    assert!(!neither.matches(b"nothing", 8));
}

#[track_caller]
fn refuse(text: &str, position: usize, word: &str, fault: Fault) {
    let error = Filter::parse(text).unwrap_err();
    let word = word.to_owned();
    assert_eq!(
        error,
        Malformed {
            position,
            word,
            fault
        },
        "{text}"
    );
    assert!(!error.to_string().is_empty());
}

#[test]
fn what_is_no_expression_is_refused_at_the_word_that_is_wrong() {
    refuse("", 0, "", Fault::NoPrimitive);
    refuse("tcp and", 7, "", Fault::NoPrimitive);
    refuse("and tcp", 0, "and", Fault::NoPrimitive);
    refuse("tcp[13] & 2 != 0", 0, "tcp[13]", Fault::NoPrimitive);
    refuse("host", 4, "", Fault::NoPrimitive);
    refuse("host db.internal", 5, "db.internal", Fault::NoAddress);
    refuse("ip host fd00::1", 8, "fd00::1", Fault::NoAddress);
    refuse("net 10.0.0.0/33", 4, "10.0.0.0/33", Fault::NoPrefix);
    refuse("net 10", 4, "10", Fault::NoPrefix);
    refuse("net 10.0.0.1/8", 4, "10.0.0.1/8", Fault::HostBits);
    refuse("port ssh", 5, "ssh", Fault::NoPort);
    refuse("port 1-2", 5, "1-2", Fault::NoPort);
    refuse("portrange 2-1", 10, "2-1", Fault::NoPort);
    refuse("port 65536", 5, "65536", Fault::NoPort);
    refuse("less x", 5, "x", Fault::NoLength);
    refuse("tcp host 10.0.0.1", 9, "10.0.0.1", Fault::Qualifier);
    refuse("ip port 22", 8, "22", Fault::Qualifier);
    refuse("(tcp", 4, "", Fault::NotClosed);
    refuse("tcp)", 3, ")", Fault::Trailing);
    refuse("tcp port 22 udp", 12, "udp", Fault::Trailing);
    let long = "tcp".to_owned() + &" ".repeat(TEXT_MAX);
    refuse(&long, TEXT_MAX, "", Fault::TooLong);
    let deep = "(".repeat(DEPTH_MAX + 1);
    refuse(&deep, DEPTH_MAX, "(", Fault::TooDeep);
}

#[test]
fn the_deepest_expression_is_still_evaluated() {
    let open = "tcp or (".repeat(DEPTH_MAX);
    check(&format!("{open}icmp{}", ")".repeat(DEPTH_MAX)), "abe");
    check(&format!("{}tcp", "!".repeat(DEPTH_MAX)), "ab");
}

/// A tree, its text and what it says about a packet.
#[derive(Clone, Debug)]
enum Tree {
    Leaf(&'static str, bool),
    Not(Box<Self>),
    Two(Box<Self>, bool, Box<Self>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Self::Leaf(text, _) => (*text).to_owned(),
            Self::Not(tree) => format!("not ({})", tree.text()),
            Self::Two(one, and, other) => {
                let word = if *and { "and" } else { "or" };
                format!("({} {word} {})", one.text(), other.text())
            }
        }
    }

    fn value(&self) -> bool {
        match self {
            Self::Leaf(_, value) => *value,
            Self::Not(tree) => !tree.value(),
            Self::Two(one, true, other) => one.value() && other.value(),
            Self::Two(one, false, other) => one.value() || other.value(),
        }
    }
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        Just(Tree::Leaf("tcp", true)),
        Just(Tree::Leaf("udp port 22", false)),
        Just(Tree::Leaf("host 10.0.0.2", true)),
    ];
    leaf.prop_recursive(6, 40, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            (inner.clone(), any::<bool>(), inner).prop_map(|(one, and, other)| Tree::Two(
                Box::new(one),
                and,
                Box::new(other)
            )),
        ]
    })
}

proptest! {
    #[test]
    fn an_expression_says_what_its_tree_says(tree in trees()) {
        let packet = packet("10.0.0.1", "10.0.0.2", ip::TCP, (1, 22));
        let filter = Filter::parse(&tree.text()).unwrap();
        prop_assert_eq!(filter.matches(&packet, packet.len()), tree.value());
    }

    #[test]
    fn any_text_is_an_expression_or_refused_and_any_bytes_are_compared(
        words in prop::collection::vec(
            prop_oneof![
                Just("("), Just(")"), Just("!"), Just("and"), Just("or"), Just("src"),
                Just("dst"), Just("tcp"), Just("ip6"), Just("host"), Just("net"), Just("port"),
                Just("portrange"), Just("less"), Just("10.0.0.0/8"), Just("::1"), Just("22"),
                Just("1-9"), Just("ß"),
            ],
            0..12,
        ),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let text = words.join(" ");
        if let Ok(filter) = Filter::parse(&text) {
            let inverse = Filter::parse(&format!("not ({text})")).unwrap();
            let [one, other] = [filter, inverse].map(|f| f.matches(&bytes, bytes.len()));
            prop_assert_ne!(one, other);
        }
    }
}
