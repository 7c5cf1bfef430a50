//! Makes the corpus: for each target, inputs that reach its depth, from a fixed seed.

use crate::{capture, input::Generator, shell, wireguard::conversation};

/// Returns the inputs of `target`, at most 24.
#[must_use]
pub fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut generator = Generator(0x67_69_6e_6e_65_6c);
    match target {
        "wireguard_messages" => messages(&mut generator),
        "packet_ip" => vec![V4.to_vec(), V6.to_vec()],
        "packet_translate" => packets(),
        "packet_udp" => vec![
            b"\x01\x00\x35\x12\x34\x00\x0c\x00\x00data".to_vec(),
            b"\x00\x00\x35\x12\x34\x00\x08\x00\x00".to_vec(),
        ],
        "packet_tcp" => segments(),
        "packet_icmp" => errors(),
        "model_config" => texts(CONFIGURATIONS),
        "model_text" => texts(TEXTS),
        "model_token" => texts(TOKENS),
        "model_map" => texts(MAPS),
        "api_bodies" => texts(BODIES),
        "socks_messages" => socks(),
        "node_resolver" => questions(),
        "ssh_acceptance" => shell::certificates(),
        "ssh_agent" => vec![vec![0, 0, 0, 1, 6], vec![0, 0, 0, 1, 5], vec![255; 9]],
        "ssh_bytes" => vec![
            shell::beginning(),
            b"SSH-2.0-x\r\n\xff\xff\xff\xff".to_vec(),
        ],
        "ssh_logins" => shell::attempts(),
        "uapi_requests" => texts(REQUESTS),
        "packet_filter" => texts(FILTERS),
        "replay_files" => capture::recorded(),
        "packet_offload" => vec![
            V4.to_vec(),
            V6.to_vec(),
            [
                b"\x00\x00\x01".as_slice(),
                &[40, 9].repeat(20),
                &[3, 9, 40, 9],
            ]
            .concat(),
            [
                b"\x01\x00\x01".as_slice(),
                &[50, 9].repeat(20),
                &[50, 3, 50, 4],
            ]
            .concat(),
        ],
        // Programs for state machines: random ones, longer and longer.
        _ => (1..=16).map(|nth| generator.bytes(nth * 24)).collect(),
    }
}

/// Expressions, each before a zero and a packet of IPv4.
const FILTERS: &[&str] = &[
    "tcp port 5432\0\u{45}\0\0\u{14}\0\0\0\0\u{40}\u{6}\0\0\n\0\0\u{1}\n\0\0\u{2}",
    "src net 10.0.0.0/8 and not (udp or icmp)\0\u{45}\0\0\u{14}\0\0\0\0\u{40}\u{11}\0\0\
     \n\0\0\u{1}\n\0\0\u{2}",
    "host fd00::1 or portrange 1000-2000 or less 100\0",
    "ip6 and greater 40 and dst port 53",
    "((((not not tcp))))",
];

