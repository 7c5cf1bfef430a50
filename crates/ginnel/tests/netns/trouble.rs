//! What a running data plane lives through: links that fail, shrink, grow and refuse.

use super::world::{Program, SHORT, Tunnel, World, inner, socket_path, within};

/// Two of us, joined over IPv4, that reach each other.
pub(crate) fn joined() -> Option<(World, [Tunnel; 2])> {
    let world = World::new()?;
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::Ginnel));
    let [Some(one), Some(other)] = tunnels else {
        return None;
    };
    world.join([&one, &other], None, false);
    assert_eq!(world.spaces[0].ping(inner(1, false), 2), 2);
    Some((world, [one, other]))
}

#[test]
fn a_path_smaller_than_a_datagram_loses_nothing() {
    let Some((world, _tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    // Runs of full segments are refused with EMSGSIZE, single datagrams are fragmented.
    for space in [here, there] {
        space.ip(&["link", "set", &space.link, "mtu", "1300"]);
    }
    here.transfer(there, inner(1, false), 4_000_000);
}

#[test]
fn a_short_queue_behind_a_slow_link_slows_it_down_only() {
    let Some((world, _tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    // A short queue behind a slow link: sends fail with ENOBUFS, or wait.
    let tc = here
        .command("tc")
        .args(["qdisc", "add", "dev", &here.link, "root"])
        .args(["tbf", "rate", "100mbit", "burst", "100kb", "limit", "200kb"])
        .status();
    assert!(tc.is_ok_and(|status| status.success()), "tc runs");
    here.transfer(there, inner(1, true), 4_000_000);
}

#[test]
fn links_that_go_down_and_up_carry_on() {
    let Some((world, [one, _other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    here.ip(&["link", "set", &one.interface, "down"]);
    assert_eq!(there.ping(inner(0, false), 1), 0);
    here.ip(&["link", "set", &one.interface, "up"]);
    here.transfer(there, inner(1, false), 1_000_000);
    here.ip(&["link", "set", &here.link, "down"]);
    assert_eq!(here.ping(inner(1, false), 2), 0);
    here.ip(&["link", "set", &here.link, "up"]);
    within(SHORT, "the tunnel carries again", || {
        here.ping(inner(1, false), 1) == 1
    });
}

#[test]
fn an_mtu_that_shrinks_and_grows_under_load_changes_no_byte() {
    let Some((world, tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    std::thread::scope(|scope| {
        scope.spawn(|| here.transfer(there, inner(1, false), 20_000_000));
        for mtu in ["1280", "1420", "1301", "9000", "1420"] {
            for (space, tunnel) in world.spaces.iter().zip(&tunnels) {
                space.ip(&["link", "set", &tunnel.interface, "mtu", mtu]);
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
    });
}

#[test]
fn an_interface_deleted_under_load_ends_the_process_well() {
    let Some((world, [mut one, other])) = joined() else {
        return;
    };
    let [here, _] = &world.spaces;
    let mut flood = here.command("ping");
    flood.args([
        "-q",
        "-i",
        "0.002",
        "-s",
        "1000",
        &inner(1, false).to_string(),
    ]);
    let mut flood = flood
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("ping runs");
    std::thread::sleep(std::time::Duration::from_millis(200));
    here.ip(&["link", "delete", &one.interface]);
    assert!(one.ends_well());
    assert!(!socket_path(&one.interface).exists());
    flood.kill().expect("ours");
    flood.wait().expect("ours");
    assert!(other.show(&["peers"]).contains(&one.public_key));
}

#[test]
fn runs_that_mix_sizes_arrive_as_they_were_sent() {
    let Some((world, _tunnels)) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let receiver = there.enter(|| std::net::UdpSocket::bind((inner(1, false), 0)));
    let receiver = receiver.expect("inner address is there");
    receiver.set_read_timeout(Some(SHORT)).expect("a bound");
    let to = receiver.local_addr().expect("bound");
    let sender = here.enter(|| std::net::UdpSocket::bind((inner(0, false), 0)));
    let sender = sender.expect("inner address is there");
    let sizes = [1392, 1392, 1, 1392, 700, 700, 3, 17, 16, 15, 1392];
    let mut buffer = [0; 2048];
    for round in 0..50_u8 {
        for size in sizes {
            sender.send_to(&vec![round; size], to).expect("room");
        }
        for size in sizes {
            let length = receiver.recv(&mut buffer).expect("all arrive, in order");
            assert_eq!(length, size);
            assert!(buffer[..length].iter().all(|byte| *byte == round));
        }
    }
}
