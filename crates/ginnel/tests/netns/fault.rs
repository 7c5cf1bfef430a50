//! Two offices and two homes whose machines talk without a pause while processes are killed, cables
//! are pulled and addresses change, in an order that a seed draws; nothing that they say leaves a
//! router as it is.
//!
//! ```text
//!   b, d: plain devices, behind the nodes of their offices, see `routed`; b knows by itself that
//!         its node leads to the other office, and its router does not
//!   e: `ginnel up --user`, f: wireguard-go, each behind the NAT of a home of 192.168.1.0/24
//! ```
//!
//! `FAULTS` says how many, `FAULT_SEED` begins another order.

use std::{
    env,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    attachment::{Running, word},
    peer,
    routed::{Office, Scene, nft, plug, switch, translate},
    site::{finish, ginnel, succeeded},
    world::{Apart, GINNEL, LONG, Space, Tunnel, find, lacks, now, unique},
};

/// How soon packets arrive again once a process is killed and started again.
const AFTER_KILL: Duration = Duration::from_secs(6);

/// The same once a cable is back: one second, and one in which the kernel notices.
const AFTER_CABLE: Duration = Duration::from_secs(2);

/// The same once a router has another address.
const AFTER_ADDRESS: Duration = Duration::from_secs(1);

/// How long a cable is out.
const PULLED: Duration = Duration::from_millis(1_500);

/// What is meant for nobody in its LAN leaves a router, as at a provider's.
const DEFAULT_ROUTE: [&str; 5] = ["route", "replace", "default", "via", "10.97.0.1"];

/// How long all goes well before the next fault. The hub writes within a quarter of it where peers
/// are; one that moves and a hub that is killed sooner find each other by WireGuard's timers.
const PEACE: Duration = Duration::from_secs(1);

/// How much longer each may take beside other tests; with `FAULTS` there are none. One initiation
/// may be lost in it.
const COMPANY: Duration = Duration::from_secs(6);

/// The hosts of the hub's network that the homes' routers are at first.
const HOMES: [u8; 2] = [70, 71];

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillServer,
    /// The node of an office.
    KillNode(usize),
    /// The node of e, which has no privileges.
    KillUserMode,
    /// The uplink of an office, or of a home.
    PullCable(usize),
    ChangeAddress(usize),
}

impl Fault {
    const ALL: [Self; 12] = [
        Self::KillServer,
        Self::KillNode(0),
        Self::KillNode(1),
        Self::KillUserMode,
        Self::PullCable(0),
        Self::PullCable(1),
        Self::PullCable(2),
        Self::PullCable(3),
        Self::ChangeAddress(0),
        Self::ChangeAddress(1),
        Self::ChangeAddress(2),
        Self::ChangeAddress(3),
    ];

    fn bound(self) -> Duration {
        match self {
            Self::KillServer | Self::KillNode(_) | Self::KillUserMode => AFTER_KILL,
            Self::PullCable(_) => AFTER_CABLE,
            Self::ChangeAddress(_) => AFTER_ADDRESS,
        }
    }
}

/// A LAN that a router translates, with one machine.
struct Home {
    uplink: String,
    router: Apart,
    machine: Apart,
}

impl Home {
    fn new(hub: &Space, host: u8) -> Self {
        let home = Self {
            uplink: unique("v"),
            router: Apart::new(),
            machine: Apart::new(),
        };
        let (router, machine) = (&home.router.0, &home.machine.0);
        switch(router, [192, 168, 1, 1].into());
        plug(router, machine, &unique("v"), [192, 168, 1, 10]);
        machine.ip(&["route", "add", "default", "via", "192.168.1.1"]);
        translate(hub, router, &home.uplink, host);
        home
    }
}

/// A router to the outside.
struct Edge {
    name: &'static str,
    router: String,
    uplink: String,
    /// Its host in the hub's network.
    host: u8,
}

impl Edge {
    fn space(&self) -> Space {
        Space {
            name: self.router.clone(),
            link: self.uplink.clone(),
        }
    }
}

/// A program that sends an echo request ten times a second.
struct Talk {
    who: &'static str,
    ping: Running,
}

impl Talk {
    fn answers(&self) -> usize {
        self.ping.said().matches("time=").count()
    }
}

/// Everything that runs, with the programs first: they end before their namespaces go.
struct Troubled {
    talks: Vec<Talk>,
    user_mode: Option<Running>,
    _client: Tunnel,
    scene: Scene,
    homes: [Home; 2],
    edges: Vec<Edge>,
}

