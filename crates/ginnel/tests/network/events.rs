//! What a node tells about itself as it happens, and about one of its peers.

use std::{net::UdpSocket, process::Command};

use crate::world::{World, finish, serve_echo, wait_for};

#[test]
fn events_tell_handshakes_changes_of_the_map_and_discards() {
    let world = World::new();
    world.login("laptop");
    // The gateway answers once somebody follows.
    let server = world.server.as_ref().expect("it runs");
    server.signal("STOP");
    let mut events = world.spawn(&mut world.ginnel("laptop", &["events", "--json"]));
    wait_for("the follower", || {
        world.json("laptop", &["status"])["connections"] == 1
    });
    server.signal("CONT");
    let completed = events.until("handshake_completed");
    let completed: serde_json::Value = serde_json::from_str(&completed).expect("JSON");
    assert_eq!(completed["endpoint"], world.wireguard.as_str());
    let time = completed["time"].as_str().expect("a string");
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    // A machine that joins changes the map.
    world.join("shed");
    events.until("map_applied");
    // Initiations of a wrong length, and nothing at all, are discarded, and told together.
    let status = world.json("laptop", &["status"]);
    let junk = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = udp_port(&status["pid"]);
    for _ in 0..5 {
        for bytes in [&b"\x01\0\0\0 too short"[..], b""] {
            junk.send_to(bytes, ("127.0.0.1", port)).expect("loopback");
        }
    }
    let mut counted = 0;
    while counted < 10 {
        let line = events.until("wireguard.length");
        let discarded: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(discarded["event"], "discarded");
        counted += discarded["count"].as_u64().expect("a number");
    }
    assert_eq!(counted, 10);
    events.signal("INT");
    assert_eq!(events.ended().code, Some(0));
}

/// Finds the UDP port of a process by ss(8).
fn udp_port(pid: &serde_json::Value) -> u16 {
    let listed = finish(Command::new("ss").args(["-H", "-u", "-n", "-a", "-p"]));
    let of_process = format!("pid={pid},");
    let line = listed
        .stdout
        .lines()
        .find(|line| line.contains(&of_process));
    let local = line.and_then(|line| line.split_whitespace().nth(3));
    let port = local.and_then(|local| local.rsplit(':').next());
    port.and_then(|port| port.parse().ok())
        .expect("it has a socket")
}

#[test]
fn the_control_plane_knows_how_the_tunnel_of_a_machine_stands() {
    let world = World::new();
    world.login("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    world.run("laptop", &["ping", "shed", "-c", "2"]);
    wait_for("what its gateway tells", || {
        let tunnel = &world.json("laptop", &["node", "show", "shed"])["tunnel"];
        tunnel["transport"] == "udp_ipv4"
            && tunnel["handshake"].as_i64() > Some(0)
            && tunnel["received_bytes"].as_u64() > Some(0)
            && tunnel["sent_bytes"].as_u64() > Some(0)
    });
    let text = world.run("laptop", &["node", "show", "shed"]);
    assert!(text.contains("UDP over IPv4, "), "{text}");
}

#[test]
fn a_peer_is_shown_by_its_name_its_key_and_what_is_reached_through_it() {
    let world = World::new();
    world.login("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    world.run("laptop", &["ping", "shed", "-c", "2"]);
    let told = world.json("laptop", &["peer", "show", "shed"]);
    let gateway = told["name"].as_str().expect("its gateway").to_owned();
    let key = told["public_key"].as_str().expect("a key").to_owned();
    for name in [gateway.as_str(), key.as_str()] {
        let other = world.json("laptop", &["peer", "show", name]);
        assert_eq!(
            other["sessions"][0]["local_index"],
            told["sessions"][0]["local_index"]
        );
    }
    assert_eq!(told["sessions"][0]["place"], "current");
    assert!(told["sent_datagrams"].as_u64() >= Some(3), "{told}");
    let text = world.run("laptop", &["peer", "show", "shed"]);
    for sign in [
        "session      current: ours ",
        "timer        persistent_keepalive in ",
    ] {
        assert!(text.contains(sign), "{text}");
    }
    assert_eq!(told["transport"], "udp");
    wait_for("the way to the gateway", || {
        let told = world.json("laptop", &["peer", "show", &gateway]);
        let path = &told["path"];
        let answered = path["answered"].as_u64();
        answered > Some(0)
            && answered <= path["sent"].as_u64()
            && path["round_trip_us"]["min"].as_u64() <= path["round_trip_us"]["max"].as_u64()
            && path["carries_bytes"] == 1_420
    });
    let unknown = world.try_run("laptop", &["peer", "show", "nobody"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("DNS"), "{}", unknown.stderr);
}

#[test]
fn a_status_that_is_watched_comes_again_until_it_is_interrupted() {
    let (world, _laptop) = World::with_laptop();
    let mut watch = world.spawn(&mut world.ginnel("laptop", &["status", "--watch", "--json"]));
    for _ in 0..2 {
        let line = watch.until("uptime_seconds");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["running"], true);
    }
    watch.signal("INT");
    assert_eq!(watch.ended().code, Some(0));
    wait_for("the watching connection to end", || {
        world.json("laptop", &["status"])["connections"] == 0
    });
}
