//! The userspace API as text: what is taken, what is refused, what is said.

use std::collections::BTreeSet;

use super::*;

const KEY_A: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

fn set(lines: &str) -> Result<Settings, Errno> {
    match parse(format!("set=1\n{lines}\n").as_bytes())? {
        Some(Request::Set(settings)) => Ok(*settings),
        other => panic!("not a set: {other:?}"),
    }
}

#[track_caller]
fn check_refused(lines: &str, expected: Errno) {
    assert_eq!(set(lines).map(drop), Err(expected), "{lines}");
}

#[test]
fn a_whole_configuration_is_taken_as_written() {
    let settings = set(&format!(
        "private_key={KEY_A}\nlisten_port=12912\nfwmark=7\nreplace_peers=true\n\
         public_key={KEY_A}\nupdate_only=true\npreshared_key={KEY_A}\n\
         endpoint=[abcd:23::33%2]:51820\npersistent_keepalive_interval=65535\n\
         replace_allowed_ips=true\nallowed_ip=192.168.4.4/24\nallowed_ip=-fd00::/8\n\
         protocol_version=1\npublic_key={KEY_A}\nremove=true\n"
    ))
    .unwrap();
    assert!(settings.private_key.is_some_and(|key| key.is_some()));
    assert_eq!(settings.listen_port, Some(12912));
    assert_eq!(settings.fwmark, Some(7));
    assert!(settings.replace_peers);
    let [first, second] = &settings.peers[..] else {
        panic!("two peers")
    };
    assert!(first.update_only && first.replace_allowed_ips && !first.remove);
    assert!(first.preshared_key.is_some());
    let endpoint = first.endpoint.as_ref().unwrap();
    assert_eq!(endpoint.address.to_string(), "[abcd:23::33%2]:51820");
    assert_eq!(first.persistent_keepalive, Some(NonZeroU16::new(65535)));
    let v4 = Prefix::new("192.168.4.0".parse().unwrap(), 24).unwrap();
    let v6 = Prefix::new("fd00::".parse().unwrap(), 8).unwrap();
    assert_eq!(
        first.allowed_ips,
        [AllowedIp::Add(v4), AllowedIp::Remove(v6)]
    );
    assert!(second.remove);
}

#[test]
fn zeros_and_nothing_switch_off() {
    let zeros = "0".repeat(64);
    let settings = set(&format!("private_key={zeros}\nfwmark=\nlisten_port=0\n")).unwrap();
    assert!(settings.private_key.is_some_and(|key| key.is_none()));
    assert_eq!(settings.fwmark, Some(0));
    let settings = set(&format!(
        "public_key={KEY_A}\npersistent_keepalive_interval=0\n"
    ));
    assert_eq!(settings.unwrap().peers[0].persistent_keepalive, Some(None));
}

#[test]
fn what_makes_no_sense_is_invalid_and_what_is_no_line_breaks_the_protocol() {
    for lines in [
        "listen_port=65536",
        "listen_port=x",
        "listen_port=",
        "listen_port=+5",
        "listen_port=-1",
        "fwmark=4294967296",
        "replace_peers=false",
        "private_key=00",
        "foo=1",
        "allowed_ip=10.0.0.0/8",
    ] {
        check_refused(&format!("{lines}\n"), Errno::INVALID);
    }
    let long = "0".repeat(65);
    let odd = "0".repeat(63) + "g";
    let keys = [
        format!("public_key={long}\n"),
        format!("public_key={odd}\n"),
    ];
    for lines in keys {
        check_refused(&lines, Errno::INVALID);
    }
    for line in [
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=--10.0.0.0/8",
        "endpoint=10.0.0.1",
        "endpoint=host:1",
        "endpoint=[fe80::1%]:1",
        "endpoint=[fe80::1%eth0]:65536",
        "persistent_keepalive_interval=65536",
        "remove=1",
        "protocol_version=2",
        "listen_port=1",
    ] {
        check_refused(&format!("public_key={KEY_A}\n{line}\n"), Errno::INVALID);
    }
    check_refused("listen_port\n", Errno::PROTOCOL);
    assert_eq!(parse(b"set=1\n\xff=1\n\n").map(drop), Err(Errno::PROTOCOL));
    assert_eq!(parse(b"get=1\nx\n\n").map(drop), Err(Errno::PROTOCOL));
    assert_eq!(parse(b"get=2\n\n"), Ok(None));
    assert_eq!(parse(b""), Ok(None));
}

#[test]
fn a_link_local_endpoint_names_its_interface() {
    let endpoint: Endpoint = "[fe80::1%eth0]:51820".parse().unwrap();
    assert_eq!(endpoint.zone.as_deref(), Some("eth0"));
    assert_eq!(endpoint.address, "[fe80::1]:51820".parse().unwrap());
}

#[test]
fn a_request_ends_at_the_first_empty_line_however_it_is_cut() {
    let bytes = b"get=1\n\nset=1\nlisten_port=5\n\n";
    assert_eq!(frame(bytes, 0), Framing::Whole(7));
    for cut in 0..7 {
        assert_eq!(frame(&bytes[..cut], 0), Framing::Partial);
        assert_eq!(frame(bytes, cut), Framing::Whole(7), "seen {cut}");
    }
    assert_eq!(frame(&vec![b'x'; REQUEST_MAX], 0), Framing::TooLong);
}

#[test]
fn no_bytes_make_the_parser_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let seed = format!(
        "set=1\nprivate_key={KEY_A}\npublic_key={KEY_A}\nendpoint=[fe80::1%e]:1\n\
         allowed_ip=-10.0.0.0/8\n\n"
    );
    for _ in 0..20_000 {
        let mut bytes = seed.clone().into_bytes();
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let place = usize::try_from(state % u64::try_from(bytes.len()).unwrap()).unwrap();
            bytes[place] = state.to_le_bytes()[7];
        }
        if let Framing::Whole(length) = frame(&bytes, 0) {
            let _parsed = parse(&bytes[..length]);
        }
    }
}

#[test]
fn the_status_says_what_wg_reads() {
    let secret = StaticSecret::new([7; KEY]);
    let device = DeviceStatus {
        private_key: Some(&secret),
        listen_port: 51820,
        fwmark: 0,
    };
    let mut world = wireguard::Device::new(
        os::clock::Clock::start().now(),
        UNIX_EPOCH,
        Box::new(crate::random::OsRandom),
    );
    let now = os::clock::Clock::start().now();
    let id = world.add_peer(now, PublicKey([0x12; KEY])).unwrap();
    world.set_endpoint(id, Some("[::1]:7".parse().unwrap()));
    let allowed: BTreeSet<_> = [Prefix::new("10.0.0.0".parse().unwrap(), 8).unwrap()].into();
    let mut status = world.status(id).unwrap();
    status.allowed_ips = &allowed;
    status.last_handshake_wall = Some(UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5));
    let text = emit_status(&device, std::iter::once(status));
    let mut key = [7; KEY];
    (key[0], key[31]) = (0, 0x47);
    let expected = format!(
        "private_key={}\nlisten_port=51820\npublic_key={}\npreshared_key={}\n\
         protocol_version=1\nendpoint=[::1]:7\nlast_handshake_time_sec=1700000000\n\
         last_handshake_time_nsec=5\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n\
         allowed_ip=10.0.0.0/8\nerrno=0\n\n",
        Hex(&key),
        "12".repeat(32),
        "0".repeat(64)
    );
    assert_eq!(*text, expected);
}
