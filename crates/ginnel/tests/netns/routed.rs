//! Two offices whose plain devices reach each other through one node each, with their own
//! addresses; behind routers that translate addresses to the outside and have one static route. The
//! hub is called at the address that its routing would not choose, and the routers let answers in
//! from nowhere else.
//!
//! ```text
//!   b .55 ─┐                                              ┌─ d .244
//!          ├─ router .1 ── NAT ── hub: server ── NAT ── router .1 ─┤
//!   a .2 ──┘  192.168.201.0/24               192.168.200.0/24      └── c .2
//! ```

use std::{
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
};

use super::{
    attachment::{Running, word},
    site::{finish, ginnel, serve, succeeded},
    world::{Apart, GINNEL, LONG, Space, World, find, lacks, now, text, unique, within},
};

/// The address that routing chooses at the hub, and the one that is its public address.
const HUB: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 97, 0, 1), Ipv4Addr::new(10, 97, 0, 9)];

/// A LAN, its router and NAT, the node in it and a device that has nothing installed.
pub(super) struct Office {
    pub(super) name: &'static str,
    /// Tells the cables to the hub, and the aliases, of the offices apart.
    pub(super) net: u8,
    lan: u8,
    /// Whether others know it by 10.99.`net`.0/24.
    has_alias: bool,
    device_host: u8,
    /// The router's interface to the outside.
    pub(super) uplink: String,
    pub(super) router: Apart,
    pub(super) node: Apart,
    pub(super) device: Apart,
}

pub(super) struct Scene {
    // Programs end before their namespaces go.
    pub(super) running: Vec<Running>,
    directory: tempfile::TempDir,
    pub(super) hub: Apart,
    pub(super) offices: [Office; 2],
}

impl Office {
    fn new(name: &'static str, net: u8, device_host: u8) -> Self {
        let [router, node, device] = [(); 3].map(|()| Apart::new());
        Self {
            name,
            net,
            lan: net,
            has_alias: false,
            device_host,
            uplink: unique("v"),
            router,
            node,
            device,
        }
    }

    fn two() -> [Self; 2] {
        let two = [("shenzhen", 201, 55), ("beijing", 200, 244)];
        two.map(|(name, net, device)| Self::new(name, net, device))
    }

    pub(super) fn host(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.lan, host)
    }

    pub(super) fn address(&self) -> IpAddr {
        self.host(self.device_host).into()
    }

    pub(super) fn prefix(&self) -> String {
        format!("192.168.{}.0/24", self.lan)
    }

    /// The same office in a LAN that others have too, and with an alias.
    fn with_alias(self, lan: u8) -> Self {
        Self {
            lan,
            has_alias: true,
            ..self
        }
    }

    /// By which prefix others know it.
    fn known_as(&self) -> String {
        if self.has_alias {
            format!("10.99.{}.0/24", self.net)
        } else {
            self.prefix()
        }
    }

    /// By which address others know its device.
    pub(super) fn device_known_as(&self) -> IpAddr {
        if self.has_alias {
            Ipv4Addr::new(10, 99, self.net, self.device_host).into()
        } else {
            self.address()
        }
    }

    /// Lays the cables of the LAN, and the one to the hub.
    fn lay(&self, hub: &Space) {
        let router = &self.router.0;
        switch(router, self.host(1));
        for (space, host) in [(&self.node.0, 2), (&self.device.0, self.device_host)] {
            plug(router, space, &unique("v"), self.host(host).octets());
            let gateway = self.host(1).to_string();
            space.ip(&["route", "add", "default", "via", &gateway]);
        }
        translate(hub, router, &self.uplink, self.net);
    }

    /// The one static route of the LAN's router.
    pub(super) fn route(&self, other: &Self) {
        let (prefix, node) = (other.known_as(), self.host(2).to_string());
        self.router.0.ip(&["route", "add", &prefix, "via", &node]);
    }

    /// The route at the device instead, which the router does not know.
    pub(super) fn route_by_itself(&self, other: &Self) {
        let (prefix, node) = (other.known_as(), self.host(2).to_string());
        self.router.0.ip(&["route", "delete", &prefix]);
        self.device.0.ip(&["route", "add", &prefix, "via", &node]);
    }

    fn routes(&self) -> String {
        let mut ip = self.node.0.command("ip");
        ip.args(["-4", "route"]);
        succeeded(&finish(ip))
    }
}

pub(super) fn nft(space: &Space, rules: &str) {
    let mut nft = space.command("nft");
    nft.arg(rules);
    succeeded(&finish(nft));
}

