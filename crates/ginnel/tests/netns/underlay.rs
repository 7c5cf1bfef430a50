//! What happens to the sockets: routes, addresses and ports that change, and errors of sending.

use std::net::{Ipv6Addr, UdpSocket};

use nix::sys::signal::Signal;

use super::{
    trouble::joined,
    world::{Apart, LONG, Space, Tunnel, inner, outer, text, within},
};

fn carries_again(space: &Space) {
    within(LONG, "the tunnel carries again", || {
        space.ping(inner(1, false), 1) == 1
    });
}

fn nft(space: &Space, script: &str) {
    let output = space.command("nft").arg(script).output().expect("nft runs");
    assert!(output.status.success(), "nft {script}: {}", text(&output));
}

fn set_port(tunnel: &Tunnel, port: u16) {
    tunnel.set(&["listen-port", &port.to_string()]);
}

#[test]
fn a_port_that_was_left_is_free_at_once_whether_idle_or_busy() {
    let Some((world, [one, other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let leave_and_take = || {
        for round in 0..20 {
            let (from, to) = [(51820, 51900), (51900, 51820)][round % 2];
            set_port(&one, to);
            here.enter(|| {
                // Of both families.
                let bound = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, from));
                bound.unwrap_or_else(|error| panic!("{from}: {error}"));
            });
        }
    };
    leave_and_take();
    std::thread::scope(|scope| {
        scope.spawn(|| here.transfer(there, inner(1, false), 40_000_000));
        leave_and_take();
    });
    assert_eq!(here.ping(inner(1, false), 1), 1);
    assert_eq!(other.show_peer("endpoints"), "10.99.0.1:51820");
}

#[test]
fn what_routing_and_filters_refuse_is_lost_and_nothing_after_it() {
    let Some((world, _tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let peer = outer(1, false).to_string();
    // EHOSTUNREACH, EACCES and EINVAL, in this order.
    for kind in ["unreachable", "prohibit", "blackhole"] {
        here.ip(&["route", "add", kind, &peer]);
        assert_eq!(here.ping(inner(1, false), 2), 0, "{kind}");
        here.ip(&["route", "delete", kind, &peer]);
        carries_again(here);
    }
    // EPERM.
    nft(
        here,
        "add table inet g; add chain inet g o { type filter hook output priority 0; }; \
         add rule inet g o udp dport 51820 drop",
    );
    assert_eq!(here.ping(inner(1, false), 2), 0);
    nft(here, "delete table inet g");
    carries_again(here);
    // ENETUNREACH, for our address and without it.
    let network = ["10.99.0.0/24", "dev", &here.link];
    here.ip(&[&["route", "delete"], &network[..]].concat());
    assert_eq!(here.ping(inner(1, false), 2), 0);
    here.ip(&[&["route", "add"], &network[..]].concat());
    carries_again(here);
    here.transfer(there, inner(1, true), 4_000_000);
}

#[test]
fn a_connection_outlives_the_address_below_it() {
    for v6 in [false, true] {
        let Some((world, [one, other])) = joined() else {
            return;
        };
        let [here, there] = &world.spaces;
        let (old, new, bits) = if v6 {
            (outer(0, true), "fd99::77", 64)
        } else {
            (outer(0, false), "10.99.0.77", 24)
        };
        if v6 {
            other.set(&["peer", &one.public_key, "endpoint", "[fd99::1]:51820"]);
            assert_eq!(there.ping(inner(0, false), 2), 2);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| here.transfer(there, inner(1, false), 60_000_000));
            std::thread::sleep(std::time::Duration::from_millis(100));
            // First without any, so that there is nothing to send from.
            let old = format!("{old}/{bits}");
            here.ip(&["address", "delete", &old, "dev", &here.link]);
            here.add_outer(new.parse().expect("an address"));
        });
        assert_eq!(here.ping(inner(1, false), 1), 1);
        let endpoint = other.show_peer("endpoints");
        assert!(endpoint.contains(new), "{endpoint}");
    }
}

#[test]
fn a_packet_that_udp_cannot_carry_is_lost_alone() {
    let Some((world, tunnels)) = joined() else {
        return;
    };
    let [here, _] = &world.spaces;
    for (space, tunnel) in world.spaces.iter().zip(&tunnels) {
        space.ip(&["link", "set", &tunnel.interface, "mtu", "65535"]);
    }
    let ping = |payload: usize| {
        let mut ping = here.command("ping");
        ping.args(["-n", "-c", "1", "-W", "2", "-s", &payload.to_string()]);
        let output = ping.arg(inner(1, false).to_string()).output();
        super::world::received(&text(&output.expect("ping runs")))
    };
    // IPv4 and ICMP have 28 bytes, a datagram 32 more than a packet, and 65,507 are the most.
    let most = (65_507 - 32) / 16 * 16 - 28;
    assert_eq!(ping(most), 1, "{most} bytes fit");
    assert_eq!(ping(65_507), 0, "EMSGSIZE");
    assert_eq!(ping(most), 1);
    assert_eq!(ping(56), 1);
}

#[test]
fn an_interface_that_moves_to_another_namespace_carries_on_there() {
    let Some((world, [one, other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let Apart(inside) = &Apart::new();
    here.ip(&["link", "set", &one.interface, "netns", &inside.name]);
    for v6 in [false, true] {
        inside.add_address(&one.interface, inner(0, v6));
    }
    inside.ip(&["link", "set", &one.interface, "up"]);
    assert_eq!(inside.ping(inner(1, false), 3), 3);
    inside.transfer(there, inner(1, true), 4_000_000);
    // An interface that comes and goes here makes it look at its own.
    here.ip(&["link", "set", &here.link, "mtu", "1400"]);
    assert_eq!(inside.ping(inner(1, false), 2), 2);
    assert!(one.show(&["peers"]).contains(&other.public_key));
    let mut one = one;
    inside.ip(&["link", "delete", &one.interface]);
    assert!(one.ends_well());
}

#[test]
fn a_process_that_slept_under_load_carries_on() {
    let Some((world, tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    std::thread::scope(|scope| {
        scope.spawn(|| here.transfer(there, inner(1, false), 40_000_000));
        for tunnel in &tunnels {
            tunnel.signal(Signal::SIGSTOP);
            std::thread::sleep(std::time::Duration::from_secs(2));
            tunnel.signal(Signal::SIGCONT);
        }
    });
    assert_eq!(here.ping(inner(1, false), 2), 2);
}
