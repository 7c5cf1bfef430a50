//! Stories about configuration files, whole and broken.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::endpoint::Host;

const SECRET: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a well-formed prefix")
}

#[test]
fn the_example_of_the_manual_is_read() {
    let text = format!(
        "# at home\r\n[interface]\r\nprivatekey={SECRET}   # mine\r\nADDRESS = 10.200.100.8/24\r\n\
         Address = fd00::8\r\nDNS = 10.200.100.1, corp.example\r\nMTU=1420\r\nListenPort = 0\r\n\
         FwMark = 0xca6c\r\nTable = off\r\nPostUp = ip rule add #x\r\nPostUp = true = 1\r\n\
         \r\n[Peer]\r\nPublicKey = {PUBLIC}\r\nPresharedKey = {SECRET}\r\n\
         AllowedIPs = 0.0.0.0/0, ::/0\r\nAllowedIPs = 10.1.2.3/8\r\nAllowedIPs =\r\n\
         Endpoint = demo.wireguard.com:51820\r\nPersistentKeepalive = 25\r\n\
         [Peer]\r\nPublicKey = {OTHER}\r\nPersistentKeepalive = off\r\nEndpoint = [2001:db8::1]:1"
    );
    let config = Config::parse(text.as_bytes()).expect("a well-formed file");
    let interface = &config.interface;
    assert_eq!(interface.private_key.to_base64(), SECRET);
    assert_eq!(
        interface.addresses,
        [prefix("10.200.100.8/24"), prefix("fd00::8/128")]
    );
    assert_eq!(
        interface.dns,
        ["10.200.100.1".parse::<IpAddr>().expect("an address")]
    );
    assert_eq!(interface.search, ["corp.example"]);
    assert_eq!(interface.mtu, Some(1420));
    assert_eq!(interface.listen_port, None);
    assert_eq!(interface.fw_mark, Some(0xca6c));
    let ignored: Vec<_> = config.ignored.iter().map(|i| (i.line, i.key)).collect();
    assert_eq!(ignored, [(10, "Table"), (11, "PostUp"), (12, "PostUp")]);
    let [first, second] = &config.peers[..] else {
        panic!("two peers");
    };
    assert_eq!(first.public_key.to_string(), PUBLIC);
    assert!(first.preshared_key.is_some());
    let allowed = [prefix("0.0.0.0/0"), prefix("::/0"), prefix("10.1.2.3/8")];
    assert_eq!(first.allowed_ips, allowed);
    assert_eq!(first.allowed_ips[2].masked(), prefix("10.0.0.0/8"));
    assert_eq!(first.persistent_keepalive, NonZeroU16::new(25));
    assert!(matches!(
        first.endpoint.as_ref().map(|endpoint| &endpoint.host),
        Some(Host::Name(_))
    ));
    assert_eq!(second.persistent_keepalive, None);
    assert!(second.allowed_ips.is_empty());
    let endpoint = second.endpoint.as_ref().and_then(Endpoint::socket_address);
    assert_eq!(
        endpoint,
        Some("[2001:db8::1]:1".parse().expect("an address"))
    );
}

/// The text behind `before` has the error `expected` in its last line.
#[track_caller]
fn refused(before: &str, text: &str, expected: &str) {
    let whole = format!("{before}{text}");
    let line = whole.lines().count().max(1);
    let error = Config::parse(whole.as_bytes()).expect_err(text);
    assert_eq!(
        error.to_string(),
        format!("line {line}: {expected}"),
        "{text}"
    );
}

fn interface() -> String {
    format!("[Interface]\nPrivateKey = {SECRET}\n")
}

fn peer_text() -> String {
    format!("{}[Peer]\nPublicKey = {PUBLIC}\n", interface())
}

