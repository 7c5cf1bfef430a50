//! The state machine alone, in CPU time of this thread.

use std::{
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use wireguard::{Device, StaticSecret};

use crate::{
    peers::{RESPONDER, device, idle_key, initiation, inner, now, secret},
    print,
    usage::{own_cpu, resident},
};

/// Measures and prints everything.
pub(crate) fn measure() {
    answer();
    for count in [100_000, 1_000_000] {
        load(count);
    }
}

/// CPU of answering one initiation, each of another peer.
fn answer() {
    let start = now();
    let mut responder = device(start, StaticSecret::new(RESPONDER), 1);
    for number in 0..ACTIVE {
        let key = secret(number).public_key();
        let peer = responder.add_peer(start, key).expect("a new key");
        responder.allow(peer, inner(number));
    }
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 51_820));
    let mut messages: Vec<_> = (0..ACTIVE)
        .map(|number| initiation(start, number, here))
        .collect();
    let before = (own_cpu(), resident("self"));
    let mut answered = 0_u32;
    for (number, message) in (0..ACTIVE).zip(&mut messages) {
        // Spaced as without load, so that none is asked for a cookie.
        let at = start + Duration::from_millis(number.into());
        black_box(responder.handle_datagram(at, here, message));
        while responder.poll_transmit().is_some() {
            answered += 1;
        }
        while responder.poll_event().is_some() {}
    }
    assert_eq!(answered, ACTIVE, "every initiation is answered");
    let cpu = own_cpu() - before.0;
    let micros = cpu.as_secs_f64() * 1e6 / f64::from(answered);
    print("core", "CPU of an answered initiation", micros, "µs");
    let bytes = per(resident("self") - before.1, ACTIVE);
    print("core", "memory of a session", bytes, "bytes");
}

/// What `count` configured peers cost in memory and time.
fn load(count: u32) {
    let start = now();
    let mut device = device(start, StaticSecret::new(RESPONDER), 1);
    let before = (own_cpu(), resident("self"));
    for number in 0..count {
        add(&mut device, number);
    }
    let name = |what: &str| format!("{what}, {count} peers");
    let cpu = own_cpu() - before.0;
    print("core", &name("CPU to load"), cpu.as_secs_f64(), "s");
    let bytes = per(resident("self") - before.1, count);
    print("core", &name("memory of an idle peer"), bytes, "bytes");
    assert!(device.poll_timeout().is_none(), "idle peers have no timer");
    let before = own_cpu();
    for number in 0..CHANGED {
        let peer = device.peer(&idle_key(number)).expect("added above");
        device.remove_peer(peer);
    }
    let removed = own_cpu();
    for number in 0..CHANGED {
        add(&mut device, number);
    }
    let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(CHANGED);
    print(
        "core",
        &name("CPU to remove one"),
        micros(removed - before),
        "µs",
    );
    print(
        "core",
        &name("CPU to add one"),
        micros(own_cpu() - removed),
        "µs",
    );
}

fn add(device: &mut Device, number: u32) {
    let at = now();
    let peer = device.add_peer(at, idle_key(number)).expect("a new key");
    device.set_endpoint(peer, Some(SocketAddr::from(([192, 0, 2, 1], 51_820))));
    device.allow(peer, inner(number));
}

fn per(total: u64, count: u32) -> f64 {
    let total = u32::try_from(total / 1024).expect("less than 4 TB");
    f64::from(total) * 1024.0 / f64::from(count)
}

/// Peers that shake hands.
const ACTIVE: u32 = 10_000;
/// Peers that are removed and added again.
const CHANGED: u32 = 10_000;
