//! Bad input: each fault is one sentence that names the hop, and one that says what to do.

use std::{fs, process::Output};

use crate::world::{World, fed, finished, world};

/// Holds that the command failed with 1 and says `hop` and `remedy`.
#[track_caller]
fn check(output: &Output, hop: &str, remedy: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let mut lines = stderr.lines();
    assert!(
        lines.next().is_some_and(|line| line.contains(hop)),
        "{hop}: {stderr}"
    );
    assert!(
        lines.next().is_some_and(|line| line.contains(remedy)),
        "{remedy}: {stderr}"
    );
    assert_eq!(lines.next(), None, "{stderr}");
    assert!(
        !stderr.contains("deadline") && !stderr.contains("os error 110"),
        "{stderr}"
    );
}

fn edited(world: &World, from: &str, to: &str) -> String {
    let text = fs::read_to_string(&world.config).expect("read");
    assert!(text.contains(from));
    text.replace(from, to)
}

#[test]
fn an_unanswered_handshake_names_the_endpoint_and_both_causes() {
    let Some(world) = world() else { return };
    // Nobody has this address: the same as UDP that is blocked.
    world.write_config(&edited(&world, "10.99.0.2:51820", "10.99.0.3:51820"));
    let output = world
        .ginnel(["dial", "10.88.0.1", "7000"])
        .output()
        .expect("start");
    check(
        &output,
        "handshake: no answer from 10.99.0.3:51820 within 10 s",
        "firewalls",
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("keys do not match"));
}

#[test]
fn a_key_mismatch_is_said_in_the_same_words() {
    let Some(world) = world() else { return };
    let text = fs::read_to_string(&world.config).expect("read");
    let line = text
        .lines()
        .find(|line| line.starts_with("PublicKey"))
        .expect("there is one");
    let other = "PublicKey = 9HEc3p4rnTIlI2bnSNuOyLvxmHZBxsKyGfF2kP9ZtGk=";
    world.write_config(&edited(&world, line, other));
    let output = world
        .ginnel(["ping", "-c", "1", "10.88.0.1"])
        .output()
        .expect("start");
    check(
        &output,
        "handshake: no answer from 10.99.0.2:51820",
        "its public key must be 9HEc",
    );
}

#[test]
fn a_server_whose_name_got_another_address_is_found_again() {
    let Some(mut world) = world() else { return };
    world.serve(
        ["socat", "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat"],
        7000,
    );
    world.name_server_at("10.99.0.2");
    world.write_config(&edited(&world, "10.99.0.2:51820", "server.test:51820"));
    let echo = |world: &World, timeout: &str| {
        let line = ["dial", "10.88.0.1", "7000", "--timeout", timeout];
        fed(&mut world.ginnel(line), b"hello").stdout == b"hello"
    };
    assert!(echo(&world, "20"));
    for change in ["del 10.99.0.2/24", "add 10.99.0.3/24"] {
        let (verb, address) = change.split_once(' ').expect("two words");
        let line = ["ip", "addr", verb, address, "dev", "eth0"];
        finished(&mut world.server(line));
    }
    world.name_server_at("10.99.0.3");
    // A name is looked up every 15 s at most.
    assert!(echo(&world, "40"));
    let endpoint = world.status()["node"]["peers"][0]["endpoint"].clone();
    assert_eq!(endpoint, "10.99.0.3:51820");
}

#[test]
fn the_remote_side_is_told_apart_from_the_tunnel() {
    let Some(world) = world() else { return };
    let output = world
        .ginnel(["dial", "10.88.0.1", "9"])
        .output()
        .expect("start");
    check(
        &output,
        "remote port: 10.88.0.1 port 9 refuses",
        "listens at that port",
    );
    let output = world
        .ginnel(["dial", "10.88.0.77", "9", "--timeout", "4"])
        .output();
    check(&output.expect("start"), "remote machine: ", "");
    let output = world
        .ginnel(["dial", "192.0.2.1", "9"])
        .output()
        .expect("start");
    check(
        &output,
        "allowed IPs: no peer's AllowedIPs hold 192.0.2.1",
        "AllowedIPs",
    );
    let output = world.ginnel(["dial", "db", "9"]).output().expect("start");
    check(
        &output,
        "DNS: no answer from the DNS server 10.88.0.1",
        "DNS line",
    );
    world.write_config(&edited(&world, "DNS = 10.88.0.1, test\n", ""));
    let output = world.ginnel(["resolve", "db"]).output().expect("start");
    check(
        &output,
        "DNS: `db` is a name, and the configuration has no DNS line",
        "add `DNS",
    );
    world.write_config(&edited(
        &world,
        "10.99.0.2:51820",
        "no.such.name.invalid:51820",
    ));
    let output = world
        .ginnel(["dial", "10.88.0.1", "9"])
        .output()
        .expect("start");
    check(&output, "DNS: the name in Endpoint", "online");
}

#[test]
fn a_port_in_use_and_a_foreign_address_are_refused_before_anything_is_opened() {
    let Some(mut world) = world() else { return };
    let forward = world.ginnel(["forward", "7100:10.88.0.1:9"]);
    world.start(forward, 1);
    let output = world
        .ginnel(["forward", "7100:10.88.0.1:9"])
        .output()
        .expect("start");
    check(
        &output,
        "local port: listen at 127.0.0.1:7100",
        "choose another port",
    );
    let output = world
        .ginnel(["forward", "80:10.88.0.1:9"])
        .output()
        .expect("start");
    check(&output, "local port: listen at 127.0.0.1:80", "root");
    let output = world
        .ginnel(["proxy", "--socks5", "0.0.0.0:1080"])
        .output()
        .expect("start");
    check(
        &output,
        "would let other machines into the network",
        "--allow-remote",
    );
}

#[test]
fn a_configuration_that_cannot_be_used_is_named_with_its_line() {
    let Some(world) = world() else { return };
    world.write_config(&edited(&world, "AllowedIPs", "AllowdIPs"));
    let output = world
        .ginnel(["dial", "10.88.0.1", "9"])
        .output()
        .expect("start");
    check(&output, "line 8", "correct that line");
    fs::remove_file(&world.config).expect("own file");
    let output = world
        .ginnel(["dial", "10.88.0.1", "9"])
        .output()
        .expect("start");
    check(&output, "configuration: read", "that you may read");
}
