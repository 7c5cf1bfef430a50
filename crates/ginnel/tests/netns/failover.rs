//! An office with two nodes, of which one carries the site: it is killed, and it loses its LAN,
//! while somebody elsewhere pings a device without a pause.
//!
//! ```text
//!                      ┌─ c  .2 ─┐
//!   laptop, hub: server┤         ├─ switch of d .244    192.168.200.0/24
//!                      └─ c2 .3 ─┘
//! ```

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::{
    attachment::{Running, word},
    routed::{forward, plug, switch},
    site::{finish, ginnel, join, succeeded},
    world::{Apart, GINNEL, LONG, World, unique, within},
};

/// A machine that leads to the LAN.
struct Member {
    name: &'static str,
    /// Its interface in the LAN.
    lan: String,
    space: Apart,
}

struct Scene {
    // Programs end before their namespaces go.
    server: Option<Running>,
    up: [Option<Running>; 2],
    directory: tempfile::TempDir,
    hub: Apart,
    members: [Member; 2],
    device: Apart,
}

const DEVICE: &str = "192-168-200-244.beijing.site";

/// Echo requests in ten seconds; so many of them are in less than five.
const INTERVAL: &str = "0.1";
const LOST_MAX: usize = 49;

impl Scene {
    fn new() -> Option<Self> {
        // It says why if this machine has no namespaces.
        drop(World::new()?);
        let member = |name| Member {
            name,
            lan: unique("v"),
            space: Apart::new(),
        };
        let mut scene = Self {
            server: None,
            up: [None, None],
            directory: tempfile::tempdir().expect("a temporary directory"),
            hub: Apart::new(),
            members: [member("c"), member("c2")],
            device: Apart::new(),
        };
        switch(&scene.device.0, [192, 168, 200, 244].into());
        for (number, member) in (1..).zip(&scene.members) {
            let space = &member.space.0;
            join(
                &scene.hub.0,
                [10, 97, number, 1],
                space,
                [10, 97, number, 2],
            );
            let gateway = format!("10.97.{number}.1");
            space.ip(&["route", "add", "10.97.0.0/16", "via", &gateway]);
            let address = [192, 168, 200, number + 1];
            plug(&scene.device.0, space, &member.lan, address);
            forward(space);
            // The kernel tells that the link is there up to a second late.
            within(LONG, "the link to the LAN", || {
                let mut show = space.command("ip");
                show.args(["link", "show", "dev", &member.lan]);
                String::from_utf8_lossy(&finish(show).stdout).contains("state UP")
            });
        }
        scene.enrol();
        Some(scene)
    }

