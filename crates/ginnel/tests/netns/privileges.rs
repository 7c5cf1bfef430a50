//! What a running `ginnel tun` still may, and that everything works with it.

use std::{fs, net::UdpSocket};

use super::{
    attachment::{At, Network},
    world::{
        Background, GINNEL, Program, SHORT, Space, World, find, inner, lacks, outer, socket_path,
        text, unique, within,
    },
};

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN (capabilities(7)).
const KEPT: u64 = 1 << 10 | 1 << 12;
/// Of `nobody` in Debian.
const NOBODY: &str = "65534";

/// Looks at every thread of a process, because capabilities belong to threads.
#[track_caller]
fn assert_dropped(process: u32, user: &str) {
    let tasks = || fs::read_dir(format!("/proc/{process}/task")).expect("it lives");
    within(SHORT, "all threads are there", || tasks().count() > 5);
    for task in tasks() {
        let path = task.expect("we may").path().join("status");
        let status = fs::read_to_string(path).expect("it lives");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
        };
        for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let set = u64::from_str_radix(field(name), 16).expect("a mask");
            assert_eq!(set, KEPT, "{name} {set:x}");
        }
        for name in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(name), "0000000000000000", "{name}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        let ids = [user; 4].join("\t");
        assert_eq!([field("Uid:"), field("Gid:")], [&ids, &ids]);
        if user != "0" {
            assert_eq!(field("Groups:"), "");
        }
    }
}

/// All that takes a right, or goes another way without one.
fn everything_works(program: Program, user: &str) {
    let Some(world) = World::new() else { return };
    let tunnels = [0, 1].map(|number| world.tunnel(number, program));
    let [Some(mut one), Some(other)] = tunnels else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    here.transfer(there, inner(1, false), 4_000_000);
    for tunnel in [&one, &other] {
        assert_dropped(tunnel.child.id(), user);
    }
    one.set(&["fwmark", "0x77"]);
    one.set(&["listen-port", "53"]);
    assert_eq!(here.ping(inner(1, false), 2), 2);
    assert_eq!(other.show_peer("endpoints"), "10.99.0.1:53");
    one.set(&["fwmark", "0x78", "listen-port", "51820"]);
    for (space, tunnel) in world.spaces.iter().zip([&one, &other]) {
        space.ip(&["link", "set", &tunnel.interface, "mtu", "1300"]);
    }
    here.transfer(there, inner(1, true), 4_000_000);
    one.remove_peer(&other);
    one.set_peer(&other, 1, None, false);
    assert_eq!(here.ping(inner(1, false), 2), 2);
    one.terminate();
    assert!(one.ends_well());
    let interface = one.interface.clone();
    assert_eq!(here.enter(|| os::link::index(&interface)), None);
    // The directory is root's: what another user leaves there is taken for stale.
    assert_eq!(socket_path(&interface).exists(), user != "0");
    here.enter(|| UdpSocket::bind((outer(0, false), 51820)).expect("the port is free"));
}

#[test]
fn as_root_it_keeps_two_capabilities_and_needs_no_other() {
    everything_works(Program::Ginnel, "0");
}

#[test]
fn as_another_user_it_keeps_the_same_and_nothing_of_roots() {
    everything_works(Program::GinnelAsNobody, NOBODY);
}

#[test]
fn in_the_background_it_becomes_the_user_too_and_a_socket_that_it_left_is_replaced() {
    let Some(world) = World::new() else { return };
    let space = &world.spaces[0];
    let name = unique("p");
    for _ in 0..2 {
        let _end = Background {
            space,
            interface: name.clone(),
        };
        let mut ginnel = space.command(GINNEL);
        let output = ginnel.args(["tun", "--user", "nobody", &name]).output();
        let output = output.expect("ginnel runs");
        assert!(output.status.success(), "{}", text(&output));
        let client = std::os::unix::net::UnixStream::connect(socket_path(&name));
        let peer = os::unix::peer(&client.expect("it listens")).expect("a Unix socket");
        // Who made the listener, which was before.
        assert_eq!(peer.uid, 0);
        let mut pgrep = std::process::Command::new("pgrep");
        let found = pgrep.args(["-u", "nobody", "-f", &name]).output();
        let found = text(&found.expect("pgrep runs"));
        assert_dropped(found.trim().parse().expect("one process"), NOBODY);
        space.ip(&["link", "delete", &name]);
        within(SHORT, "the process ends", || {
            std::os::unix::net::UnixStream::connect(socket_path(&name)).is_err()
        });
    }
    fs::remove_file(socket_path(&name)).expect("root may");
}

#[test]
fn a_user_that_cannot_be_is_refused_with_the_reason() {
    let Some(world) = World::new() else { return };
    if os::process::euid() != 0 {
        return lacks("NETNS", "not root");
    }
    let name = unique("p");
    let mut ginnel = world.spaces[0].command(GINNEL);
    let output = ginnel.args(["tun", "-f", "--user", "no-such-user", &name]);
    let output = output.output().expect("ginnel runs");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no user has the name `no-such-user`"),
        "{said}"
    );
    assert_eq!(world.spaces[0].enter(|| os::link::index(&name)), None);
}

/// Asks the kernel for one more queue of an interface, as another user if one is named.
const TAKE_A_QUEUE: &str = r#"
import fcntl, os, struct, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
if sys.argv[2:]:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
TUNSETIFF, IFF_TUN, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x400454ca, 1, 0x100, 0x1000, 0x4000
flags = IFF_TUN | IFF_MULTI_QUEUE | IFF_NO_PI | IFF_VNET_HDR
try:
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), flags))
except PermissionError:
    sys.exit(7)
"#;

/// Nobody but root gets a queue of an interface, where a part of what passes could be read.
fn keeps_its_queues(space: &Space, interface: &str) {
    if find("python3").is_none() {
        lacks("NETNS", "`python3` is not installed");
        return;
    }
    for (user, expected) in [(&["65534"][..], 7), (&[][..], 0)] {
        let mut python = space.command("python3");
        python.args(["-c", TAKE_A_QUEUE, interface]).args(user);
        let output = python.output().expect("python3 runs");
        let code = output.status.code();
        assert_eq!(code, Some(expected), "{user:?}: {}", text(&output));
    }
}

#[test]
fn no_other_user_gets_a_queue_of_a_tunnel() {
    let Some(world) = World::new() else { return };
    let tunnel = world.tunnel(0, Program::Ginnel).expect("our own program");
    keeps_its_queues(&world.spaces[0], &tunnel.interface);
}

#[test]
fn no_other_user_gets_a_queue_of_a_node_and_no_second_program_its_interface() {
    let Some(network) = Network::new() else {
        return;
    };
    let _alpha = network.start(At::Alpha, &["up"], "ready on ginnel0");
    keeps_its_queues(network.space(At::Alpha), "ginnel0");
    let second = network.output(At::Alpha, &["tun", "-f", "ginnel0", "--queues", "2"]);
    let said = text(&second);
    let refused = !second.status.success() && said.contains("in use");
    assert!(refused, "{said}");
}
