//! Two offices whose nodes find out by themselves whether answers of plain devices come back, in
//! each way in which their LANs may be set up; the offices are those of `routed`.
//!
//! A router forwards what one device of its LAN sends to another like everything else: with its
//! connection tracking, and telling the device of the shorter way only where a row says so.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    routed::{Office, Scene, curl, nft},
    site::{finish, serve, succeeded},
    world::{LONG, Space, text, within},
};

/// One way to set up the LANs, and what becomes of it; first that of b and a, then that of d and c.
struct Row {
    name: &'static str,
    /// The LAN's router has a route to the other one by the node.
    routes: [bool; 2],
    /// The device has it itself.
    device_routes: [bool; 2],
    /// Routers drop what belongs to no connection that they know.
    stateful: bool,
    /// Routers tell of shorter ways, and devices listen.
    redirects: bool,
    /// Nodes and the hub take packets only where they would send the answer (RFC 3704, 2.2).
    strict: bool,
    found: [&'static str; 2],
    /// Whose address d sees when b calls it, and b when d does; nobody's when the call fails.
    callers: [Caller; 2],
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Caller {
    Nobody,
    /// The node of the called one's LAN.
    Node,
    /// The device itself.
    Device,
    /// The node's if the router tells the caller of the shorter way: it falls silent after nine
    /// redirects to one device (net/ipv4/route.c, `ip_rt_redirect_number`).
    Chance,
}

const PLAIN: Row = Row {
    name: "static routes",
    routes: [true; 2],
    device_routes: [false; 2],
    stateful: false,
    redirects: false,
    strict: false,
    found: ["present"; 2],
    callers: [Caller::Device; 2],
};

const ROWS: [Row; 8] = [
    PLAIN,
    Row {
        name: "no static route",
        routes: [false; 2],
        found: ["missing"; 2],
        callers: [Caller::Nobody; 2],
        ..PLAIN
    },
    Row {
        name: "a static route at one side",
        routes: [true, false],
        found: ["present", "missing"],
        callers: [Caller::Node, Caller::Nobody],
        ..PLAIN
    },
    Row {
        name: "static routes and stateful routers",
        stateful: true,
        found: ["triangle"; 2],
        callers: [Caller::Nobody; 2],
        ..PLAIN
    },
    Row {
        name: "the same, and a route on b, as DHCP gives it",
        stateful: true,
        device_routes: [true, false],
        found: ["present", "triangle"],
        callers: [Caller::Node, Caller::Nobody],
        ..PLAIN
    },
    Row {
        name: "routes on both devices alone",
        routes: [false; 2],
        device_routes: [true; 2],
        ..PLAIN
    },
    Row {
        name: "static routes, stateful routers that tell of the shorter way",
        stateful: true,
        redirects: true,
        // Linux heeds a redirect about a connection that it opens, and not about one that it is
        // about to accept (net/ipv4/tcp_ipv4.c, `tcp_v4_err`).
        found: ["triangle"; 2],
        callers: [Caller::Chance; 2],
        ..PLAIN
    },
    Row {
        name: "static routes and strict reverse path filters",
        strict: true,
        ..PLAIN
    },
];

impl Row {
    fn set_up(&self, scene: &Scene) {
        let [one, other] = &scene.offices;
        for (number, (near, far)) in [(one, other), (other, one)].into_iter().enumerate() {
            let Office {
                router,
                node,
                device,
                ..
            } = near;
            // Its switch is no firewall, whatever this kernel's bridges are by default.
            let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            router.0.enter(|| fs::write(bridged, "0").ok());
            set_route(&router.0, near, far, self.routes[number]);
            set_route(&device.0, near, far, self.device_routes[number]);
            nft(&router.0, "add table ip state; delete table ip state");
            if self.stateful {
                let rules = "add table ip state; \
                    add chain ip state f { type filter hook forward priority 0; }; \
                    add rule ip state f ct state invalid drop";
                nft(&router.0, rules);
            }
            let redirects = if self.redirects { "1" } else { "0" };
            for setting in ["all", "default", "switch"] {
                set(&router.0, setting, "send_redirects", redirects);
            }
            set(&device.0, "all", "accept_redirects", redirects);
            for place in [&router.0, &device.0, &node.0] {
                place.ip(&["route", "flush", "cache"]);
            }
            set(
                &node.0,
                "all",
                "rp_filter",
                if self.strict { "1" } else { "0" },
            );
            // It knows the device, and the device it.
            assert_eq!(node.0.ping(near.address(), 1), 1, "{}", self.name);
        }
        set(
            &scene.hub.0,
            "all",
            "rp_filter",
            if self.strict { "1" } else { "0" },
        );
    }
}

fn set(space: &Space, interface: &str, setting: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{setting}");
    space.enter(|| fs::write(&path, value).expect("root"));
}

/// Gives a machine of a LAN the route to the other one, or takes it.
fn set_route(space: &Space, near: &Office, far: &Office, wanted: bool) {
    let (prefix, node) = (far.prefix(), near.host(2).to_string());
    let mut ip = space.command("ip");
    if wanted {
        ip.args(["route", "replace", &prefix, "via", &node]);
        succeeded(&finish(ip));
    } else {
        ip.args(["route", "del", &prefix, "via", &node]);
        // There may be none.
        finish(ip);
    }
}

fn rules(scene: &Scene) {
    for (from, to) in [
        ("site:shenzhen", "site:beijing"),
        ("site:beijing", "site:shenzhen"),
        ("role:admin", "site:beijing"),
    ] {
        scene.run(&["policy", "add", "--from", from, "--to", to]);
    }
}

fn status(scene: &Scene, number: usize) -> Value {
    let status = succeeded(&finish(scene.at_office(number, &["status", "--json"])));
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["sites"][0].clone()
}

fn doctor(scene: &Scene, number: usize) -> Value {
    let output = finish(scene.at_office(number, &["doctor", "--json"]));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What the far device sees of a call, if that succeeds soon.
fn call(from: &Office, to: &Office) -> String {
    let mut curl = from.device.0.command("curl");
    curl.args(["-sS", "-m", "5", &format!("http://{}/", to.address())]);
    text(&finish(curl))
}

#[test]
fn each_way_to_set_up_the_lans_is_recognised_and_served_as_well_as_can_be() {
    let Some(mut scene) = Scene::with("auto") else {
        return;
    };
    rules(&scene);
    for office in &scene.offices {
        let port = (office.address(), 80).into();
        serve(&office.device.0, port, office.name);
    }
    for row in &ROWS {
        let name = row.name;
        // The server stays.
        scene.running.truncate(1);
        row.set_up(&scene);
        for number in 0..2 {
            let up = scene.up(number);
            scene.running.push(up);
        }
        for (number, found) in row.found.into_iter().enumerate() {
            let what = format!("{name}: {found} at {number}");
            within(LONG, &what, || {
                status(&scene, number)["return_path"] == found
            });
            let site = status(&scene, number);
            let routed = found == "present";
            let in_force = if routed { "routed" } else { "masquerade" };
            assert_eq!(site["in_force"], in_force, "{name}: {site}");
            let report = doctor(&scene, number);
            let code = match found {
                "missing" => Value::from("no_return_route"),
                "triangle" => Value::from("triangle"),
                _ => Value::Null,
            };
            assert_eq!(report["finding"]["code"], code, "{name}: {report}");
        }
        let [one, other] = &scene.offices;
        for ((from, to), caller) in [(one, other), (other, one)].into_iter().zip(row.callers) {
            let seen: IpAddr = match caller {
                Caller::Nobody => {
                    let said = call(from, to);
                    assert!(!said.contains("sees"), "{name}: {said}");
                    continue;
                }
                Caller::Chance => continue,
                Caller::Node => to.host(2).into(),
                Caller::Device => from.address(),
            };
            let expected = format!("{} sees {seen}", to.name);
            within(LONG, &format!("{name}: {expected}"), || {
                call(from, to) == expected
            });
        }
        // Whoever is in no LAN reaches the devices in every case.
        within(LONG, &format!("{name}: a person reaches d"), || {
            let line = ["ping", "192-168-200-244.beijing.site", "-c", "1"];
            finish(scene.command(&line)).status.success()
        });
    }
}

/// A device's program that gives back what it gets.
fn echo(space: &Space, address: SocketAddr) {
    let listener = space.enter(|| TcpListener::bind(address).expect("a free port"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                std::io::copy(&mut from, &mut to).ok();
            });
        }
    });
}