fn messages(generator: &mut Generator) -> Vec<Vec<u8>> {
    let mut inputs = Vec::new();
    for message in conversation(3) {
        let mut tampered = message.clone();
        let place = generator.below(tampered.len());
        tampered[place] ^= 1;
        inputs.extend([
            message.clone(),
            tampered,
            message[..message.len() - 1].to_vec(),
        ]);
    }
    inputs.truncate(24);
    inputs
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A family byte and a SYN with all its options, and data with three SACK blocks and timestamps.
fn segments() -> Vec<Vec<u8>> {
    let syn = [
        1, 0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0xa0, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5,
        0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let mut data = vec![
        0, 0x12, 0x34, 0, 80, 0, 0, 0, 2, 0, 0, 0, 9, 0xf0, 0x18, 1, 0, 0, 0, 0, 0,
    ];
    data.extend([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 4, 1, 1, 5, 26]);
    data.extend((0..24).map(|byte| byte / 4));
    data.extend(b"payload");
    vec![syn.to_vec(), data]
}

/// A family byte and errors that quote a packet, and echo requests.
fn errors() -> Vec<Vec<u8>> {
    let mut unreachable = vec![1, 3, 4, 0, 0, 0, 0, 5, 0x14];
    unreachable.extend(V4);
    let mut too_big = vec![0, 2, 0, 0, 0, 0, 0, 5, 0];
    too_big.extend(V6);
    let echo = b"\x01\x08\x00\x00\x00\x12\x34\x00\x01ping".to_vec();
    let echo_v6 = b"\x00\x80\x00\x00\x00\x12\x34\x00\x01ping".to_vec();
    vec![unreachable, too_big, echo, echo_v6]
}

/// A datagram of each family, and ICMP about the other one's.
fn packets() -> Vec<Vec<u8>> {
    let mut error_v4 = vec![
        0x45, 0, 0, 56, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1,
    ];
    error_v4.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    error_v4.extend(V4);
    let mut error_v6 = V6[..40].to_vec();
    error_v6[4..7].copy_from_slice(&[0, 72, 58]);
    error_v6.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    error_v6.extend(V6);
    let mut echo = error_v4[..20].to_vec();
    echo[3] = 32;
    echo.extend(b"\x08\x00\x00\x00\x12\x34\x00\x01ping");
    let mut fragment = V4.to_vec();
    fragment[6] = 0x20;
    vec![V4.to_vec(), V6.to_vec(), error_v4, error_v6, echo, fragment]
}

fn socks() -> Vec<Vec<u8>> {
    vec![
        b"\x05\x01\x00".to_vec(),
        b"\x05\x02\x00\x02".to_vec(),
        b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50".to_vec(),
        b"\x05\x01\x00\x03\x0bdb.internal\x15\x38".to_vec(),
        b"\x05\x03\x00\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x35".to_vec(),
        b"\x00\x00\x00\x01\x0a\x00\x00\x01\x00\x35query".to_vec(),
        b"\x00\x00\x01\x03\x03abc\x00\x35query".to_vec(),
    ]
}

/// Questions for a node, a service, a TXT record, with EDNS, and for a foreign name.
fn questions() -> Vec<Vec<u8>> {
    let head = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".as_slice();
    let edns = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01".as_slice();
    let option = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00".as_slice();
    let question = |name: &[u8], kind: u8| [name, b"\x08internal\x00\x00", &[kind, 0, 1]].concat();
    vec![
        [head, &question(b"\x02db", 28)].concat(),
        [head, &question(b"\x02DB\x04acme", 28)].concat(),
        [head, &question(b"\x03web\x03svc", 28)].concat(),
        [head, &question(b"\x07_whoami", 16)].concat(),
        [edns, &question(b"\x02db", 255), option].concat(),
        [head, &question(b"\x02db", 1)].concat(),
        [head, b"\x07example\x03com\x00\x00\x01\x00\x01"].concat(),
        [head, b"\xc0\x0c\x00\x01\x00\x01"].concat(),
    ]
}

const V4: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0x66, 0xcf, 10, 0, 0, 1, 10, 0, 0, 2, 0, 53, 0, 53, 0,
    8, 0, 0,
];

/// With a hop-by-hop and an atomic fragment header.
const V6: [u8; 64] = [
    0x60, 0, 0, 0, 0, 24, 0, 64, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfd, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 7, 0, 53, 0,
    53, 0, 8, 0, 0,
];

const CONFIGURATIONS: &[&str] = &[
    "[Interface]\nPrivateKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
     Address = 10.0.0.1/24, fd00::1/64\nDNS = 10.0.0.53, corp.example\nMTU = 1380\n\
     ListenPort = 51820\nTable = off\nPostUp = echo %i # a comment\n\n\
     [Peer]\nPublicKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n\
     PresharedKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n\
     AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = [2001:db8::1]:51820\nPersistentKeepalive = 25\n\n\
     [peer]\npublickey = BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=\n\
     allowedips = 10.1.0.0/16\nEndpoint = gw.example.com:1\n",
    "[Interface]\r\nPrivateKey=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\r\nFwMark = 0x1\r\n",
    "# nothing\n",
    "[Interface]\nPrivateKey = short\n",
    "[Peer]\nPublicKey\n[Strange]\n",
];

const TEXTS: &[&str] = &[
    "web-1",
    "gw.example.com:51820",
    "[2001:db8::1]:51820",
    "192.0.2.1:1",
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    "fd01:203:405::/48",
    "db.acme.internal.",
    "web.svc.internal",
    "_whoami.internal",
];

const TOKENS: &[&str] = &[
    "ginnel-join-aeaqcaibaeaqcaibaeaqcaibaeaqcaib",
    "ginnel-login-aeaqcaibaeaqcaibaeaqcaibaeaqcaib-\
     aibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaiba",
    " ginnel-gateway-AEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIB\n",
    "ginnel-join-",
];

pub(crate) const MAPS: &[&str] = &[
    r#"{"serial":7,"own":{"id":1,"name":"db","role":"client"},"orgs":{"1":{"name":"acme",
       "prefix":"fd01:203:405::/48","gateway":{"id":9,"name":"gw",
       "public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","endpoint":"gw.example.com:1"},
       "nodes":{"1":{"name":"db","public_key":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
       "address":"fd01:203:405:1::1"}},
       "services":{"web":[{"node":1,"port":8080,"target":"127.0.0.1:80"}]}}}}"#,
    r#"{"serial":0,"own":{"id":9,"name":"gw","role":"gateway"},"orgs":{}}"#,
];

const BODIES: &[&str] = &[
    r#"{"name":"acme"}"#,
    r#"{"name":"db","public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}"#,
    r#"{"items":[],"next":null}"#,
    r#"{"after":7}"#,
    r#"{"code":"not_found","message":"no such node"}"#,
    r#"{"kind":"join","org":"acme","expires_in_seconds":3600,"uses_max":1}"#,
    r#"{"name":"web","node":"db","port":8080,"target":"127.0.0.1:80"}"#,
];

const REQUESTS: &[&str] = &[
    "get=1\n\n",
    "set=1\nprivate_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
     fwmark=0\nlisten_port=12912\nreplace_peers=true\n\
     public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
     preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52\n\
     replace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nallowed_ip=-10.0.0.0/8\n\
     endpoint=[abcd:23::33%2]:51820\npersistent_keepalive_interval=25\n\
     public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n\
     update_only=true\nremove=true\nprotocol_version=1\n\n",
    "set=1\nlisten_port=99999\n\n",
];
