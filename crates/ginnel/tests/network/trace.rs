//! `ginnel trace`: every hop on the way is told, as far as it concerns who asks.

use serde_json::Value;

use crate::world::{World, serve_echo, wait_for};

/// What the laptop is told about the way to `target`, once it is what is waited for: on a busy
/// machine answers may be late.
#[track_caller]
fn trace(world: &World, target: &[&str], outcomes: &[&str]) -> Value {
    let line = [&["trace", "--json", "--count", "3"], target].concat();
    let mut report = Value::Null;
    wait_for("the way", || {
        let ended = world.try_run("laptop", &line);
        let Ok(told) = serde_json::from_str(&ended.stdout) else {
            return false;
        };
        report = told;
        let reached = report["reached"].as_bool().expect("it is said");
        assert_eq!(ended.code, Some(i32::from(!reached)), "{ended:?}");
        each(&report, "outcome") == outcomes
    });
    for hop in hops(&report) {
        adds_up(hop);
    }
    report
}

/// The hops inside the tunnel, and the port.
fn hops(report: &Value) -> impl Iterator<Item = &Value> {
    let hops = report["hops"].as_array().expect("a list");
    let service = Some(&report["service"]).filter(|service| !service.is_null());
    hops.iter().chain(service)
}

fn each<'a>(report: &'a Value, field: &str) -> Vec<&'a Value> {
    hops(report).map(|hop| &hop[field]).collect()
}

fn adds_up(hop: &Value) {
    let count = |of: &str| {
        let count = hop[of].as_u64().expect("a number");
        u32::try_from(count).expect("small")
    };
    let (sent, answered) = (count("sent"), count("answered"));
    assert!(sent == 3 && (1..=sent).contains(&answered), "{hop}");
    let loss = hop["loss_percent"].as_f64().expect("a number");
    let lost = f64::from(sent - answered) / f64::from(sent) * 100.0;
    assert!((loss - lost).abs() < 0.01, "{hop}");
    let [min, avg, max] = ["min", "avg", "max"].map(|of| hop["round_trip_ms"][of].as_f64());
    assert!(min.is_some() && min <= avg && avg <= max, "{hop}");
}

#[test]
fn a_machine_is_behind_the_gateway_and_a_service_behind_the_machine() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let way = ["time_exceeded", "reply", "reply"];
    let report = trace(&world, &["echo.svc", "7000"], &way);
    let status = world.json("laptop", &["status"]);
    let gateway = &status["node"]["peers"][0]["name"];
    let names = [gateway.clone(), "echo.svc".into(), "port 7000".into()];
    assert_eq!(each(&report, "name"), names.each_ref());
    let addresses = each(&report, "address");
    assert_eq!(addresses[1..], [&report["address"]; 2]);
    assert_ne!(addresses[0], addresses[1]);
    // Whether this user may send echo requests outside the tunnel is the system's affair.
    let outside = &report["outside"];
    assert_eq!(outside["address"], "127.0.0.1", "{report}");
    assert!(
        outside["error"].is_string() || outside["sent"] == 3,
        "{report}"
    );

    let report = trace(
        &world,
        &["shed", "7001"],
        &["time_exceeded", "reply", "refused"],
    );
    assert_eq!(report["reached"], false);
    wait_for("the table", || {
        let ended = world.try_run("laptop", &["trace", "shed", "--count", "1"]);
        let mut lines = ended.stdout.lines();
        lines.any(|line| line.starts_with("2  ") && line.contains("shed"))
    });
    let ended = world.try_run("laptop", &["trace", "nobody"]);
    assert!(
        ended.code == Some(1) && ended.stderr.contains("DNS: "),
        "{ended:?}"
    );
}

#[test]
fn behind_a_refusal_no_hop_is_told() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    world.join("absent");
    trace(&world, &["absent"], &["time_exceeded", "unreachable"]);
    world.run("laptop", &["policy", "set", "1", "--to", "node:absent"]);
    let report = trace(&world, &["shed"], &["time_exceeded", "prohibited"]);
    // It is the gateway that says so, and nothing is heard of the machine.
    let [passes, refuses] = each(&report, "address")[..] else {
        panic!("two hops: {report}");
    };
    assert_eq!(passes, refuses);
    assert_eq!(report["reached"], false);
    // A rule for one port lets echo requests pass, and no other port.
    let rule = ["--from", "*", "--to", "machines", "--allow", "7000"];
    world.run("laptop", &[&["policy", "add"][..], &rule].concat());
    let way = ["time_exceeded", "reply", "reply"];
    trace(&world, &["shed", "7000"], &way);
    let way = ["time_exceeded", "reply", "prohibited"];
    let report = trace(&world, &["shed", "7001"], &way);
    assert_eq!(report["reached"], false);
}