/// Gives a machine a switch of its own.
pub(super) fn switch(space: &Space, address: Ipv4Addr) {
    // Else it has that of a cable, and another one as more are plugged in.
    let [a, b, c, d] = address.octets();
    let ethernet = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    let bridge = ["link", "add", "switch", "address", &ethernet];
    space.ip(&[&bridge[..], &["type", "bridge"]].concat());
    space.ip(&["link", "set", "switch", "up"]);
    space.add_address("switch", address.into());
}

/// Lays a cable from the switch of a machine to another one.
pub(super) fn plug(switch: &Space, space: &Space, link: &str, address: [u8; 4]) {
    let port = unique("v");
    let cable = ["link", "add", &port, "type", "veth", "peer", "name", link];
    switch.ip(&[&cable[..], &["netns", &space.name]].concat());
    switch.ip(&["link", "set", &port, "master", "switch", "up"]);
    space.add_address(link, IpAddr::from(address));
    space.ip(&["link", "set", link, "up"]);
}

/// Connects a router to the hub's network, and translates addresses to there.
pub(super) fn translate(hub: &Space, router: &Space, uplink: &str, host: u8) {
    plug(hub, router, uplink, [10, 97, 0, host]);
    forward(router);
    let rules = "add table ip nat; \
                 add chain ip nat out { type nat hook postrouting priority srcnat; }; \
                 add rule ip nat out ip daddr 10.97.0.0/24 masquerade";
    nft(router, rules);
}

/// Makes a machine a router, as its administrator would.
pub(super) fn forward(space: &Space) {
    let setting = "/proc/sys/net/ipv4/ip_forward";
    space.enter(|| fs::write(setting, "1").expect("root"));
}

impl Scene {
    pub(super) fn new() -> Option<Self> {
        Self::with("routed")
    }

    /// The offices with sites in this mode.
    pub(super) fn with(mode: &str) -> Option<Self> {
        Self::of(mode, Office::two)
    }

    /// The offices before anything of ginnel has run.
    pub(super) fn laid() -> Option<Self> {
        Self::lay(Office::two)
    }

    /// Routed offices that both have the same prefix, and aliases.
    pub(super) fn with_aliases() -> Option<Self> {
        let offices = || Office::two().map(|office| office.with_alias(1));
        Self::of("routed", offices)
    }

    fn of(mode: &str, offices: impl FnOnce() -> [Office; 2]) -> Option<Self> {
        let mut scene = Self::lay(offices)?;
        scene.enrol(mode);
        Some(scene)
    }

