//! Paths that carry less than the tunnel could, in the topology of `attachment`: what is found,
//! what senders are told, and what TCP makes of it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::Value;

use super::{
    attachment::{At, Network, Running},
    world::{LONG, SHORT, Space, find, lacks, text, within},
};

/// What the path of alpha carries from now on: IP packets of so many bytes. What is longer
/// vanishes, in one piece and in several, and nobody is told.
fn narrow(network: &Network, bytes: u16) {
    // A UDP length has no IPv4 header.
    let longer = format!("udp length > {}", bytes - 20);
    for (at, from) in [(At::Server, "10.99.0.1"), (At::Alpha, "10.99.0.2")] {
        let space = network.space(at);
        // What the socket sends at once passes the link one by one, as on a real one.
        space.ip(&["link", "set", "dev", &space.link, "gso_max_segs", "1"]);
        for line in [
            "add table ip narrow".to_owned(),
            "add chain ip narrow in { type filter hook input priority 0 ; }".to_owned(),
            format!("add rule ip narrow in ip saddr {from} {longer} drop"),
        ] {
            let output = space.command("nft").arg(&line).output().expect("nft runs");
            assert!(output.status.success(), "{line}: {}", text(&output));
        }
    }
}

fn network() -> Option<Network> {
    if find("nft").is_none() || find("ss").is_none() {
        lacks("NETNS", "`nft` or `ss` is not installed");
        return None;
    }
    Network::new()
}

/// Both nodes with interfaces.
fn interfaces(network: &Network) -> [Running; 2] {
    [At::Alpha, At::Beta].map(|at| network.start(at, &["up"], "ready on ginnel0"))
}

