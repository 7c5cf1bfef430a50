//! What 100,000 idle connections hold and cost (`IDLE_CONNECTIONS` scales it).

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use netstack::{Config, ConnectionId, Limits, Received, Stack};

/// An idle connection with its place in every table.
const BYTES_MAX: usize = 1_024;

fn count() -> usize {
    let given = env::var("IDLE_CONNECTIONS").ok();
    given
        .and_then(|count| count.parse().ok())
        .unwrap_or(100_000)
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages = statm.split(' ').nth(1).expect("resident pages");
    pages.parse::<usize>().expect("a number") * 4_096
}

fn stack(host: u8, connections_max: usize) -> Stack {
    Stack::new(Config {
        addresses: vec![address(host)],
        mtu: 1_420,
        seed: [host; 32],
        limits: Limits {
            connections_max,
            half_open_max: 2_048,
            ..Limits::default()
        },
    })
}

fn address(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

/// Carries packets both ways until neither side has any.
fn exchange(now: Instant, stacks: &mut [Stack; 2]) {
    let mut out = [0; 1_500];
    let mut moved = true;
    while moved {
        moved = false;
        for side in [0, 1] {
            while let Some(length) = stacks[side].poll_transmit(now, &mut out) {
                stacks[1 - side]
                    .handle_packet(now, &out[..length])
                    .expect("a perfect link");
                moved = true;
            }
            while stacks[side].poll_event().is_some() {}
        }
    }
}

/// Moves a request and a response, so that every buffer has been in use.
fn converse(now: Instant, stacks: &mut [Stack; 2], [a, b]: [ConnectionId; 2]) {
    for (from, id, to, peer) in [(0, a, 1, b), (1, b, 0, a)] {
        stacks[from].send(now, id, &[7; 3_000]).expect("open");
        exchange(now, stacks);
        let received = stacks[to].recv(now, peer, &mut [0; 4_096]).expect("open");
        assert_eq!(received, Received::Bytes(3_000));
        exchange(now, stacks);
    }
}

#[test]
fn an_idle_connection_holds_little_and_no_timer() {
    let count = count();
    // The peer is one, and may have as many connections as are free.
    let mut stacks = [stack(1, 2 * count + 2), stack(2, 2 * count + 2)];
    #[expect(clippy::disallowed_methods, reason = "one base for virtual time")]
    let mut now = Instant::now();
    let mut ids = Vec::with_capacity(count);
    let before = resident_bytes();
    // A port has 32,768 ephemeral ones towards it, of which some are drawn in vain.
    for port in (1_000..).take(count.div_ceil(20_000)) {
        let remote = SocketAddr::new(address(2), port);
        let listener = stacks[1].listen(remote, 100).expect("a free port");
        while ids.len() < count.min(20_000 * usize::from(port - 999)) {
            let a = stacks[0].connect(now, remote).expect("a free port");
            exchange(now, &mut stacks);
            let b = stacks[1].accept(listener).expect("established");
            converse(now, &mut stacks, [a, b]);
            ids.push([a, b]);
        }
    }
    // What was delayed is past.
    for _ in 0..10 {
        now += Duration::from_secs(1);
        for stack in &mut stacks {
            stack.handle_timeout(now);
        }
        exchange(now, &mut stacks);
    }
    for stack in &stacks {
        assert_eq!(stack.poll_timeout(), None, "nothing waits for time");
        assert_eq!(stack.memory_bytes(), 0, "no buffer holds memory");
        assert_eq!(stack.connections(), count);
    }
    let each = (resident_bytes() - before) / (2 * count);
    println!("{each} bytes for each of {} connections", 2 * count);
    assert!(each <= BYTES_MAX, "{each} bytes");
    // The first and the last still work.
    converse(now, &mut stacks, ids[0]);
    converse(now, &mut stacks, ids[count - 1]);
}