    fn lay(offices: impl FnOnce() -> [Office; 2]) -> Option<Self> {
        for tool in ["curl", "nft"] {
            if find(tool).is_none() {
                lacks("NETNS", &format!("`{tool}` is not installed"));
                return None;
            }
        }
        // It says why if this machine has no namespaces.
        drop(World::new()?);
        let scene = Self {
            running: Vec::new(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            hub: Apart::new(),
            offices: offices(),
        };
        switch(&scene.hub.0, HUB[0]);
        scene.hub.0.add_address("switch", HUB[1].into());
        let [one, other] = &scene.offices;
        for (office, far) in [(one, other), (other, one)] {
            office.lay(&scene.hub.0);
            office.route(far);
            forward(&office.node.0);
        }
        Some(scene)
    }

    pub(super) fn enrol(&mut self, mode: &str) {
        let server = self.serve("ginnel-login-");
        let url = word(&server.said(), "https://");
        let admin = word(&server.said(), "ginnel-login-");
        self.running.push(server);
        self.run(&["login", &url, "--token", &admin, "--name", "laptop"]);
        for number in 0..self.offices.len() {
            let token = word(&self.run(&["token", "add"]), "ginnel-join-");
            let Office { name, .. } = self.offices[number];
            let prefix = self.offices[number].prefix();
            let line = ["join", &url, "--token", &token, "--name", name];
            succeeded(&finish(self.at_office(number, &line)));
            let line = ["site", "add", name, "--node", name, "--prefix", &prefix];
            let alias = self.offices[number].known_as();
            let alias: &[&str] = if self.offices[number].has_alias {
                &["--alias", &alias]
            } else {
                &[]
            };
            self.run(&[&line[..], &["--mode", mode], alias].concat());
            let up = self.up(number);
            self.running.push(up);
        }
    }

    /// Starts the server, which says `sign`.
    pub(super) fn serve(&self, sign: &str) -> Running {
        let mut server = self.hub.0.command(GINNEL);
        server.args(["server", "--listen", "0.0.0.0:8443"]);
        server.args(["--wireguard", "0.0.0.0:51820", "--public", "10.97.0.9:8443"]);
        server.arg("--data").arg(self.path("data"));
        self.start(server, sign)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn start(&self, mut command: Command, sign: &str) -> Running {
        Running::spawn(&mut command, self.path(&unique("log")), sign)
    }

    pub(super) fn up(&self, number: usize) -> Running {
        self.start(self.at_office(number, &["up", "--tun"]), "is ready")
    }

    pub(super) fn up_in_user_mode(&self, number: usize) -> Running {
        self.start(self.at_office(number, &["up", "--user"]), "is ready")
    }

    fn up_except_lan(&self, number: usize) -> Running {
        let line = ["up", "--tun", "--except-lan"];
        self.start(self.at_office(number, &line), "is ready")
    }

    /// A command of the administrator, who is somewhere else.
    pub(super) fn command(&self, line: &[&str]) -> Command {
        ginnel(self.hub.0.command(GINNEL), &self.path("laptop"), line)
    }

    /// Runs a command of the administrator, which has to succeed.
    #[track_caller]
    pub(super) fn run(&self, line: &[&str]) -> String {
        succeeded(&finish(self.command(line)))
    }

    pub(super) fn at_office(&self, number: usize, line: &[&str]) -> Command {
        let Office { name, node, .. } = &self.offices[number];
        ginnel(node.0.command(GINNEL), &self.path(name), line)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The administrator's agent was started on demand.
        self.command(&["logout", "--force"]).output().ok();
    }
}

pub(super) fn curl(space: &Space, host: IpAddr) -> String {
    let mut curl = space.command("curl");
    curl.args(["-sS", "-m", "60", &format!("http://{host}/")]);
    text(&finish(curl))
}

/// Sends datagrams, the last one in fragments, which come back from whoever they seem to come from.
fn exchange(from: &Space, to: &Space, own: IpAddr, far: IpAddr) {
    let bound = |space: &Space, address| {
        let socket = space.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)));
        let socket = socket.expect("a free port");
        socket.set_read_timeout(Some(LONG)).expect("a bound");
        socket
    };
    let (near, distant) = (bound(from, own), bound(to, far));
    let port = distant.local_addr().expect("it is bound").port();
    let lengths = [1, 1000, 4000];
    let echo = thread::spawn(move || {
        for _ in lengths {
            let mut datagram = [0; 8192];
            let (length, peer) = distant.recv_from(&mut datagram).expect("it arrives");
            assert_eq!(peer.ip(), own, "its own address");
            let sent = distant.send_to(&datagram[..length], peer);
            sent.expect("it leaves");
        }
    });
    for length in lengths {
        let sent: Vec<u8> = (0..length).map(|n: usize| n.to_le_bytes()[n % 2]).collect();
        near.send_to(&sent, (far, port)).expect("it leaves");
        let mut datagram = [0; 8192];
        let (length, peer) = near.recv_from(&mut datagram).expect("it comes back");
        assert_eq!((&datagram[..length], peer.ip()), (&sent[..], far));
    }
    echo.join().expect("the echo ends well");
}

/// Lets devices of both offices, which may reach each other, do so by every protocol.
fn meet([one, other]: &[Office; 2]) {
    for (near, far) in [(one, other), (other, one)] {
        let page = curl(&near.device.0, far.address());
        assert_eq!(page, format!("{} sees {}", far.name, near.address()));
        let (from, to) = (&near.device.0, &far.device.0);
        exchange(from, to, near.address(), far.address());
        from.transfer(to, far.address(), 1_000_000);
    }
    // Nobody listens: the host's own refusal comes back, not silence.
    let refused = {
        let mut curl = one.device.0.command("curl");
        curl.args([
            "-sS",
            "-m",
            "60",
            &format!("http://{}:81/", other.address()),
        ]);
        text(&finish(curl))
    };
    assert!(refused.contains("Failed to connect"), "{refused}");
    assert!(!refused.contains("timed out"), "{refused}");
}

