//! The userspace API beside wireguard-go's: each key, each error number, and what is shown after.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use super::world::{Program, SHORT, Tunnel, World, socket_path};

/// Sends a request and returns the whole answer; nothing when the connection is closed.
fn ask(tunnel: &Tunnel, request: &[u8]) -> String {
    let mut client = UnixStream::connect(socket_path(&tunnel.interface)).expect("it listens");
    client.set_read_timeout(Some(SHORT)).expect("a bound");
    client.write_all(request).expect("it reads");
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.ends_with(b"\n\n") {
        match client.read(&mut chunk).expect("it answers or closes") {
            0 => break,
            length => answer.extend_from_slice(&chunk[..length]),
        }
    }
    String::from_utf8(answer).expect("UTF-8")
}

/// What `get=1` shows: the device's lines and each peer's, in an order of their own. Left out are
/// the port where it is random, and what a handshake that is under way may have sent.
fn shown(tunnel: &Tunnel) -> BTreeSet<BTreeSet<String>> {
    let answer = ask(tunnel, b"get=1\n\n");
    assert!(answer.ends_with("errno=0\n\n"), "{answer}");
    let mut sections = vec![BTreeSet::new()];
    let lines = answer.trim_end().lines();
    for line in lines.filter(|line| *line != "errno=0") {
        let (key, value) = line.split_once('=').expect("key=value");
        let line = match key {
            "tx_bytes" => "tx_bytes".to_owned(),
            "listen_port" if value != "51830" => "listen_port".to_owned(),
            _ => line.to_owned(),
        };
        if key == "public_key" {
            sections.push(BTreeSet::new());
        }
        sections.last_mut().expect("the device's").insert(line);
    }
    sections.into_iter().collect()
}

/// From which each request starts.
fn reset(tunnel: &Tunnel) {
    let request = format!(
        "set=1\nprivate_key={A}\nlisten_port=51830\nfwmark=0\nreplace_peers=true\npublic_key={P}\n\
         allowed_ip=10.1.0.0/16\nallowed_ip=fd01::/16\n\n"
    );
    assert_eq!(ask(tunnel, request.as_bytes()), "errno=0\n\n");
}

/// Asks each for the same; where they differ on purpose, `ours` says what we answer.
fn compare(ours: &Tunnel, theirs: Option<&Tunnel>, request: &[u8], expected: &str) {
    reset(ours);
    let what = String::from_utf8_lossy(request);
    let answer = ask(ours, request);
    assert_eq!(answer, expected, "{what}");
    let Some(theirs) = theirs else { return };
    reset(theirs);
    assert_eq!(ask(theirs, request), expected, "wireguard-go: {what}");
    assert_eq!(shown(ours), shown(theirs), "{what}");
}

fn both() -> Option<(World, Tunnel, Option<Tunnel>)> {
    let world = World::new()?;
    let ours = world.tunnel(0, Program::Ginnel)?;
    let theirs = world.tunnel(1, Program::WireguardGo);
    Some((world, ours, theirs))
}

#[test]
fn every_key_and_every_error_is_as_with_wireguard_go() {
    let Some((_world, ours, theirs)) = both() else {
        return;
    };
    let check = |lines: &str, expected| {
        let lines = lines
            .replace("{A}", A)
            .replace("{B}", B)
            .replace("{P}", P)
            .replace("{UPPER}", &B.to_uppercase())
            .replace("{zeros}", &"0".repeat(64));
        let request = format!("set=1\n{}\n\n", lines.replace('|', "\n"));
        compare(&ours, theirs.as_ref(), request.as_bytes(), expected);
    };
    for (device, peer, expected) in [
        (DEVICE_DONE, PEER_DONE, DONE),
        (DEVICE_INVALID, PEER_INVALID, INVALID),
    ] {
        device.iter().for_each(|lines| check(lines, expected));
        for lines in peer {
            check(&format!("public_key={P}|{lines}"), expected);
        }
    }
    for (request, expected) in [
        (&b"set=1\n\n"[..], DONE),
        (b"set=1\n\xff=1\n\n", INVALID),
        (b"set=1\nlisten_port\n\n", "errno=-71\n\n"),
        // What is no operation ends the connection, at once.
        (b"get=2\n\n", ""),
        (b"set=2\n\n", ""),
        (b"foo=1\n", ""),
        (b"set=1\r\n", ""),
        (b"\n", ""),
        (b"\n\n", ""),
    ] {
        compare(&ours, theirs.as_ref(), request, expected);
    }
}

#[test]
fn a_port_in_use_has_the_number_that_wg_explains() {
    let Some((world, ours, theirs)) = both() else {
        return;
    };
    for address in ["0.0.0.0:7777", "[::]:7777"] {
        let taken = |number: usize| {
            let space = &world.spaces[number];
            space.enter(|| std::net::UdpSocket::bind(address).expect("a free port"))
        };
        let _taken = [taken(0), taken(1)];
        let request = b"set=1\nlisten_port=7777\n\n";
        reset(&ours);
        assert_eq!(ask(&ours, request), "errno=-98\n\n");
        assert!(ask(&ours, b"get=1\n\n").contains("listen_port=51830\n"));
        if let Some(theirs) = &theirs {
            reset(theirs);
            assert_eq!(ask(theirs, request), "errno=-98\n\n");
        }
    }
}

