//! `wg`: what is set is shown, written and synchronised.

use std::process::Command;

use super::world::{Program, Tunnel, World, file_with, inner, text, wg_line};

fn tunnel() -> Option<(Tunnel, World)> {
    let world = World::new()?;
    let tunnel = world.tunnel(0, Program::Ginnel)?;
    Some((tunnel, world))
}

fn public() -> String {
    wg_line(&["pubkey"], &wg_line(&["genkey"], ""))
}

fn wg(arguments: &[&str]) {
    let output = Command::new("wg")
        .args(arguments)
        .output()
        .expect("wg runs");
    assert!(
        output.status.success(),
        "wg {arguments:?}: {}",
        text(&output)
    );
}

#[test]
fn what_is_set_is_shown() {
    let Some((tunnel, _world)) = tunnel() else {
        return;
    };
    let (peer, preshared) = (public(), wg_line(&["genpsk"], ""));
    let private = file_with(&tunnel.private_key);
    tunnel.set(&[
        "private-key",
        &private,
        "listen-port",
        "41414",
        "fwmark",
        "0x77",
    ]);
    tunnel.set(&[
        "peer",
        &peer,
        "preshared-key",
        &file_with(&preshared),
        "endpoint",
        "[fd99::2]:77",
        "persistent-keepalive",
        "25",
        "allowed-ips",
        "10.1.0.0/16,fd00::/8,10.2.3.4/32",
    ]);
    assert_eq!(tunnel.show(&["private-key"]).trim(), tunnel.private_key);
    assert_eq!(tunnel.show(&["public-key"]).trim(), tunnel.public_key);
    assert_eq!(tunnel.show(&["listen-port"]).trim(), "41414");
    assert_eq!(tunnel.show(&["fwmark"]).trim(), "0x77");
    assert_eq!(tunnel.show_peer("preshared-keys"), preshared);
    assert_eq!(tunnel.show_peer("endpoints"), "[fd99::2]:77");
    assert_eq!(tunnel.show_peer("persistent-keepalive"), "25");
    assert_eq!(tunnel.show_peer("latest-handshakes"), "0");
    let allowed = tunnel.show(&["allowed-ips"]);
    let mut allowed: Vec<_> = allowed.split_whitespace().skip(1).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["10.1.0.0/16", "10.2.3.4/32", "fd00::/8"]);
    tunnel.set(&[
        "peer",
        &peer,
        "persistent-keepalive",
        "off",
        "preshared-key",
        "/dev/null",
    ]);
    assert_eq!(tunnel.show_peer("persistent-keepalive"), "off");
    assert_eq!(tunnel.show_peer("preshared-keys"), "(none)");
    tunnel.set(&["fwmark", "off", "peer", &peer, "remove"]);
    assert_eq!(tunnel.show(&["fwmark"]).trim(), "off");
    assert_eq!(tunnel.show(&["peers"]).trim(), "");
}

#[test]
fn an_allowed_ip_belongs_to_the_peer_that_got_it_last() {
    let Some((tunnel, _world)) = tunnel() else {
        return;
    };
    let (first, second) = (public(), public());
    tunnel.set(&["peer", &first, "allowed-ips", "10.1.0.0/16"]);
    tunnel.set(&["peer", &second, "allowed-ips", "10.1.0.0/16"]);
    let shown = tunnel.show(&["allowed-ips"]);
    assert!(shown.contains(&format!("{first}\t(none)")), "{shown}");
    assert!(shown.contains(&format!("{second}\t10.1.0.0/16")), "{shown}");
}

#[test]
fn a_configuration_that_wg_wrote_is_read_back_the_same() {
    let Some((tunnel, _world)) = tunnel() else {
        return;
    };
    let peers: Vec<_> = (0..40).map(|_| public()).collect();
    tunnel.set(&[
        "private-key",
        &file_with(&tunnel.private_key),
        "listen-port",
        "41415",
    ]);
    for (number, peer) in peers.iter().enumerate() {
        let allowed = format!("10.3.{number}.0/24,fd03::{number:x}/128");
        tunnel.set(&[
            "peer",
            peer,
            "allowed-ips",
            &allowed,
            "endpoint",
            "192.0.2.7:9",
        ]);
    }
    let written = |tunnel: &Tunnel| {
        let output = Command::new("wg")
            .args(["showconf", &tunnel.interface])
            .output();
        let text = text(&output.expect("wg runs"));
        let mut sections: Vec<_> = text
            .split("\n\n")
            .map(str::trim)
            .map(str::to_owned)
            .collect();
        sections.sort();
        sections
    };
    let before = written(&tunnel);
    assert_eq!(before.len(), 41);
    let file = file_with(&before.join("\n\n"));
    wg(&["setconf", &tunnel.interface, &file]);
    assert_eq!(written(&tunnel), before);
    wg(&["addconf", &tunnel.interface, &file]);
    assert_eq!(written(&tunnel), before);
}