#[test]
fn plain_devices_of_two_offices_reach_each_other_and_see_true_addresses() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let [one, other] = &scene.offices;
    for office in &scene.offices {
        serve(
            &office.device.0,
            (office.host(office.device_host), 80).into(),
            office.name,
        );
    }
    let ping = |from: &Office, to: &Office| from.device.0.ping(to.address(), 1);
    // What one rule lets through shows that the path is there for what none does.
    let rule = [
        "policy",
        "add",
        "--from",
        "site:shenzhen",
        "--to",
        "site:beijing",
    ];
    scene.run(&rule);
    within(LONG, "b reaches d", || ping(one, other) == 1);
    assert_eq!(ping(other, one), 0, "no rule lets d reach b");
    let rule = [
        "policy",
        "add",
        "--from",
        "site:beijing",
        "--to",
        "site:shenzhen",
    ];
    scene.run(&[&rule[..], &["--comment", "call back"]].concat());
    within(LONG, "d reaches b", || ping(other, one) == 1);
    meet(&scene.offices);
    // Everybody else is served as ever, by connections of the node.
    let line = [
        "policy",
        "add",
        "--from",
        "role:admin",
        "--to",
        "site:beijing",
    ];
    scene.run(&line);
    within(LONG, "a person reaches d", || {
        let line = ["ping", "192-168-200-244.beijing.site", "-c", "1"];
        finish(scene.command(&line)).status.success()
    });
    // Without its rule the site is closed again, for conversations that stand too.
    let rules = scene.run(&["policy", "list", "--json"]);
    let rules: serde_json::Value = serde_json::from_str(&rules).expect("JSON");
    let rules = rules.as_array().expect("a list");
    let rule = rules.iter().find(|rule| rule["comment"] == "call back");
    let id = rule.expect("the rule")["id"].to_string();
    scene.run(&["policy", "remove", &id]);
    within(LONG, "d is refused", || ping(other, one) == 0);
    within(LONG, "b still reaches d", || ping(one, other) == 1);
}

/// Offices whose uplinks carry packets of `mtu` bytes, and where nobody is told what is too long.
fn with_silent_uplinks(mtu: u16) -> Option<Scene> {
    let mut scene = Scene::new()?;
    // The nodes look at their paths when they start; the server goes on.
    scene.running.truncate(1);
    for (from, to) in [("shenzhen", "beijing"), ("beijing", "shenzhen")] {
        let (from, to) = (format!("site:{from}"), format!("site:{to}"));
        scene.run(&["policy", "add", "--from", &from, "--to", &to]);
    }
    for office in &scene.offices {
        let Office { router, node, .. } = office;
        let mtu = mtu.to_string();
        router.0.ip(&["link", "set", &office.uplink, "mtu", &mtu]);
        for space in [&router.0, &node.0, &office.device.0] {
            nft(
                space,
                "add table ip deaf; \
                 add chain ip deaf in { type filter hook input priority 0; }; \
                 add rule ip deaf in icmp type destination-unreachable drop; \
                 add chain ip deaf out { type filter hook output priority 0; }; \
                 add rule ip deaf out icmp type destination-unreachable drop",
            );
        }
    }
    for number in 0..scene.offices.len() {
        let up = scene.up(number);
        scene.running.push(up);
    }
    let [one, other] = &scene.offices;
    for (near, far) in [(one, other), (other, one)] {
        within(LONG, "the far device is reached", || {
            near.device.0.ping(far.address(), 1) == 1
        });
    }
    Some(scene)
}

/// Waits until both nodes know what their paths carry.
fn find_path_mtu(scene: &Scene, expected: u64) {
    for number in 0..scene.offices.len() {
        within(LONG, "the path MTU is found", || {
            let status = finish(scene.at_office(number, &["status", "--json"]));
            let status = serde_json::from_str(&succeeded(&status));
            let status: serde_json::Value = status.expect("JSON");
            status["node"]["peers"][0]["path_mtu_bytes"] == expected
        });
    }
}

/// Segments that a machine has sent, and how many of them again.
fn segments(space: &Space) -> [u64; 2] {
    let file = space.enter(|| fs::read_to_string("/proc/thread-self/net/snmp"));
    let file = file.expect("the kernel counts");
    let mut lines = file.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    ["OutSegs", "RetransSegs"].map(|wanted| {
        let place = names.split(' ').position(|name| name == wanted);
        let value = place.and_then(|place| values.split(' ').nth(place));
        value.expect(wanted).parse().expect("a number")
    })
}

