//! `ginnel doctor` where packets are lost on the way, or are led away on the own machine.

use serde_json::Value;

use super::{
    attachment::{At, Network},
    world::{find, lacks, text},
};

fn doctor(network: &Network) -> Value {
    let output = network.output(At::Alpha, &["doctor", "--json"]);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn tells(report: &Value, step: &str, code: &str) {
    assert_eq!(report["finding"]["code"], code, "{report}");
    let steps = report["steps"].as_array().expect("a list");
    let failed = steps.iter().find(|step| step["outcome"] == "failed");
    assert_eq!(failed.expect("one fails")["name"], step, "{report}");
}

/// Lets the server's machine drop what `rule` matches.
fn drop_at_server(network: &Network, rule: &str) {
    for line in [
        "add table inet lossy",
        "add chain inet lossy in { type filter hook input priority 0 ; }",
        "add chain inet lossy out { type filter hook output priority 0 ; }",
        &format!("add rule inet lossy {rule} drop"),
    ] {
        let mut nft = network.space(At::Server).command("nft");
        let output = nft.arg(line).output().expect("nft runs");
        assert!(output.status.success(), "{line}: {}", text(&output));
    }
}

fn network() -> Option<Network> {
    if find("nft").is_none() {
        lacks("NETNS", "`nft` is not installed");
        return None;
    }
    Network::new()
}

#[test]
fn udp_that_a_firewall_drops_is_told_before_anything_else() {
    let Some(network) = network() else {
        return;
    };
    drop_at_server(&network, "in udp dport 51820");
    tells(&doctor(&network), "udp", "udp_unanswered");
}

/// What is lost although a session stands.
#[track_caller]
fn check(rule: &str, step: &str, code: &str) {
    let Some(network) = network() else {
        return;
    };
    let _up = network.start(At::Alpha, &["up", "--user"], "is ready");
    assert_eq!(doctor(&network)["finding"], Value::Null);
    drop_at_server(&network, rule);
    tells(&doctor(&network), step, code);
}

#[test]
fn large_packets_that_vanish_are_told() {
    check("in udp length gt 1300", "mtu", "mtu_black_hole");
}

#[test]
fn a_tunnel_that_stands_and_through_which_nothing_comes_back_is_told() {
    // Transport data has type 4 in its first byte (whitepaper 5.4.6); handshakes pass.
    check("out udp sport 51820 @th,64,8 4", "echo", "one_way");
}

#[test]
fn dns_that_something_else_on_the_machine_takes_is_told_and_the_walk_goes_on() {
    let Some(network) = network() else {
        return;
    };
    let _up = network.start(At::Alpha, &["up", "--tun"], "ready on ginnel0");
    let healthy = doctor(&network);
    assert_eq!(healthy["finding"], Value::Null, "{healthy}");
    let alpha = network.space(At::Alpha);
    for line in [
        "add table ip6 manager",
        "add chain ip6 manager out { type nat hook output priority -100 ; }",
        "add rule ip6 manager out udp dport 53 redirect to :5353",
    ] {
        let output = alpha.command("nft").arg(line).output().expect("nft runs");
        assert!(output.status.success(), "{line}: {}", text(&output));
    }
    let output = network.output(At::Alpha, &["doctor", "--json", "beta"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    tells(&report, "names", "dns_captured");
    let steps = report["steps"].as_array().expect("a list");
    let name = steps.iter().find(|step| step["name"] == "name");
    assert_eq!(name.expect("a step")["outcome"], "passed", "{report}");
}

#[test]
fn a_route_that_leads_the_network_away_is_told_and_user_mode_needs_none() {
    let Some(network) = network() else {
        return;
    };
    let up = network.start(At::Alpha, &["up", "--tun"], "ready on ginnel0");
    let healthy = doctor(&network);
    assert_eq!(healthy["finding"], Value::Null, "{healthy}");
    let status: Value =
        serde_json::from_str(&network.run(At::Alpha, &["status", "--json"])).expect("JSON");
    let prefix = status["node"]["orgs"][0]["prefix"]
        .as_str()
        .expect("a text");
    let away = prefix.replace("/48", "/64");
    let link = &network.space(At::Alpha).link;
    let route = ["-6", "route", "add", &away, "dev", link];
    network.space(At::Alpha).ip(&route);
    let report = doctor(&network);
    tells(&report, "routes", "route_conflict");
    let message = report["finding"]["message"].as_str().expect("a text");
    assert!(
        message.contains(&away) && message.contains(link),
        "{message}"
    );
    drop(up);
    let _up = network.start(At::Alpha, &["up", "--user"], "is ready");
    assert_eq!(doctor(&network)["finding"], Value::Null);
}