#[test]
fn where_the_standard_says_more_than_wireguard_go_does_the_standard_is_followed() {
    let Some((_world, ours, _)) = both() else {
        return;
    };
    let check = |lines: &str, shows: &str| {
        reset(&ours);
        let request = format!("set=1\n{}\n\n", lines.replace('|', "\n"));
        assert_eq!(ask(&ours, request.as_bytes()), "errno=0\n\n", "{lines}");
        let shown = ask(&ours, b"get=1\n\n");
        assert_eq!(shown.contains(shows), !lines.contains("=-"), "{shown}");
    };
    // An empty mark removes it; an interface is kept; a minus takes an allowed IP away.
    check("fwmark=", "listen_port=51830\npublic_key");
    check(
        &format!("public_key={P}|endpoint=[fe80::1%lo]:5"),
        "endpoint=[fe80::1%1]:5\n",
    );
    check(
        &format!("public_key={P}|allowed_ip=-10.1.0.0/16"),
        "allowed_ip=10.1.0.0/16",
    );
    // What stands before an error is not applied, because a request is parsed whole first.
    reset(&ours);
    assert_eq!(ask(&ours, b"set=1\nfwmark=7\nbogus=1\n\n"), "errno=-22\n\n");
    assert!(!ask(&ours, b"get=1\n\n").contains("fwmark"));
}

const A: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
const B: &str = "58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376";
const P: &str = "003ed5d73b55806c30de3f8a7bdab38af13539220533055e635690b8b87ad641";
const DONE: &str = "errno=0\n\n";
const INVALID: &str = "errno=-22\n\n";
/// Lines of the device and of several peers that are taken; `|` is a line's end.
const DEVICE_DONE: &[&str] = &[
    "private_key={B}",
    "private_key={zeros}",
    "private_key={A}|private_key={B}",
    "listen_port=51831",
    "listen_port=0051831",
    "listen_port=0",
    "listen_port=53",
    "fwmark=77",
    "fwmark=0",
    "fwmark=4294967295",
    "replace_peers=true",
    "public_key={P}",
    "public_key={P}|public_key={P}",
    "public_key={zeros}",
    "public_key={UPPER}",
    "public_key={B}|update_only=true|allowed_ip=10.9.0.0/16",
    "public_key={B}|remove=true",
    "public_key={B}|remove=true|public_key={B}",
    "public_key={B}|public_key={P}|remove=true",
    "replace_peers=true|public_key={B}|allowed_ip=10.4.0.0/16",
    // An allowed IP goes to who gets it last.
    "public_key={B}|allowed_ip=10.1.0.0/16",
];
/// Lines of the device that are refused.
const DEVICE_INVALID: &[&str] = &[
    "private_key=",
    "private_key=00",
    "private_key={A}00",
    "listen_port=65536",
    "listen_port=-1",
    "listen_port=+5",
    "listen_port=",
    "listen_port=0x10",
    "listen_port= 5",
    "fwmark=0x77",
    "fwmark=4294967296",
    "fwmark=-1",
    "fwmark=off",
    "replace_peers=false",
    "replace_peers=1",
    "replace_peers=",
    "public_key=",
    "public_key=zz",
    "errno=0",
    "bogus=1",
    "=1",
    "preshared_key={A}",
    "allowed_ip=10.0.0.0/8",
    "endpoint=10.0.0.1:5",
];
/// Lines of one peer that are taken.
const PEER_DONE: &[&str] = &[
    "preshared_key={B}",
    "preshared_key={zeros}",
    "endpoint=10.0.0.1:5",
    "endpoint=10.0.0.1:0",
    "endpoint=[fd00::1]:65535",
    "endpoint=[::ffff:10.0.0.9]:7",
    "persistent_keepalive_interval=25",
    "persistent_keepalive_interval=65535",
    "persistent_keepalive_interval=0",
    "allowed_ip=10.1.2.3/16",
    "allowed_ip=fd00::/8|allowed_ip=0.0.0.0/0|allowed_ip=::/0",
    "replace_allowed_ips=true",
    "allowed_ip=10.2.0.0/16|replace_allowed_ips=true|allowed_ip=10.3.0.0/16",
    "protocol_version=1",
    "update_only=true|persistent_keepalive_interval=7",
    "remove=true|allowed_ip=10.9.0.0/16",
];
/// Lines of one peer that are refused.
const PEER_INVALID: &[&str] = &[
    "preshared_key=",
    "preshared_key=11",
    "endpoint=",
    "endpoint=10.0.0.1",
    "endpoint=10.0.0.1:65536",
    "endpoint=host:1",
    "endpoint=[10.0.0.9]:7",
    "endpoint=fd00::1:7",
    "persistent_keepalive_interval=65536",
    "persistent_keepalive_interval=-1",
    "persistent_keepalive_interval=off",
    "persistent_keepalive_interval=",
    "allowed_ip=",
    "allowed_ip=/8",
    "allowed_ip=10.1.0.0",
    "allowed_ip=10.1.0.0/",
    "allowed_ip=10.1.0.0/33",
    "allowed_ip=10.1.0.0/-1",
    "allowed_ip=fd00::/129",
    "replace_allowed_ips=false",
    "protocol_version=2",
    "protocol_version=",
    "update_only=false",
    "remove=false",
    "bogus=1",
    "listen_port=5",
    "fwmark=5",
    "replace_peers=true",
    "tx_bytes=5",
    "last_handshake_time_sec=5",
    "private_key={A}",
];
