//! A plain WireGuard client of the network: wireguard-go, `wg` and `ip`, and no ginnel.
//!
//! ```text
//!   alpha: wireguard-go, dig, curl     server, its gateway     beta: up --user
//! ```

use std::process::{Command, Stdio};

use super::{
    attachment::{At, Network},
    world::{LONG, Program, Space, Tunnel, find, lacks, received, text, wg_line, within},
};

/// A network whose alpha has no node that runs, only its administrator.
fn network() -> Option<Network> {
    for tool in ["wireguard-go", "wg-quick", "dig"] {
        if find(tool).is_none() {
            lacks("NETNS", &format!("`{tool}` is not installed"));
            return None;
        }
    }
    Network::new()
}

/// Starts wireguard-go on a machine by what was exported, as wg-quick(8) would.
pub(super) fn connect(space: &Space, configuration: &str) -> Tunnel {
    let tunnel = Tunnel::start(space, Program::WireguardGo).expect("it is installed");
    configure(space, &tunnel, configuration);
    let value = |key: &str| {
        let mut lines = configuration.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.expect("such a line").to_owned()
    };
    let interface = &tunnel.interface;
    // There is no neighbour that could have the same address.
    space.ip(&[
        "address",
        "add",
        &value("Address"),
        "dev",
        interface,
        "nodad",
    ]);
    space.ip(&["link", "set", interface, "mtu", &value("MTU"), "up"]);
    space.ip(&["route", "add", &value("AllowedIPs"), "dev", interface]);
    tunnel
}

/// Lets the interface work by a configuration.
fn configure(space: &Space, tunnel: &Tunnel, configuration: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join(format!("{}.conf", tunnel.interface));
    std::fs::write(&file, configuration).expect("our directory");
    let stripped = Command::new("wg-quick").arg("strip").arg(&file).output();
    let stripped = stripped.expect("wg-quick runs");
    assert!(stripped.status.success(), "{}", text(&stripped));
    let plain = directory.path().join("stripped");
    std::fs::write(&plain, &stripped.stdout).expect("our directory");
    let mut wg = space.command("wg");
    let set = wg.args(["setconf", &tunnel.interface]).arg(&plain).output();
    let set = set.expect("wg runs");
    assert!(set.status.success(), "{}", text(&set));
}

#[test]
fn a_plain_client_reaches_nodes_by_name_under_the_rules_until_it_is_removed() {
    let Some(network) = network() else {
        return;
    };
    let page = network.serve(At::Beta, "127.0.0.1:0", "from user mode");
    network.publish(At::Beta, "web", 8080, page);
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    network.run(At::Alpha, &["peer", "add", "phone"]);
    let configuration = network.run(At::Alpha, &["peer", "export", "phone"]);
    let here = network.space(At::Alpha);
    let phone = connect(here, &configuration);

    let resolver = configuration
        .lines()
        .find_map(|line| line.strip_prefix("DNS = "));
    let resolver = resolver.and_then(|servers| servers.split(',').next());
    let resolver = resolver.expect("a server").to_owned();
    let resolve = |name: &str| {
        let mut dig = here.command("dig");
        let server = format!("@{resolver}");
        dig.args([&server, "+short", "+time=2", "+tries=5", name, "AAAA"]);
        text(&dig.output().expect("dig runs")).trim().to_owned()
    };
    let beta = network.address("beta");
    within(LONG, "the name is answered", || {
        resolve("beta.internal") == beta.to_string()
    });
    within(LONG, "beta is reached", || here.ping(beta, 1) == 1);
    let url = format!("http://[{beta}]:8080/");
    assert_eq!(network.curl(At::Alpha, &url), "from user mode");

    // Others come, change and go, and not one of its packets is lost.
    let mut ping = here.command("ping");
    ping.args(["-i", "0.02", "-c", "250", "-W", "60", &beta.to_string()]);
    let ping = ping.stdout(Stdio::piped()).spawn().expect("ping runs");
    for _ in 0..5 {
        network.run(At::Alpha, &["peer", "add", "another"]);
        network.run(At::Alpha, &["peer", "export", "another"]);
        network.run(At::Alpha, &["peer", "remove", "another"]);
    }
    let pinged = ping.wait_with_output().expect("ping ends");
    assert_eq!(received(&text(&pinged)), 250, "{}", text(&pinged));

    network.run(At::Alpha, &["policy", "set", "1", "--to", "node:alpha"]);
    within(LONG, "the rule holds for it", || here.ping(beta, 1) == 0);
    network.run(At::Alpha, &["policy", "set", "1", "--to", "machines"]);
    within(LONG, "the rule lets it again", || here.ping(beta, 1) == 1);

    let newer = network.run(At::Alpha, &["peer", "export", "phone"]);
    assert_ne!(newer, configuration, "each export makes a key");
    within(LONG, "the former key works no more", || {
        here.ping(beta, 1) == 0
    });
    configure(here, &phone, &newer);
    within(LONG, "the new one does", || here.ping(beta, 1) == 1);

    network.run(At::Alpha, &["peer", "remove", "phone"]);
    within(LONG, "it is cut off", || here.ping(beta, 1) == 0);
    assert_ne!(resolve("beta.internal"), beta.to_string());
}

#[test]
fn a_device_that_makes_its_own_key_gives_only_the_public_one_away() {
    let Some(network) = network() else {
        return;
    };
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    let private = wg_line(&["genkey"], "");
    let public = wg_line(&["pubkey"], &private);
    let line = ["peer", "add", "router", "--public-key", &public];
    network.run(At::Alpha, &line);
    let exported = network.run(At::Alpha, &["peer", "export", "router"]);
    let own = format!("PrivateKey = {private}");
    let place = exported
        .lines()
        .find(|line| line.starts_with("# PrivateKey"));
    let configuration = exported.replace(place.expect("its place"), &own);
    let here = network.space(At::Alpha);
    let _router = connect(here, &configuration);
    let beta = network.address("beta");
    within(LONG, "beta is reached", || here.ping(beta, 1) == 1);
}