impl Troubled {
    fn new() -> Option<Self> {
        for tool in ["wireguard-go", "wg-quick", "nft"] {
            if find(tool).is_none() {
                lacks("NETNS", &format!("`{tool}` is not installed"));
                return None;
            }
        }
        let scene = Scene::new()?;
        scene.offices[0].route_by_itself(&scene.offices[1]);
        let homes = HOMES.map(|host| Home::new(&scene.hub.0, host));
        let mut edges: Vec<Edge> = scene.offices.iter().map(office_edge).collect();
        for (name, (home, host)) in ["e", "f"].into_iter().zip(homes.iter().zip(HOMES)) {
            let (router, uplink) = (home.router.0.name.clone(), home.uplink.clone());
            edges.push(Edge {
                name,
                router,
                uplink,
                host,
            });
        }
        for edge in &edges {
            watch(edge);
        }
        let url = word(&scene.running[0].said(), "https://");
        let token = word(&scene.run(&["token", "add"]), "ginnel-join-");
        let line = ["join", &url, "--token", &token, "--name", "e"];
        succeeded(&finish(at_home(&scene, &homes[0], &line)));
        scene.run(&["peer", "add", "f"]);
        let client = scene.run(&["peer", "export", "f"]);
        let client = peer::connect(&homes[1].machine.0, &client);
        let [one, other] = ["site:shenzhen", "site:beijing"];
        for (from, to) in [
            (one, other),
            (other, one),
            ("node:e", one),
            ("node:f", other),
        ] {
            scene.run(&["policy", "add", "--from", from, "--to", to]);
        }
        let mut troubled = Self {
            talks: Vec::new(),
            user_mode: None,
            _client: client,
            scene,
            homes,
            edges,
        };
        troubled.talk();
        Some(troubled)
    }

    /// Lets b and d ask each other, e ask b, and f ask d and e.
    fn talk(&mut self) {
        let [one, other] = &self.scene.offices;
        let network = site_network(&self.scene, other);
        let IpAddr::V4(address) = other.address() else {
            unreachable!("offices have IPv4 addresses")
        };
        let far = Ipv6Addr::from_bits(network.to_bits() | u128::from(address.to_bits()));
        let client = &self.homes[1].machine.0;
        let talks = [
            ("b", &one.device.0, other.address()),
            ("d", &other.device.0, one.address()),
            ("f", client, far.into()),
            ("f of e", client, node_address(&self.scene, "e")),
        ];
        let mut started = Vec::new();
        for (who, space, to) in talks {
            let mut ping = space.command("ping");
            ping.args(["-n", "-i", "0.1", &to.to_string()]);
            let ping = self.scene.start(ping, "");
            started.push(Talk { who, ping });
        }
        self.talks = started;
        self.start_user_mode();
    }

    fn start_user_mode(&mut self) {
        let (scene, home) = (&self.scene, &self.homes[0]);
        let up = scene.start(at_home(scene, home, &["up", "--user"]), "is ready");
        let line = ["ping", "192-168-201-55.shenzhen.site", "-i", "0.1"];
        let ping = scene.start(at_home(scene, home, &line), "");
        self.talks.push(Talk { who: "e", ping });
        self.user_mode = Some(up);
    }

    fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::KillServer => {
                drop(self.scene.running.remove(0));
                let server = self.scene.serve("https://");
                self.scene.running.insert(0, server);
            }
            Fault::KillNode(number) => {
                drop(self.scene.running.remove(1 + number));
                let node = self.scene.up(number);
                self.scene.running.insert(1 + number, node);
            }
            Fault::KillUserMode => {
                // Its ping goes with it.
                self.user_mode = None;
                self.talks.pop();
                self.start_user_mode();
            }
            Fault::PullCable(number) => {
                let edge = &self.edges[number];
                let space = edge.space();
                space.ip(&["link", "set", &edge.uplink, "down"]);
                thread::sleep(PULLED);
                space.ip(&["link", "set", &edge.uplink, "up"]);
                space.ip(&DEFAULT_ROUTE);
            }
            Fault::ChangeAddress(number) => {
                let edge = &mut self.edges[number];
                let address = |host| format!("10.97.0.{host}/24");
                let former = address(edge.host);
                // Two in turn, each of which no other router has.
                edge.host ^= 1 << 5;
                let space = edge.space();
                let (next, uplink) = (address(edge.host), &edge.uplink);
                space.ip(&["address", "delete", &former, "dev", uplink]);
                space.ip(&["address", "add", &next, "dev", uplink]);
                space.ip(&DEFAULT_ROUTE);
            }
        }
    }

    /// How long it takes until every ping is answered again, of which `bound` is the most.
    fn recover(&self, bound: Duration, after: &str) -> Duration {
        let began = now();
        let before: Vec<usize> = self.talks.iter().map(Talk::answers).collect();
        let silent = || {
            let both = self.talks.iter().zip(&before);
            let silent = both.filter(|(talk, before)| talk.answers() <= **before);
            silent.map(|(talk, _)| talk).collect::<Vec<_>>()
        };
        while !silent().is_empty() {
            let waited = now() - began;
            if waited > bound {
                let said = silent().into_iter().map(|Talk { who, ping }| {
                    let said = ping.said();
                    format!("{who} is not answered: {}\n", last_lines(&said))
                });
                panic!(
                    "not within {bound:?} {after}:\n{}",
                    said.collect::<String>()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        now() - began
    }
}

fn last_lines(said: &str) -> &str {
    let start = said.rmatch_indices('\n').nth(5).map_or(0, |(at, _)| at);
    &said[start..]
}

fn office_edge(office: &Office) -> Edge {
    Edge {
        name: office.name,
        router: office.router.0.name.clone(),
        uplink: office.uplink.clone(),
        host: office.net,
    }
}

fn at_home(scene: &Scene, home: &Home, line: &[&str]) -> std::process::Command {
    ginnel(home.machine.0.command(GINNEL), &scene.path("e"), line)
}

fn node_address(scene: &Scene, name: &str) -> IpAddr {
    let shown = scene.run(&["node", "show", name, "--json"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let address = shown["address"].as_str().expect("a text");
    address.parse().expect("an address")
}

/// The IPv6 addresses of an office's hosts, without their IPv4 addresses.
fn site_network(scene: &Scene, office: &Office) -> Ipv6Addr {
    let shown = scene.run(&["site", "show", office.name, "--json"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let network = shown["network"].as_str().expect("a text");
    let network = network.strip_suffix("/96").expect("a /96");
    network.parse().expect("an address")
}

/// Counts at a router what leaves to the outside and is neither a tunnel nor the control plane, nor
/// the router's own word about one, and shows that it does. What the hub sends to the address that
/// a router had before turns round there. A router without a route refuses to the outside what its
/// node asks it at the discard port, whether it has one (RFC 863).
fn watch(edge: &Edge) {
    let uplink = &edge.uplink;
    let space = edge.space();
    space.ip(&DEFAULT_ROUTE);
    let rules = format!(
        "add table inet watch; add counter inet watch leaked; \
         add chain inet watch out {{ type filter hook postrouting priority 300; }}; \
         add rule inet watch out oifname != {uplink} accept; \
         add rule inet watch out iifname {uplink} accept; \
         add rule inet watch out udp dport 51820 accept; \
         add rule inet watch out tcp dport 8443 accept; \
         add rule inet watch out tcp sport 9 tcp flags & rst == rst accept; \
         add rule inet watch out icmp type {{ destination-unreachable, redirect }} accept; \
         add rule inet watch out ip6 daddr ff02::/16 accept; \
         add set inet watch seen {{ type ipv4_addr . ipv4_addr . inet_proto; flags dynamic; }}; \
         add rule inet watch out update @seen {{ ip saddr . ip daddr . ip protocol }}; \
         add rule inet watch out counter name leaked"
    );
    nft(&space, &rules);
    assert_eq!(space.ping(Ipv4Addr::new(10, 97, 0, 1).into(), 1), 1);
    assert_eq!(leaked(edge).0, 1, "what is no tunnel is seen");
}

/// Returns how many packets were counted, and a list of who sent them to whom by IPv4.
fn leaked(edge: &Edge) -> (u64, String) {
    let mut list = edge.space().command("nft");
    list.args(["list", "table", "inet", "watch"]);
    let text = succeeded(&finish(list));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets").expect("a counter");
    let packets = words.next().and_then(|packets| packets.parse().ok());
    (packets.expect("a number"), text)
}

fn given(name: &str, default: u64) -> u64 {
    let text = env::var(name);
    text.map_or(default, |text| text.parse().expect("a number"))
}

/// SplitMix64.
fn draw(seed: &mut u64) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut drawn = *seed;
    drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from(drawn >> 33).expect("31 bits")
}

#[test]
fn machines_talk_on_after_each_fault_and_nothing_they_say_leaves_a_router_as_it_is() {
    let Some(mut troubled) = Troubled::new() else {
        return;
    };
    let (faults, mut seed) = (given("FAULTS", 24), given("FAULT_SEED", 1));
    troubled.recover(LONG, "at first");
    let company = if env::var_os("FAULTS").is_some() {
        Duration::ZERO
    } else {
        COMPANY
    };
    let say = |line: String| writeln!(io::stderr(), "{line}").expect("stderr is open");
    say(format!("{faults} faults of FAULT_SEED={seed}"));
    for number in 0..faults {
        // Each comes once before any comes again.
        let place = usize::try_from(number).expect("few");
        let fault = match Fault::ALL.get(place) {
            Some(fault) => *fault,
            None => Fault::ALL[draw(&mut seed) % Fault::ALL.len()],
        };
        troubled.suffer(fault);
        let took = troubled.recover(
            fault.bound() + company,
            &format!("after fault {number}, {fault:?}"),
        );
        say(format!("{number}: {fault:?}: {took:?}"));
        thread::sleep(PEACE);
    }
    for edge in &troubled.edges {
        let (packets, seen) = leaked(edge);
        assert_eq!(packets, 1, "something else has left {}: {seen}", edge.name);
    }
}