#[test]
fn a_malformed_section_is_refused_with_line_and_remedy() {
    let no_interface = "no [Interface]: it holds the private key and must be there once";
    refused("", "", no_interface);
    refused("", "[Peer]", no_interface);
    refused("", "[Interface]\n", "[Interface] has no `PrivateKey`");
    let section = "unknown section: expected [Interface] or [Peer]";
    refused("", "[Interfaces]", section);
    refused("\n\n", "[Interface", section);
    let outside = "stands before the first section: write [Interface] or [Peer] above it";
    refused("", "\nMTU = 1420", &format!("`MTU` {outside}"));
    let twice = format!("{}[Peer]\nPublicKey = {PUBLIC}\n", peer_text());
    let error = Config::parse(twice.as_bytes()).expect_err("one peer twice");
    let expected = "line 5: the peer of line 3 has the same `PublicKey`: merge the two";
    assert_eq!(error.to_string(), expected);
    let error = Config::parse(b"[Interface]\n\xff\n").expect_err("not text");
    assert_eq!(error.to_string(), "line 2: the line is not UTF-8 text");
    let error = Config::parse(&vec![b'\n'; TEXT_MAX + 1]).expect_err("too long");
    assert_eq!(error.fault, Fault::TextTooLong);
}

#[test]
fn a_malformed_interface_is_refused_with_line_key_and_remedy() {
    let twice = "[Interface] stands a second time: merge it with the first";
    refused(&interface(), "[Interface]", twice);
    refused(&interface(), "hello", "expected `Key = value`");
    let keys = "[Interface] has PrivateKey, Address, DNS, MTU, ListenPort, FwMark";
    refused(
        &interface(),
        "Adress = 10.0.0.1",
        &format!("unknown key `Adress`: {keys}"),
    );
    let wrong = "`PublicKey` does not belong here but to [Peer]";
    refused(&interface(), "PublicKey = x", wrong);
    let repeated = "`PrivateKey` stands a second time in this section";
    refused(&interface(), "PrivateKey = x", repeated);
    let addresses = "`Address`: expected addresses such as 10.0.0.0/8 or fd00::1/64, separated by \
                     commas";
    for value in [
        "10.0.0.1/33",
        "10.0.0.1,,10.0.0.2",
        "::/129",
        "::/",
        "::/+1",
        "x",
    ] {
        refused(&interface(), &format!("Address = {value}"), addresses);
    }
    let dns = "`DNS`: expected addresses or domains, separated by commas";
    refused(&interface(), "DNS = a b", dns);
    for value in ["500", "+1420", "", "65536"] {
        let expected = "`MTU`: expected bytes from 576 to 65535";
        refused(&interface(), &format!("MTU = {value}"), expected);
    }
    let port = "`ListenPort`: expected a port from 0 to 65535";
    refused(&interface(), "ListenPort = 65536", port);
    for value in ["0x", "4294967296", "-1", ""] {
        let expected = "`FwMark`: expected a number up to 0xffffffff, or off";
        refused(&interface(), &format!("FwMark = {value}"), expected);
    }
}

#[test]
fn a_malformed_peer_is_refused_with_line_key_and_remedy() {
    refused(&interface(), "[Peer]", "[Peer] has no `PublicKey`");
    let wrong = "`Address` does not belong here but to [Interface]";
    refused(&peer_text(), "Address = 10.0.0.1", wrong);
    let keys = "[Peer] has PublicKey, PresharedKey, AllowedIPs, Endpoint, PersistentKeepalive";
    refused(
        &peer_text(),
        "Name = x",
        &format!("unknown key `Name`: {keys}"),
    );
    let key = "`PresharedKey`: expected 44 characters of base64 that end in `=`, as `wg genkey` \
               prints them";
    refused(&peer_text(), "PresharedKey = short", key);
    for value in ["example.com", "::1:51820"] {
        let expected = "`Endpoint`: expected HOST:PORT, with an IPv6 address in brackets";
        refused(&peer_text(), &format!("Endpoint = {value}"), expected);
    }
    let seconds = "`PersistentKeepalive`: expected seconds from 0 to 65535, or off";
    refused(&peer_text(), "PersistentKeepalive = 70000", seconds);
}