    fn enrol(&mut self) {
        let mut server = self.hub.0.command(GINNEL);
        server.args(["server", "--listen", "0.0.0.0:8443"]);
        server.args(["--wireguard", "0.0.0.0:51820", "--public", "10.97.1.1:8443"]);
        server.arg("--data").arg(self.path("data"));
        let server = self.start(server, "ginnel-login-");
        let url = word(&server.said(), "https://");
        let admin = word(&server.said(), "ginnel-login-");
        self.server = Some(server);
        self.run(&["login", &url, "--token", &admin, "--name", "laptop"]);
        for number in 0..2 {
            let token = word(&self.run(&["token", "add"]), "ginnel-join-");
            let name = self.members[number].name;
            let join = ["join", &url, "--token", &token, "--name", name];
            succeeded(&finish(self.at(number, &join)));
        }
        let prefix = ["--prefix", "192.168.200.0/24", "--mode", "routed"];
        let add = ["site", "add", "beijing", "--node", "c", "--node", "c2"];
        self.run(&[&add[..], &prefix].concat());
        // Whoever leads to the office routes this one's addresses into its interface.
        let prefix = ["--prefix", "192.168.201.0/24", "--mode", "routed"];
        let add = ["site", "add", "home", "--node", "laptop"];
        self.run(&[&add[..], &prefix].concat());
        let rule = ["--from", "node:laptop", "--to", "site:beijing"];
        self.run(&[&["policy", "add"][..], &rule].concat());
        for number in 0..2 {
            self.up(number);
        }
        within(LONG, "c carries the site, and c2 could", || {
            self.nodes() == [(true, "healthy".to_owned()), (false, "healthy".to_owned())]
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, mut command: Command, sign: &str) -> Running {
        Running::spawn(&mut command, self.path(&unique("log")), sign)
    }

    fn up(&mut self, number: usize) {
        let up = self.start(self.at(number, &["up", "--tun"]), "is ready");
        self.up[number] = Some(up);
    }

    /// A command of the administrator, who is somewhere else.
    fn command(&self, line: &[&str]) -> Command {
        ginnel(self.hub.0.command(GINNEL), &self.path("laptop"), line)
    }

    #[track_caller]
    fn run(&self, line: &[&str]) -> String {
        succeeded(&finish(self.command(line)))
    }

    fn at(&self, number: usize, line: &[&str]) -> Command {
        let Member { name, space, .. } = &self.members[number];
        ginnel(space.0.command(GINNEL), &self.path(name), line)
    }

    /// What the control plane says of both: who carries the site, and how each is.
    fn nodes(&self) -> Vec<(bool, String)> {
        let site = self.run(&["site", "show", "beijing", "--json"]);
        let site: Value = serde_json::from_str(&site).expect("JSON");
        let nodes = site["nodes"].as_array().expect("a list");
        let told = nodes.iter().map(|node| {
            let health = node["health"].as_str().unwrap_or_default();
            (node["carries"] == true, health.to_owned())
        });
        told.collect()
    }

    fn carries(&self, number: usize) -> bool {
        self.nodes()[number].0
    }

    /// Lines of the server's log that say that another node has become the carrier.
    fn moves(&self) -> Vec<String> {
        let server = self.server.as_ref().expect("it runs");
        let said = server.said();
        let moves = said
            .lines()
            .filter(|line| line.contains("another node carries it"));
        moves.map(str::to_owned).collect()
    }

    /// Pings the device without a pause.
    fn ping(&self) -> Running {
        self.start(self.command(&["ping", DEVICE, "-i", INTERVAL]), "time=")
    }

    /// Follows the events of c, as JSON, and those of c2.
    fn follow(&self) -> [Running; 2] {
        let commands = [self.at(0, &["events", "--json"]), self.at(1, &["events"])];
        commands.map(|command| self.start(command, ""))
    }

    /// The routes and rules of a machine.
    fn routes(&self, number: usize) -> String {
        let list = |what: &[&str]| {
            let mut ip = self.members[number].space.0.command("ip");
            ip.args(what);
            succeeded(&finish(ip))
        };
        list(&["-4", "route"]) + &list(&["-4", "rule"]) + &list(&["-6", "rule"])
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The administrator's agent was started on demand.
        self.command(&["logout", "--force"]).output().ok();
    }
}

/// Which echo requests were answered, by their order.
fn answered(ping: &Running) -> Vec<usize> {
    let said = ping.said();
    let answers = said.lines().filter(|line| line.contains("time="));
    let number = |line: &str| {
        let text = line
            .split_whitespace()
            .find(|word| word.starts_with("seq="));
        text?.strip_prefix("seq=")?.parse().ok()
    };
    let mut answered: Vec<usize> = answers.filter_map(number).collect();
    answered.sort_unstable();
    answered
}

/// Waits until the device has answered some more requests, and returns how many at most were lost
/// in a row.
fn lost(ping: &Running) -> usize {
    let before = answered(ping).len();
    within(LONG, "the device answers", || {
        answered(ping).len() >= before + 10
    });
    let answered = answered(ping);
    let gaps = answered.windows(2).map(|pair| pair[1] - pair[0] - 1);
    gaps.max().unwrap_or_default()
}

#[test]
fn a_site_outlives_the_node_that_carries_it_and_no_route_leads_to_what_is_gone() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let ping = scene.ping();
    within(LONG, "the other site is routed", || {
        scene.routes(0).contains("192.168.201.0/24 dev")
    });
    let routes = scene.routes(0);
    // What it has is gone at once: nothing of it can clean up.
    drop(scene.up[0].take());
    within(LONG, "c2 carries the site", || scene.carries(1));
    assert_eq!(scene.nodes()[0].1, "silent");
    let gap = lost(&ping);
    assert!(gap <= LOST_MAX, "{gap} in a row were lost");
    let left = scene.routes(0);
    assert!(left.contains("unreachable 192.168.201.0/24"), "{left}");
    assert!(!left.contains("192.168.201.0/24 dev"), "{left}");
    let shown = scene.run(&["site", "show", "beijing"]);
    for part in ["c (does not answer the gateway)", "c2 (carries it)"] {
        assert!(shown.contains(part), "{shown}");
    }

    scene.up(0);
    within(LONG, "c carries the site again", || scene.carries(0));
    within(LONG, "it has what it had", || scene.routes(0) == routes);
    let gap = lost(&ping);
    assert!(gap <= LOST_MAX, "{gap} in a row were lost");
    let moves = scene.moves();
    assert_eq!(moves.len(), 2, "to c2 and back: {moves:#?}");
}

#[test]
fn a_node_whose_lan_is_gone_hands_the_site_over_though_its_tunnel_stands() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let ping = scene.ping();
    let events = scene.follow();
    let Member { space, lan, .. } = &scene.members[0];
    space.0.ip(&["link", "set", lan, "down"]);
    within(LONG, "c2 carries the site", || scene.carries(1));
    let gap = lost(&ping);
    assert!(gap <= LOST_MAX, "{gap} in a row were lost");
    assert_eq!(scene.nodes()[0].1, "no_lan");
    for number in 0..2 {
        // The nodes hear of it with the next probe.
        within(LONG, "the nodes know who carries the site", || {
            let shown = succeeded(&finish(scene.at(number, &["status"])));
            shown.contains("node c: has no working interface in the LAN")
                && shown.contains("node c2: healthy, carries it")
        });
    }
    let doctor = finish(scene.at(1, &["doctor", "--json"])).stdout;
    let doctor: Value = serde_json::from_slice(&doctor).expect("JSON");
    assert_eq!(doctor["finding"]["code"], "site_node_down", "{doctor}");

    space.0.ip(&["link", "set", lan, "up"]);
    within(LONG, "c carries the site again", || scene.carries(0));
    for (follower, event) in events.iter().zip([
        r#""event":"site_moved""#,
        "site beijing: c carries it, no longer c2, which is not the preferred one",
    ]) {
        within(LONG, event, || follower.said().contains(event));
    }
    let forwarding = "/proc/sys/net/ipv4/conf/all/forwarding";
    space.0.enter(|| fs::write(forwarding, "0").expect("root"));
    within(LONG, "c says that it does not forward", || {
        scene.nodes()[0].1 == "not_forwarding" && scene.carries(1)
    });
    let gap = lost(&ping);
    assert!(gap <= LOST_MAX, "{gap} in a row were lost");
    let moves = scene.moves();
    assert_eq!(moves.len(), 3, "to c2, back, and to c2: {moves:#?}");
}