#[test]
fn a_path_whose_mtu_nobody_is_told_carries_a_transfer() {
    let Some(scene) = with_silent_uplinks(1400) else {
        return;
    };
    // IPv4, UDP and WireGuard have 60 bytes, and packets are padded to 16.
    find_path_mtu(&scene, 1328);
    let [one, other] = &scene.offices;
    for (near, far) in [(one, other), (other, one)] {
        let (from, to) = (&near.device.0, &far.device.0);
        // Nor does anybody hear that the tunnel carries less than the LAN.
        let mut ping = from.command("ping");
        ping.args(["-n", "-M", "do", "-s", "1400", "-c", "1", "-W", "1"]);
        ping.arg(far.address().to_string());
        let lost = text(&finish(ping));
        assert!(lost.contains("100% packet loss"), "{lost}");
        assert!(!lost.contains("rror"), "nobody says why: {lost}");
        from.transfer(to, far.address(), 10_000_000);
    }
}

#[test]
fn a_path_that_carries_less_than_the_tunnel_is_found_and_needs_no_fragments() {
    let Some(scene) = with_silent_uplinks(1270) else {
        return;
    };
    // IPv4, UDP and WireGuard have 60 bytes, and packets are padded to 16.
    find_path_mtu(&scene, 1200);
    let hub = &scene.hub.0;
    nft(
        hub,
        "add table ip seen; \
         add chain ip seen in { type filter hook prerouting priority -450; }; \
         add rule ip seen in ip frag-off & 0x3fff != 0 counter",
    );
    let [one, other] = &scene.offices;
    // First as it is, then with the segment size set right by hand.
    let mut took = Vec::new();
    for by_hand in [false, true] {
        if by_hand {
            for office in &scene.offices {
                let gateway = office.host(1).to_string();
                let line = ["route", "change", "default", "via", &gateway];
                office
                    .device
                    .0
                    .ip(&[&line[..], &["advmss", "1150"]].concat());
            }
        }
        let began = now();
        for (near, far) in [(one, other), (other, one)] {
            let (from, to) = (&near.device.0, &far.device.0);
            let [sent, again] = segments(from);
            from.transfer(to, far.address(), 10_000_000);
            let [all, retransmitted] = segments(from);
            let (sent, again) = (all - sent, retransmitted - again);
            assert!(again * 4 < sent, "{again} of {sent} are retransmissions");
        }
        took.push(now() - began);
    }
    let mut list = hub.command("nft");
    list.args(["list", "table", "ip", "seen"]);
    let seen = succeeded(&finish(list));
    assert!(seen.contains("counter packets 0 "), "{seen}");
    let said = writeln!(
        io::stderr().lock(),
        "40 MB over a path of 1270 bytes: {:?}, with the segment size set by hand {:?}",
        took[0],
        took[1]
    );
    said.expect("stderr is open");
}

#[test]
fn a_prefix_that_is_routed_elsewhere_is_named_and_left_alone() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let route = "192.168.201.0/24 dev ginnel0";
    let routed = |scene: &Scene| scene.offices[1].routes().contains(route);
    within(LONG, "the route is there", || routed(&scene));
    drop(scene.running.pop());
    within(LONG, "it goes with the program", || !routed(&scene));
    // Another network of that machine has some of the addresses.
    let taken = ["route", "add", "192.168.201.128/25", "via", "192.168.200.1"];
    scene.offices[1].node.0.ip(&taken);
    let up = scene.up(1);
    within(LONG, "the conflict is named", || {
        up.said().contains(
            "192.168.201.0/24 of a site is routed elsewhere on this machine: 192.168.201.128/25",
        )
    });
    assert!(up.said().contains("--except-lan"), "{}", up.said());
    assert!(!routed(&scene));
    let doctor = finish(scene.at_office(1, &["doctor", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let finding = &report["finding"];
    assert_eq!(finding["code"], "route_conflict", "{report}");
    let message = finding["message"].as_str().expect("a text");
    assert!(message.contains("192.168.201.128/25"), "{message}");
    drop(up);
    let up = scene.up_except_lan(1);
    within(LONG, "the rest is routed", || routed(&scene));
    scene.running.push(up);
    let way = |host: &str| {
        let mut ip = scene.offices[1].node.0.command("ip");
        ip.args(["route", "get", host]);
        succeeded(&finish(ip))
    };
    let (rest, kept) = (way("192.168.201.55"), way("192.168.201.200"));
    assert!(rest.contains("dev ginnel0"), "{rest}");
    assert!(kept.contains("via 192.168.200.1"), "{kept}");
    let line = [
        "policy",
        "add",
        "--from",
        "site:beijing",
        "--to",
        "site:shenzhen",
    ];
    scene.run(&line);
    let [one, other] = &scene.offices;
    within(LONG, "d reaches b, which has one of the rest", || {
        other.device.0.ping(one.address(), 1) == 1
    });
}