#[test]
fn no_error_quotes_a_secret() {
    for text in [
        SECRET.to_owned(),
        format!("[Interface]\n{SECRET}"),
        format!("[Interface]\nPrivateKey {SECRET}"),
        format!("[Interface]\nPrivateKey: {SECRET}"),
        format!("[Interface]\nPrivateKey = {SECRET}{SECRET}"),
        format!("[Interface]\n[{SECRET}]"),
        format!("[Interface]\nPrivateKey = {SECRET}\nAddress = {SECRET}"),
        "[Interface]\nabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqr=".to_owned(),
    ] {
        let error = Config::parse(text.as_bytes()).expect_err("malformed");
        for shown in [error.to_string(), format!("{error:?}")] {
            for part in ["yAnz5TF", "TF+lXX", "fBmk", "abcdefghij"] {
                assert!(!shown.contains(part), "{shown}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..512)) {
        let _result = Config::parse(&bytes);
    }

    #[test]
    fn any_lines_are_read_or_refused(lines in vec(line(), 0..24)) {
        let _result = Config::parse(lines.join("\n").as_bytes());
    }

    #[test]
    fn what_is_emitted_is_read_back(config in config()) {
        prop_assert_eq!(Config::parse(config.emit().as_bytes()), Ok(config));
    }
}

fn line() -> impl Strategy<Value = String> {
    let key = (0..Key::ALL.len()).prop_map(|index| Key::ALL[index].name());
    let value = prop_oneof![
        Just(SECRET.to_owned()),
        Just(PUBLIC.to_owned()),
        Just("10.0.0.1/8,::1".to_owned()),
        Just("[::1]:1".to_owned()),
        "[0-9a-z:./,\\[\\] -]{0,12}",
        "\\PC{0,8}",
    ];
    prop_oneof![
        1 => Just("[Interface]".to_owned()),
        2 => Just("[Peer]".to_owned()),
        9 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => "\\PC{0,24}",
    ]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    any::<IpAddr>().prop_flat_map(|address| {
        (0..=bits_max(address)).prop_map(move |bits| Prefix { address, bits })
    })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let text = prop_oneof![
        any::<IpAddr>().prop_map(|address| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        }),
        "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}",
    ];
    (text, 1..=u16::MAX)
        .prop_map(|(host, port)| format!("{host}:{port}").parse().expect("an endpoint"))
}

fn any_seconds() -> impl Strategy<Value = Option<NonZeroU16>> {
    any::<u16>().prop_map(NonZeroU16::new)
}

fn secret() -> impl Strategy<Value = SecretKey> {
    any::<[u8; 32]>().prop_map(SecretKey::new)
}

fn peer() -> impl Strategy<Value = Peer> {
    let fields = (
        any::<[u8; 32]>(),
        option::of(secret()),
        vec(any_prefix(), 0..4),
        option::of(any_endpoint()),
        any_seconds(),
    );
    fields.prop_map(
        |(key, preshared_key, allowed_ips, endpoint, persistent_keepalive)| Peer {
            public_key: PublicKey(key),
            preshared_key,
            allowed_ips,
            endpoint,
            persistent_keepalive,
        },
    )
}

fn config() -> impl Strategy<Value = Config> {
    let interface = (
        secret(),
        vec(any_prefix(), 0..4),
        vec(any::<IpAddr>(), 0..3),
        vec("[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", 0..2),
        option::of(MTU_MIN..=u16::MAX),
        any_seconds(),
        option::of(1..=u32::MAX),
    );
    let interface = interface.prop_map(
        |(private_key, addresses, dns, search, mtu, listen_port, fw_mark)| Interface {
            private_key,
            addresses,
            dns,
            search,
            mtu,
            listen_port,
            fw_mark,
        },
    );
    (interface, vec(peer(), 0..4)).prop_map(|(interface, peers)| Config {
        interface,
        peers,
        ignored: Vec::new(),
    })
}
