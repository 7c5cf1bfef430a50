//! Named scenarios, each over many seeds: what a person would call the network working.

use std::time::Duration;

use sim::{Conditions, HostId, Kind, World, seeds};

/// How many seeds each scenario runs: ten scenarios make a thousand worlds.
const SEEDS: u64 = 100;

const SECOND: Duration = Duration::from_secs(1);

/// Runs `story` in worlds of one organisation with two nodes behind NAT.
fn scenario(story: impl Fn(&mut World, HostId, HostId)) {
    for seed in seeds(SEEDS) {
        let mut world = World::new(seed);
        let org = world.add_org();
        let one = world.join(org, Kind::TunBehindNat);
        let other = world.join(org, Kind::UserBehindNat);
        world.wait(SECOND);
        story(&mut world, one, other);
    }
}

/// Demands that `from` reaches `to` within `bound`.
fn check(world: &mut World, from: HostId, to: HostId, bound: Duration) {
    if world.reach(from, to, bound).is_none() {
        world.fail(&format!("{from:?} does not reach {to:?} within {bound:?}"));
    }
}

#[test]
fn a_packet_passes_in_the_first_second_both_ways() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        check(world, other, one, SECOND);
    });
}

#[test]
fn with_a_loss_of_20_percent_two_of_three_packets_pass() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        world.set_conditions(Conditions {
            loss_percent: 20,
            ..Conditions::GOOD
        });
        let first = world.next_packet();
        for _ in 0..500 {
            world.send(one, other);
            world.wait(Duration::from_millis(20));
        }
        world.wait(SECOND);
        // Two ways of 80 % each let 64 % pass; five standard deviations below are 53 %.
        let (arrived, sent) = world.arrived_since(first);
        if arrived * 100 < sent * 53 {
            world.fail(&format!("{arrived} of {sent} packets passed"));
        }
    });
}

#[test]
fn reordering_and_duplication_lose_nothing_and_repeat_nothing() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        let jitter = Duration::from_millis(400);
        world.set_conditions(Conditions {
            jitter,
            duplicate_percent: 30,
            ..Conditions::GOOD
        });
        let first = world.next_packet();
        for _ in 0..500 {
            world.send(one, other);
            world.wait(Duration::from_millis(1));
        }
        world.wait(2 * SECOND);
        // The ledger fails on the second arrival of any packet.
        let (arrived, sent) = world.arrived_since(first);
        if arrived != sent {
            world.fail(&format!("{arrived} of {sent} packets arrived"));
        }
    });
}

#[test]
fn a_client_that_roams_is_heard_at_once_and_hears_as_soon_as_it_has_spoken() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        check(world, other, one, SECOND);
        world.roam(one);
        check(world, one, other, SECOND);
        check(world, other, one, SECOND);
    });
}

#[test]
fn a_rebound_nat_is_noticed_within_the_keepalive() {
    scenario(|world, one, other| {
        check(world, other, one, SECOND);
        world.rebind(one);
        // Only the other side speaks: the keepalive of 25 s has to reopen the way.
        check(world, other, one, 26 * SECOND);
    });
}

#[test]
fn wall_clocks_that_jump_by_years_change_nothing() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        let year = 365 * 86_400;
        for (host, error) in [
            (one, 10 * year),
            (one, -10 * year),
            (world.gateway(), -year),
        ] {
            world.set_clock_error(host, error);
            check(world, one, other, SECOND);
            // Beyond `REJECT_AFTER_TIME`, so that a handshake with the new time is needed.
            world.wait(200 * SECOND);
            check(world, one, other, 2 * SECOND);
            world.kill(host);
            world.start(host);
            check(world, one, other, 7 * SECOND);
            check(world, other, one, 7 * SECOND);
        }
    });
}

#[test]
fn both_sides_initiating_at_once_agree() {
    scenario(|world, one, other| {
        for _ in 0..3 {
            world.initiate(world.gateway());
            world.initiate(one);
            world.initiate(other);
            world.wait(Duration::from_millis(100));
            check(world, one, other, SECOND);
            check(world, other, one, SECOND);
            world.wait(130 * SECOND);
        }
    });
}

#[test]
fn a_gateway_that_is_killed_and_restarted_carries_traffic_in_three_seconds() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        check(world, other, one, SECOND);
        let down = world.chance().duration(60 * SECOND);
        world.kill(world.gateway());
        world.wait(down);
        world.set_controlled(world.gateway(), false);
        world.start(world.gateway());
        check(world, one, other, 3 * SECOND);
        check(world, other, one, 3 * SECOND);
    });
}

#[test]
fn a_gateway_whose_name_moved_is_found_again_under_traffic() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        world.roam(world.gateway());
        // Silence is noticed after 15 s, doubted after three attempts of 5 s and jitter.
        for _ in 0..40 {
            world.send(one, other);
            world.send(other, one);
            world.wait(SECOND);
        }
        check(world, one, other, SECOND);
        check(world, other, one, SECOND);
    });
}

