//! A capture of another machine, which the server passes on: what is in it, who sees it, and how it
//! ends.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::world::{Process, World, finish, lacks, serve_echo, wait_for};

#[test]
fn the_packets_of_another_machine_are_told_to_who_asked_and_to_its_owner() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let file = world.path("shed.pcapng");
    let line = ["--filter", "icmp6", "--interface", "both"];
    let mut capture = begin(&world, &file, &line);
    let status = world.json("shed", &["status"]);
    assert_eq!(status["capture"]["by"], "admin", "{status}");
    assert_eq!(status["capture"]["keys"], false);
    let text = world.run("shed", &["status"]);
    assert!(
        text.contains("runs, asked for by admin from elsewhere: icmp6"),
        "{text}"
    );
    let again = world.try_run("laptop", &["capture", "--node", "shed", "-w", "/dev/null"]);
    assert!(again.stderr.contains("runs already"), "{again:?}");
    assert!(again.stderr.contains("wait until it ends"), "{again:?}");
    wait_for("packets in the file", || {
        world.run("laptop", &["ping", "shed", "-c", "3", "-i", "0.1"]);
        fs::metadata(&file).expect("it is there").len() > 1_000
    });
    capture.signal("INT");
    let ended = capture.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    wait_for("the end, at the machine", || {
        world.json("shed", &["status"])["capture"].is_null()
    });
    wait_for("the end, in the audit", || {
        let rows = world.run("laptop", &["audit", "list"]);
        rows.contains("end:complete")
    });
    let rows = world.run("laptop", &["audit", "list"]);
    for part in [
        "capture_begun",
        "filter:icmp6",
        "capture_ended",
        "end:complete",
    ] {
        assert!(rows.contains(part), "{part}: {rows}");
    }
    if lacks("tshark") {
        return;
    }
    assert!(count(&file, "icmpv6.type == 128") >= 3);
    let named = "icmpv6.type == 128 && ipv6.src_host == \"laptop.default.internal\"";
    assert!(count(&file, named) >= 3);
    assert_eq!(
        count(&file, "icmpv6.type == 128"),
        count(&file, "icmpv6.type == 129")
    );
    let told = finish(Command::new("capinfos").arg(&file));
    assert_eq!(told.code, Some(0), "{told:?}");
}

#[test]
fn a_filter_and_a_count_are_those_of_the_other_machine_and_a_gateway_is_captured_too() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let _ping = world.spawn(&mut world.ginnel("laptop", &["ping", "shed", "-i", "0.1"]));
    for node in ["shed", "server"] {
        let line = ["capture", "--node", node, "--count", "4", "-w"];
        let path = world.path(&format!("{node}.pcapng"));
        let line = [&line[..], &[path.to_str().expect("UTF-8")]].concat();
        world.run("laptop", &line);
        if !lacks("tshark") {
            assert_eq!(count(&path, "icmpv6"), 4, "{node}");
        }
    }
}

#[test]
fn a_key_that_a_capture_elsewhere_gave_away_is_replaced_whoever_goes_away() {
    let (mut world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let refused = world.try_run(
        "laptop",
        &["capture", "--node", "shed", "--keys", "-w", "/dev/null"],
    );
    assert!(
        refused.stderr.contains("the private key of shed"),
        "{refused:?}"
    );
    let keys = ["--keys", "--yes"];
    let mut before = public_key(&world);
    let mut replaced = |world: &World, what: &str| {
        wait_for(what, || {
            let status = world.json("shed", &["status"]);
            status["key_exposed"] == false && status["node"]["public_key"] != before.as_str()
        });
        before = public_key(world);
    };

    let mut capture = begin(&world, &world.path("ended.pcapng"), &keys);
    capture.signal("INT");
    let ended = capture.ended();
    assert!(ended.stderr.contains("shed has a new key"), "{ended:?}");
    replaced(&world, "another key after the end");

    begin(&world, &world.path("asker.pcapng"), &keys).kill();
    replaced(&world, "another key after who asked was killed");

    let mut capture = begin(&world, &world.path("server.pcapng"), &keys);
    world.server.take().expect("it runs").kill();
    let ended = capture.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    world.restart_server();
    replaced(&world, "another key after the server was killed");
    // What it could not tell any more, it tells when it is back.
    let rows = world.run("laptop", &["audit", "list"]);
    let ends = |end: &str| rows.matches(end).count();
    assert_eq!(ends("capture_begun"), 3, "{rows}");
    assert_eq!(ends("capture_ended"), 3, "{rows}");
    assert_eq!(ends("bytes:- end:server_stopped"), 1, "{rows}");
}

/// Starts a capture of `shed` at `laptop` and waits until it has begun there.
fn begin(world: &World, file: &Path, flags: &[&str]) -> Process {
    let path = file.to_str().expect("UTF-8");
    let line = [&["capture", "--node", "shed", "-w", path], flags].concat();
    let capture = world.spawn(&mut world.ginnel("laptop", &line));
    wait_for("the capture", || {
        fs::metadata(file).is_ok_and(|file| file.len() > 0)
    });
    capture
}

fn public_key(world: &World) -> String {
    let status = world.json("shed", &["status"]);
    let key = status["node"]["public_key"].as_str();
    key.expect("it has a key").to_owned()
}

/// Counts the frames that a filter finds.
fn count(file: &Path, filter: &str) -> usize {
    let mut tshark = Command::new("tshark");
    // With the names that stand in the file, and no question to a resolver.
    tshark.args(["-n", "-N", "n", "-Y", filter, "-r"]).arg(file);
    let ended = finish(tshark.stdin(Stdio::null()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().count()
}