fn speak(mut stream: &TcpStream, word: &[u8]) {
    stream.write_all(word).expect("it goes on");
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard).expect("it goes on");
    assert_eq!(heard, word);
}

#[test]
fn a_node_that_shall_route_and_does_not_is_told() {
    let Some(mut scene) = Scene::with("routed") else {
        return;
    };
    let tells = |scene: &Scene, code: &str| {
        let mut report = Value::Null;
        // A node is ready before it has looked at its site.
        within(LONG, code, || {
            report = doctor(scene, 1);
            report["finding"]["code"] == code
        });
        let failed = |step: &&Value| step["outcome"] == "failed";
        let steps = report["steps"].as_array().expect("a list");
        let failed = steps.iter().find(failed).expect("one fails");
        assert_eq!(failed["name"], "own_sites", "{report}");
    };
    // Its program is the last one that was started.
    drop(scene.running.pop());
    set(&scene.offices[1].node.0, "all", "forwarding", "0");
    let up = scene.up(1);
    tells(&scene, "not_forwarding");
    drop(up);
    let _up = scene.up_in_user_mode(1);
    tells(&scene, "not_routed");
}

#[test]
fn a_route_that_appears_is_noticed_and_conversations_go_on() {
    let Some(mut scene) = Scene::with("auto") else {
        return;
    };
    rules(&scene);
    scene.running.truncate(1);
    let row = Row {
        routes: [true, false],
        ..PLAIN
    };
    row.set_up(&scene);
    for number in 0..2 {
        let up = scene.up(number);
        scene.running.push(up);
    }
    let [one, other] = &scene.offices;
    serve(&other.device.0, (other.address(), 80).into(), other.name);
    echo(&other.device.0, (other.address(), 7).into());
    within(LONG, "the missing route", || {
        status(&scene, 1)["return_path"] == "missing"
    });
    let shown = succeeded(&finish(scene.at_office(1, &["status"])));
    for part in [
        "site         beijing: masquerade (auto), what devices answer",
        "lost: devices there see this node's address",
        "ip route add 192.168.201.0/24 via 192.168.200.2",
        // 24 192.168.201 by 192.168.200.2, and everything by 192.168.200.1 (RFC 3442).
        "0x18c0a8c9c0a8c80200c0a8c801",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let page = |seen: IpAddr| format!("{} sees {seen}", other.name);
    within(LONG, "b is led to d by the node", || {
        curl(&one.device.0, other.address()) == page(other.host(2).into())
    });
    let stream = one
        .device
        .0
        .enter(|| TcpStream::connect((other.address(), 7)));
    let stream = stream.expect("d accepts");
    stream.set_read_timeout(Some(LONG)).expect("a bound");
    speak(&stream, b"before");
    other.route(one);
    // It looks every half a minute, and believes only what it has found twice.
    within(Duration::from_secs(300), "the route is noticed", || {
        status(&scene, 1)["in_force"] == "routed"
    });
    within(LONG, "d sees who calls", || {
        curl(&one.device.0, other.address()) == page(one.address())
    });
    speak(&stream, b"through the node still");
    assert_eq!(doctor(&scene, 1)["finding"], Value::Null);
}