#[test]
fn of_a_removed_node_nothing_arrives_any_more() {
    for seed in seeds(SEEDS) {
        let mut world = World::new(seed);
        let org = world.add_org();
        let [leaver, one, other] =
            [Kind::TunBehindNat, Kind::UserBehindNat, Kind::Tun].map(|kind| world.join(org, kind));
        world.wait(SECOND);
        check(&mut world, leaver, one, SECOND);
        check(&mut world, other, leaver, SECOND);
        world.remove(leaver);
        // The ledger fails on any arrival; the leaver goes on trying with its last map.
        let first = world.next_packet();
        for turn in 0..200 {
            world.send(leaver, one);
            world.send(other, leaver);
            if turn % 50 == 0 {
                world.initiate(leaver);
            }
            world.wait(SECOND);
        }
        let (arrived, _) = world.arrived_since(first);
        if arrived != 0 {
            world.fail(&format!("{arrived} packets arrived"));
        }
        check(&mut world, one, other, SECOND);
        check(&mut world, other, one, SECOND);
    }
}

#[test]
fn two_organisations_never_meet() {
    for seed in seeds(SEEDS) {
        let mut world = World::new(seed);
        let orgs = [world.add_org(), world.add_org()];
        let kinds = [Kind::Tun, Kind::TunBehindNat, Kind::UserBehindNat];
        for org in orgs {
            for kind in kinds {
                world.join(org, kind);
            }
        }
        world.wait(2 * SECOND);
        let hosts: Vec<_> = world.clients().collect();
        for &from in &hosts {
            for &to in hosts.iter().filter(|to| **to != from) {
                // The ledger fails when a packet crosses, or arrives under a forged address.
                world.send(from, to);
                for &pretended in hosts.iter().filter(|pretended| **pretended != from) {
                    world.forge(from, pretended, to);
                }
            }
        }
        world.wait(2 * SECOND);
        world.settle();
    }
}

/// Sends a stream of 256 KiB and lets `story` happen after a quarter of it.
fn transfer(conditions: Conditions, bound: Duration, story: impl Fn(&mut World, HostId, HostId)) {
    for seed in seeds(SEEDS / 5) {
        let mut world = World::new(seed);
        let org = world.add_org();
        let [from, to] = [(), ()].map(|()| world.join(org, Kind::UserBehindNat));
        world.wait(2 * SECOND);
        let stream = world.transfer(from, to, STREAM);
        // Opening it may time out under heavy loss, and then it is for the caller to try again.
        world.wait(SECOND / 20);
        world.set_conditions(conditions);
        let mut waited = Duration::ZERO;
        let mut told = false;
        while !world.progress(stream).1 {
            if !told && world.progress(stream).0 >= STREAM / 4 {
                told = true;
                story(&mut world, from, to);
            }
            world.wait(SECOND / 10);
            waited += SECOND / 10;
            if waited > bound {
                let (received, _) = world.progress(stream);
                world.fail(&format!("{received} of {STREAM} bytes after {bound:?}"));
            }
        }
    }
}

const STREAM: u64 = 256 << 10;

#[test]
fn a_stream_survives_roaming_of_both_ends() {
    transfer(Conditions::GOOD, 60 * SECOND, |world, from, to| {
        world.roam(from);
        world.wait(SECOND);
        world.roam(to);
    });
}

#[test]
fn a_stream_survives_a_rebinding_of_both_nats() {
    transfer(Conditions::GOOD, 60 * SECOND, |world, from, to| {
        world.rebind(from);
        world.rebind(to);
    });
}

#[test]
fn a_stream_survives_the_gateway() {
    transfer(Conditions::GOOD, 60 * SECOND, |world, _, _| {
        world.kill(world.gateway());
        world.wait(5 * SECOND);
        world.start(world.gateway());
    });
}

#[test]
fn a_stream_survives_a_loss_of_20_percent_with_reordering_and_duplication() {
    let conditions = Conditions {
        jitter: Duration::from_millis(30),
        // Two ways make 20 % of the whole path.
        loss_percent: 11,
        duplicate_percent: 10,
        ..Conditions::GOOD
    };
    transfer(conditions, 600 * SECOND, |_, _, _| ());
}

#[test]
fn a_laptop_that_slept_is_back_within_seconds() {
    scenario(|world, one, other| {
        check(world, one, other, SECOND);
        let clock_stops = world.chance().happens(50);
        world.sleep(one, clock_stops);
        let slept = world.chance().duration(8 * 3_600 * SECOND);
        world.wait(slept);
        world.wake(one);
        // A dead session is noticed after 15 s of silence (`KEEPALIVE_TIMEOUT + REKEY_TIMEOUT`).
        check(world, one, other, 22 * SECOND);
        check(world, other, one, SECOND);
    });
}

#[test]
fn a_node_that_joins_while_the_gateway_has_an_old_map_is_let_in_by_control() {
    for seed in seeds(SEEDS / 5) {
        let mut world = World::new(seed);
        let org = world.add_org();
        let one = world.join(org, Kind::TunBehindNat);
        world.set_announcing(false);
        let other = world.join(org, Kind::TunBehindNat);
        check(&mut world, other, one, 2 * SECOND);
        check(&mut world, one, other, SECOND);
    }
}
