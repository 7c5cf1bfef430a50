//! What routers on the way say about congestion reaches the programs at the ends (RFC 6040).

use std::{net::SocketAddr, os::fd::AsFd as _};

use os::{
    poll::{self, Interest},
    udp::{Batch, Envelope, Options, Socket},
};
use packet::ecn::Ecn;

use super::world::{LONG, Program, Space, World, inner, text};

const PORT: u16 = 7_070;

/// Lets the router in front of `space` say `ce` to every datagram of the tunnel that `matching`.
fn mark(space: &Space, v6: bool, matching: &str) {
    let ip = if v6 { "ip6" } else { "ip" };
    let script = format!(
        "add table inet g; \
         add chain inet g p {{ type filter hook prerouting priority -300; }}; \
         add rule inet g p udp dport 51820 {ip} ecn {matching} {ip} ecn set ce"
    );
    let output = space.command("nft").arg(&script).output().expect("nft");
    assert!(output.status.success(), "nft {script}: {}", text(&output));
}

/// Sends a datagram of each kind through the tunnel; returns what arrives with which mark.
fn pass(here: &Space, there: &Space, v6: bool) -> Vec<(u8, Ecn)> {
    let to = SocketAddr::new(inner(1, v6), PORT);
    let receiver = there.enter(|| Socket::bind(to, &Options::default()).expect("a free port"));
    let local = SocketAddr::new(inner(0, v6), 0);
    let sender = here.enter(|| Socket::bind(local, &Options::default()).expect("a free port"));
    let send = |ecn, number| {
        let envelope = Envelope {
            ecn,
            ..Envelope::to(to)
        };
        sender.send(&envelope, &[number; 100]).expect("room");
    };
    for (number, ecn) in (0..).zip([Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce]) {
        send(ecn, number);
    }
    let (mut batch, mut all) = (Batch::default(), Vec::new());
    // The last comes unless the tunnel is broken, and what was lost before it does not.
    while all.last().is_none_or(|(number, _)| *number != 3) {
        let readable = poll::wait_for(receiver.as_fd(), Interest::READ, LONG);
        assert!(readable.expect("a socket"), "only {all:?} came");
        receiver.recv_batch(&mut batch).expect("readable");
        all.extend(batch.datagrams().map(|one| (one.bytes[0], one.ecn)));
    }
    all
}

fn check(outer_v6: bool, inner_v6: bool) {
    let Some(world) = World::new() else { return };
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::Ginnel));
    let [Some(one), Some(other)] = tunnels else {
        return;
    };
    world.join([&one, &other], None, outer_v6);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, inner_v6), 1), 1);
    let unmarked = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
    let numbered = |marks: &[Ecn]| (0..).zip(marks.iter().copied()).collect::<Vec<_>>();
    assert_eq!(pass(here, there, inner_v6), numbered(&unmarked));
    mark(there, outer_v6, "!= not-ect");
    let marked = [Ecn::NotEct, Ecn::Ce, Ecn::Ce, Ecn::Ce];
    assert_eq!(pass(here, there, inner_v6), numbered(&marked));
    // A broken router marks what nobody allowed it to: that counts as lost, and is told.
    mark(there, outer_v6, "!= ce");
    let lost: Vec<_> = numbered(&marked).into_iter().skip(1).collect();
    assert_eq!(pass(here, there, inner_v6), lost);
    let mut ginnel = there.command(env!("CARGO_BIN_EXE_ginnel"));
    ginnel.args(["status", "--json", "--interface", &other.interface]);
    let output = ginnel.output().expect("ginnel runs");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let discarded = status["discarded"]["not_ect"].as_u64();
    assert!(discarded.is_some_and(|count| count >= 1), "{status}");
}

#[test]
fn a_mark_on_the_way_reaches_the_receiver_in_both_families() {
    for outer_v6 in [false, true] {
        for inner_v6 in [false, true] {
            check(outer_v6, inner_v6);
        }
    }
}
