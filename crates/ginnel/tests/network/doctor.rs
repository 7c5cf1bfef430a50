//! `ginnel doctor`: a healthy network has a clean bill, and each trouble is told by its name.

use std::{fs, net::UdpSocket, process::Command};

use serde_json::Value;

use crate::world::{Ended, World, finish, serve_echo, wait_for};

/// What the doctor says as `who`.
fn doctor(world: &World, who: &str, target: &[&str]) -> Value {
    let line = [&["doctor", "--json"], target].concat();
    report(&world.try_run(who, &line))
}

fn report(ended: &Ended) -> Value {
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let healthy = report["healthy"].as_bool().expect("it is said");
    assert_eq!(ended.code, Some(i32::from(!healthy)), "{ended:?}");
    assert_eq!(report["version"], 1);
    report
}

/// The code of what fails first, and the step at which it does.
#[track_caller]
fn check(world: &World, who: &str, target: &[&str], step: &str, code: &str) -> Value {
    let report = doctor(world, who, target);
    tells(&report, step, code);
    report
}

#[track_caller]
fn tells(report: &Value, step: &str, code: &str) {
    assert_eq!(report["finding"]["code"], code, "{report}");
    for part in ["message", "remedy"] {
        let text = report["finding"][part].as_str().expect("a text");
        assert!(!text.is_empty(), "{report}");
    }
    let steps = report["steps"].as_array().expect("a list");
    let failed = steps.iter().find(|step| step["outcome"] == "failed");
    assert_eq!(failed.expect("one fails")["name"], step, "{report}");
}

fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().expect("a list");
    let step = steps.iter().find(|step| step["name"] == name);
    step.expect("such a step")
}

/// Waits until the gateway apart from the server is the one that is used.
fn wait_for_gateway(world: &World, name: &str) {
    wait_for("the gateway", || {
        let report = doctor(world, "laptop", &[]);
        let detail = step(&report, "udp")["detail"].as_str();
        detail.expect("a text").contains(name)
    });
}

const WAY: [&str; 9] = [
    "sign_in",
    "control",
    "clock",
    "routes",
    "udp",
    "handshake",
    "echo",
    "mtu",
    "names",
];
const TO_TARGET: [&str; 3] = ["name", "policy", "target"];

#[test]
fn a_healthy_network_has_a_clean_bill_up_to_the_remote_port() {
    let (world, _laptop) = World::with_laptop();
    let target = serve_echo();
    let _machine = world.machine("machine", "echo", 7000, target);
    for target in [&[][..], &["machine"], &["echo.svc", "7000"]] {
        let report = doctor(&world, "laptop", target);
        assert_eq!(report["finding"], Value::Null, "{report}");
        let steps = report["steps"].as_array().expect("a list");
        let names: Vec<_> = steps.iter().map(|step| step["name"].clone()).collect();
        let mut expected = WAY.to_vec();
        if !target.is_empty() {
            expected.extend(TO_TARGET);
        }
        assert_eq!(names, expected);
        assert!(
            steps.iter().all(|step| step["outcome"] == "passed"),
            "{report}"
        );
    }
    let text = world.run("laptop", &["doctor", "machine"]);
    let policy = text.lines().find(|line| line.starts_with("policy "));
    assert_eq!(
        policy,
        Some("policy     ok      rule 1 allows ping"),
        "{text}"
    );
}

#[test]
fn what_keeps_a_machine_from_being_reached_is_told_apart() {
    let (world, _laptop) = World::with_laptop();
    let _machine = world.machine("machine", "echo", 7000, serve_echo());
    check(&world, "laptop", &["nobody", "22"], "name", "no_such_name");
    check(
        &world,
        "laptop",
        &["machine", "7001"],
        "target",
        "port_closed",
    );
    world.join("absent");
    for target in [&["absent", "22"][..], &["absent"]] {
        check(&world, "laptop", target, "target", "unreachable");
    }
    world.run("laptop", &["policy", "set", "1", "--to", "node:absent"]);
    let line = ["--from", "*", "--to", "machines", "--allow", "22"];
    world.run("laptop", &[&["policy", "add"][..], &line].concat());
    let refused = check(
        &world,
        "laptop",
        &["machine", "7000"],
        "policy",
        "prohibited",
    );
    let message = refused["finding"]["message"].as_str().expect("a text");
    let expected = "no rule lets laptop reach machine with 7000/tcp: rule 2 has other traffic";
    assert!(message.ends_with(expected), "{message}");
    assert_eq!(step(&refused, "target")["outcome"], "skipped");
    // What the doctor proposes mends it.
    let remedy = refused["finding"]["remedy"].as_str().expect("a text");
    let command = remedy.split('`').nth(1).expect("a command");
    let words: Vec<_> = command.split_whitespace().skip(1).collect();
    world.run("laptop", &words);
    wait_for("the rule", || {
        doctor(&world, "laptop", &["machine", "7000"])["healthy"] == true
    });
}