#[test]
fn syncconf_keeps_the_session_of_a_peer_that_did_not_change() {
    let Some(world) = World::new() else { return };
    let Some(ours) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let Some(theirs) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&ours, &theirs], None, false);
    assert_eq!(world.spaces[0].ping(inner(1, false), 2), 2);
    let other = public();
    ours.set(&["peer", &other, "allowed-ips", "10.4.0.0/16"]);
    let before = ours.show(&["latest-handshakes"]);
    let file = file_with(&format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\n[Peer]\nPublicKey = {}\n\
         AllowedIPs = {}/32, {}/128\nEndpoint = 10.99.0.2:51820\n",
        ours.private_key,
        theirs.public_key,
        inner(1, false),
        inner(1, true)
    ));
    wg(&["syncconf", &ours.interface, &file]);
    assert_eq!(ours.show(&["peers"]).trim(), theirs.public_key);
    assert_eq!(world.spaces[0].ping(inner(1, true), 2), 2);
    assert!(
        before.contains(ours.show(&["latest-handshakes"]).trim()),
        "no new handshake"
    );
}

#[test]
fn keys_and_port_change_while_traffic_flows() {
    let Some(world) = World::new() else { return };
    let Some(ours) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let Some(theirs) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&ours, &theirs], None, false);
    let ping = || world.spaces[0].ping(inner(1, false), 2);
    assert_eq!(ping(), 2);
    ours.set(&["listen-port", "51999"]);
    assert_eq!(ping(), 2);
    assert_eq!(theirs.show_peer("endpoints"), "10.99.0.1:51999");
    let private = wg_line(&["genkey"], "");
    theirs.set(&[
        "peer",
        &wg_line(&["pubkey"], &private),
        "allowed-ips",
        "10.88.0.1/32",
    ]);
    ours.set(&["private-key", &file_with(&private)]);
    assert_eq!(ping(), 2);
    let preshared = file_with(&wg_line(&["genpsk"], ""));
    let ours_public = wg_line(&["pubkey"], &private);
    theirs.set(&["peer", &ours_public, "preshared-key", &preshared]);
    ours.set(&["peer", &theirs.public_key, "preshared-key", &preshared]);
    assert_eq!(ping(), 2, "the session outlives the change");
}

/// The kernel's self-test has the same: seven keys of low order, and nothing goes out.
#[test]
fn peers_with_keys_of_low_order_are_taken_and_nothing_is_sent_to_them() {
    let Some((tunnel, world)) = tunnel() else {
        return;
    };
    let space = &world.spaces[0];
    let sink = world.spaces[1].enter(|| std::net::UdpSocket::bind(("10.99.0.2", 9)));
    let sink = sink.expect("a free port");
    tunnel.set(&["private-key", &file_with(&tunnel.private_key)]);
    for (number, key) in LOW_ORDER.iter().enumerate() {
        let allowed = format!("10.66.0.{}/32", number + 1);
        tunnel.set(&[
            "peer",
            key,
            "endpoint",
            "10.99.0.2:9",
            "persistent-keepalive",
            "1",
            "allowed-ips",
            &allowed,
        ]);
    }
    let shown = tunnel.show(&["peers"]);
    assert_eq!(shown.lines().count(), LOW_ORDER.len(), "{shown}");
    space.ip(&["link", "set", &tunnel.interface, "up"]);
    space.ip(&["route", "add", "10.66.0.0/24", "dev", &tunnel.interface]);
    for number in 1..=LOW_ORDER.len() {
        let to = format!("10.66.0.{number}").parse().expect("an address");
        assert_eq!(space.ping(to, 1), 0);
    }
    sink.set_nonblocking(true).expect("a socket");
    let error = sink.recv(&mut [0; 2048]).expect_err("nothing was sent");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    for line in tunnel.show(&["transfer"]).lines() {
        assert!(line.ends_with("\t0\t0"), "{line}");
    }
}

#[test]
fn a_port_in_use_is_refused_by_name_and_the_old_one_stays() {
    let Some((tunnel, world)) = tunnel() else {
        return;
    };
    let taken = world.spaces[0].enter(|| std::net::UdpSocket::bind("0.0.0.0:0"));
    let taken = taken.expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    tunnel.set(&["listen-port", "41416"]);
    let error = tunnel.try_set(&["listen-port", &port]).expect_err("in use");
    assert!(error.contains("Address already in use"), "{error}");
    assert_eq!(tunnel.show(&["listen-port"]).trim(), "41416");
    tunnel.set(&["listen-port", "0"]);
    assert_ne!(tunnel.show(&["listen-port"]).trim(), "0");
}

/// The points of low order, as the kernel's self-test lists them.
const LOW_ORDER: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
];