fn found(network: &Network, at: At) -> Value {
    let status = network.run(at, &["status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["node"]["peers"][0]["path_mtu_bytes"].clone()
}

#[track_caller]
fn finds(network: &Network, at: At, bytes: u16) {
    within(LONG, "the path MTU is found", || {
        found(network, at) == bytes
    });
}

/// Pings with packets of so many bytes that nobody may fragment.
fn ping(from: &Space, to: IpAddr, bytes: u16) -> String {
    let mut ping = from.command("ping");
    // IPv6 and ICMPv6 have 48 bytes.
    let data = (bytes - 48).to_string();
    ping.args(["-n", "-M", "do", "-c", "2", "-i", "0.2", "-W", "2", "-s"]);
    ping.args([&data, &to.to_string()]);
    text(&ping.output().expect("ping runs"))
}

#[track_caller]
fn passes(from: &Space, to: IpAddr, bytes: u16) {
    let said = ping(from, to, bytes);
    assert!(said.contains(" 2 received"), "{said}");
}

/// The route that the kernel has for an address, with what it believes about its MTU.
fn route(space: &Space, to: IpAddr) -> String {
    let mut ip = space.command("ip");
    ip.args(["-6", "route", "get", &to.to_string()]);
    text(&ip.output().expect("ip runs"))
}

/// The segment size that both kernels have agreed on, without the timestamps of each segment.
fn agreed(from: &Space, to: &Space, address: IpAddr) -> u16 {
    let listener = to.enter(|| TcpListener::bind((address, 0)));
    let listener = listener.expect("inner address is there");
    let address = listener.local_addr().expect("bound");
    let stream = from.enter(|| TcpStream::connect_timeout(&address, LONG));
    let mut stream = stream.expect("the tunnel carries TCP");
    let (mut accepted, _) = listener.accept().expect("a connection");
    stream.write_all(b"hello").expect("it leaves");
    accepted.read_exact(&mut [0; 5]).expect("it arrives");
    let mut ss = from.command("ss");
    ss.args([
        "-t",
        "-i",
        "-n",
        "-H",
        "dst",
        &format!("[{}]", address.ip()),
    ]);
    let shown = text(&ss.output().expect("ss runs"));
    let mss = shown
        .split_whitespace()
        .find_map(|word| word.strip_prefix("mss:"));
    mss.expect(&shown).parse().expect("a number")
}

/// What IPv6, TCP and timestamps take.
const HEADERS: u16 = 40 + 20 + 12;

#[test]
fn an_ordinary_path_carries_1420_bytes_inside() {
    let Some(network) = network() else {
        return;
    };
    let _up = interfaces(&network);
    for at in [At::Alpha, At::Beta] {
        within(SHORT, "the path MTU is found", || {
            found(&network, at) == 1420
        });
    }
    let (alpha, beta) = (network.address("alpha"), network.address("beta"));
    for (from, to, address) in [(At::Alpha, At::Beta, beta), (At::Beta, At::Alpha, alpha)] {
        let (from, to) = (network.space(from), network.space(to));
        passes(from, address, 1420);
        let said = ping(from, address, 1421);
        assert!(said.contains("too long"), "{said}");
        assert_eq!(agreed(from, to, address), 1420 - HEADERS);
    }
    network
        .space(At::Alpha)
        .transfer(network.space(At::Beta), beta, 10_000_000);
    let doctor = network.run(At::Alpha, &["doctor"]);
    assert!(doctor.contains("packets of 1420 bytes pass"), "{doctor}");
    let status = network.run(At::Alpha, &["status"]);
    assert!(status.contains("path MTU 1420 B"), "{status}");
}

#[test]
fn a_path_of_1400_bytes_of_which_nobody_is_told_carries_a_transfer_both_ways() {
    let Some(network) = network() else {
        return;
    };
    narrow(&network, 1400);
    let _up = interfaces(&network);
    // IPv4, UDP and WireGuard have 60 bytes, and packets are padded to 16.
    let size = 1328;
    finds(&network, At::Alpha, size);
    finds(&network, At::Beta, 1420);
    let (alpha, beta) = (network.address("alpha"), network.address("beta"));
    for (from, to, address) in [(At::Alpha, At::Beta, beta), (At::Beta, At::Alpha, alpha)] {
        let (from, to) = (network.space(from), network.space(to));
        assert_eq!(agreed(from, to, address), size - HEADERS);
        from.transfer(to, address, 10_000_000);
        passes(from, address, size);
        // The near node says so about its own tunnel, the gateway about the far one.
        let said = ping(from, address, size + 1);
        assert!(
            said.contains(&format!("mtu={size}")) || said.contains("mtu: 1328"),
            "{said}"
        );
        let route = route(from, address);
        assert!(route.contains(&format!("mtu {size}")), "{route}");
    }
    assert_eq!(found(&network, At::Alpha), size);
    let doctor = network.run(At::Alpha, &["doctor"]);
    assert!(doctor.contains("packets of 1328 bytes pass"), "{doctor}");
}

#[test]
fn a_path_that_becomes_smaller_under_a_transfer_carries_it_on() {
    for from in [At::Alpha, At::Beta] {
        let Some(network) = network() else {
            return;
        };
        let _up = interfaces(&network);
        for at in [At::Alpha, At::Beta] {
            finds(&network, at, 1420);
        }
        let (to, name) = match from {
            At::Alpha => (At::Beta, "beta"),
            At::Beta | At::Server => (At::Alpha, "alpha"),
        };
        let address = network.address(name);
        let listener = network.space(to).enter(|| TcpListener::bind((address, 0)));
        let listener = listener.expect("inner address is there");
        let end = listener.local_addr().expect("bound");
        let (received, done) = (&AtomicU64::new(0), &AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut bytes = vec![0; 65_536];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    received.fetch_add(length as u64, Ordering::Relaxed);
                }
            });
            let sending = network.space(from);
            scope.spawn(move || {
                let stream = sending.enter(|| TcpStream::connect_timeout(&end, LONG));
                let mut stream = stream.expect("the tunnel carries TCP");
                // It need not end well when the test has failed.
                while !done.load(Ordering::Relaxed) && stream.write_all(&[7; 65_536]).is_ok() {}
            });
            let arrives = |more: u64| {
                let before = received.load(Ordering::Relaxed);
                within(LONG, "data arrives", || {
                    received.load(Ordering::Relaxed) > before + more
                });
            };
            arrives(1_000_000);
            narrow(&network, 1400);
            finds(&network, At::Alpha, 1328);
            arrives(10_000_000);
            done.store(true, Ordering::Relaxed);
        });
        let route = route(network.space(from), address);
        assert!(route.contains("mtu 1328"), "{route}");
    }
}

#[test]
fn a_node_in_user_mode_agrees_on_what_its_path_carries() {
    let Some(network) = network() else {
        return;
    };
    narrow(&network, 1400);
    let _alpha = network.start(At::Alpha, &["up", "--user"], "is ready");
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    finds(&network, At::Alpha, 1328);
    finds(&network, At::Beta, 1420);
    let page: &'static str = Box::leak("page ".repeat(400_000).into_boxed_str());
    let target = network.serve(At::Beta, "127.0.0.1:0", page);
    network.publish(At::Beta, "pages", 8080, target);
    let answer = network.dial(At::Alpha, "beta", 8080);
    assert!(
        answer.ends_with(page),
        "{} bytes: {:.200}",
        answer.len(),
        answer
    );
    let discards = network.run(At::Beta, &["status", "--json"]);
    let discards: Value = serde_json::from_str(&discards).expect("JSON");
    let too_big = &discards["node"]["discards"]["node.too_big"];
    assert_eq!(*too_big, Value::Null, "connections agree beforehand");
}
