//! Moves bytes between two stacks in virtual time: run it under `time` to see what a byte costs.
//!
//! `throughput MEGABYTES`

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use netstack::{Config, Limits, Received, Stack};

/// One step of virtual time; a packet takes two.
const STEP: Duration = Duration::from_micros(250);

fn main() {
    let megabytes = std::env::args().nth(1).and_then(|given| given.parse().ok());
    let total: usize = megabytes.unwrap_or(1_000) * 1_000_000;
    let address = |host| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
    let stack = |host| {
        Stack::new(Config {
            addresses: vec![address(host)],
            mtu: 1420,
            seed: [u8::try_from(host).expect("small"); 32],
            limits: Limits::default(),
        })
    };
    let mut stacks = [stack(1), stack(2)];
    let mut now = base();
    let remote = SocketAddr::new(address(2), 80);
    let listener = stacks[1].listen(remote, 1).expect("the port is free");
    let a = stacks[0].connect(now, remote).expect("the first port");
    let mut b = None;
    let mut pipes = [VecDeque::new(), VecDeque::new()];
    let (mut sent, mut received) = (0, 0);
    let data = vec![7; 65_536];
    let mut buffer = vec![0; 65_536];
    let began = now;
    while received < total {
        now += STEP;
        for side in [0, 1] {
            stacks[side].handle_timeout(now);
            let arrived: Vec<Vec<u8>> = std::mem::take(&mut pipes[1 - side]).into();
            for packet in &arrived {
                stacks[side].handle_packet(now, packet).expect("delivered");
            }
        }
        while stacks.iter_mut().any(|stack| stack.poll_event().is_some()) {}
        b = b.or_else(|| stacks[1].accept(listener));
        if let Some(b) = b {
            while let Ok(Received::Bytes(length)) = stacks[1].recv(now, b, &mut buffer) {
                received += length;
            }
            while sent < total {
                let taken = stacks[0].send(now, a, &data).expect("open");
                sent += taken;
                if taken == 0 {
                    break;
                }
            }
        }
        for side in [0, 1] {
            let mut out = [0; 1500];
            while let Some(length) = stacks[side].poll_transmit(now, &mut out) {
                pipes[side].push_back(out[..length].to_vec());
            }
        }
    }
    let rate =
        f64::from(u32::try_from(total / 1_000_000).expect("small")) / (now - began).as_secs_f64();
    let mut out = std::io::stdout().lock();
    let line =
        std::io::Write::write_fmt(&mut out, format_args!("{rate:.0} MB/s in virtual time\n"));
    line.expect("standard output is open");
}

#[expect(
    clippy::disallowed_methods,
    reason = "one base for virtual time; nothing depends on it"
)]
fn base() -> Instant {
    Instant::now()
}