#[test]
fn a_machine_that_is_not_or_no_more_in_the_network_is_told_so() {
    let (world, _laptop) = World::with_laptop();
    let report = check(&world, "stranger", &[], "sign_in", "not_enrolled");
    assert_eq!(step(&report, "udp")["outcome"], "skipped");
    world.join("machine");
    let key = fs::read(world.path("laptop").join("private.key")).expect("a key");
    fs::write(world.path("machine").join("private.key"), key).expect("our file");
    check(&world, "machine", &[], "control", "key_mismatch");
    world.run("laptop", &["node", "remove", "machine"]);
    check(&world, "machine", &[], "control", "sign_in_refused");
}

#[test]
fn the_network_goes_on_without_its_server_and_the_doctor_says_so() {
    let (mut world, _laptop) = World::with_laptop();
    let _gateway = world.gateway("edge");
    let _machine = world.machine("machine", "echo", 7000, serve_echo());
    wait_for_gateway(&world, "edge");
    world.server = None;
    let target = ["machine", "7000"];
    let away = check(&world, "laptop", &target, "control", "control_away");
    assert_eq!(step(&away, "clock")["outcome"], "skipped");
    let listen = world.url.trim_start_matches("https://").to_owned();
    let data = world.path("another");
    let data = data.to_str().expect("UTF-8");
    let line = [
        "server",
        "--data",
        data,
        "--listen",
        &listen,
        "--wireguard",
        "127.0.0.1:0",
    ];
    let _another = world.start("another", &line, "wireguard");
    let replaced = check(&world, "laptop", &target, "control", "control_replaced");
    for report in [away, replaced] {
        for name in WAY[3..].iter().chain(&TO_TARGET) {
            assert_eq!(step(&report, name)["outcome"], "passed", "{report}");
        }
    }
}

#[test]
fn a_gateway_that_is_down_and_datagrams_that_are_lost_are_told_apart() {
    let (world, laptop) = World::with_laptop();
    let gateway = world.gateway("edge");
    wait_for_gateway(&world, "edge");
    let peers = world.json("laptop", &["status"])["node"]["peers"].clone();
    let endpoint = peers[0]["endpoint"].as_str().expect("a text").to_owned();
    // Whoever has a session waits longer before it is doubted.
    drop(laptop);
    gateway.kill();
    check(&world, "laptop", &[], "udp", "gateway_down");
    let _silent = UdpSocket::bind(&endpoint).expect("the port of the gateway");
    let report = check(&world, "laptop", &["machine"], "udp", "udp_unanswered");
    for name in WAY[5..].iter().chain(&TO_TARGET) {
        assert_eq!(step(&report, name)["outcome"], "skipped", "{report}");
    }
}

#[test]
fn a_wrong_clock_is_told_and_the_network_works_with_it() {
    let (world, _laptop) = World::with_laptop();
    for (offset, direction) in [("+600s", "ahead of"), ("-600s", "behind")] {
        let wrong = world.ginnel("laptop", &["doctor", "--json"]);
        let mut faketime = Command::new("faketime");
        faketime
            .args(["-f", offset])
            .arg(wrong.get_program())
            .args(wrong.get_args());
        // Only the time of day is wrong.
        faketime
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .current_dir("/");
        let report = report(&finish(&mut faketime));
        tells(&report, "clock", "clock_skew");
        let message = report["finding"]["message"].as_str().expect("a text");
        assert!(message.contains(direction), "{message}");
        for name in &WAY[3..] {
            assert_eq!(step(&report, name)["outcome"], "passed", "{report}");
        }
    }
}

#[test]
fn the_doctor_walks_by_a_plain_configuration_too() {
    let world = World::new();
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let endpoint = crate::world::free_udp();
    let file = world.path("wg0.conf");
    let text = format!(
        "[Interface]\nPrivateKey = {key}\nAddress = 10.0.0.1/32\n[Peer]\nPublicKey = \
         CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nAllowedIPs = 10.0.0.0/24\nEndpoint = \
         {endpoint}\n"
    );
    fs::write(&file, text).expect("our file");
    let file = file.to_str().expect("UTF-8");
    let line = ["--config", file, "doctor", "--json"];
    let unnamed = world.try_run("plain", &line);
    assert!(unnamed.stderr.contains("HOST PORT"), "{unnamed:?}");
    let unanswered = world.try_run("plain", &[&line[..], &["10.0.0.5", "22"]].concat());
    tells(&report(&unanswered), "target", "gateway_down");
    let elsewhere = world.try_run("plain", &[&line[..], &["10.1.0.5", "22"]].concat());
    tells(&report(&elsewhere), "target", "no_route");
}
