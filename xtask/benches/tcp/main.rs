//! The user-mode TCP against the kernel's, over a seeded relay and directly on a TUN.
//!
//! ```text
//!   ours or the kernel in a namespace ══ relay ══ the kernel in a namespace
//!   client 10.77.1.1                              server 10.77.2.1
//! ```
#![expect(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures for people"
)]

mod kernel;
mod ours;
mod plan;
mod relay;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use self::{
    kernel::{Direction, Host},
    ours::{Client, Usage},
    plan::{Case, Contestant, Plan},
};

/// Of every packet, as inside a tunnel.
const MTU: usize = 1_420;

const CLIENT: &str = "10.77.1.1";
const SERVER: &str = "10.77.2.1";
const PORT: u16 = 5_001;
const IDLE_PORT: u16 = 5_002;

/// What one contestant has done in one run.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Mbit/s of payload, from the first SYN on.
    goodput: f64,
    /// Seconds of CPU in user mode per GB; ours only.
    user_per_gb: Option<f64>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = Plan::parse(&arguments)?;
    os::process::raise_descriptor_limit().context("raise the limit of descriptors")?;
    let mut table = plan::Table::default();
    for case in &plan.cases {
        for seed in 0..plan.seeds {
            for contestant in case.contestants() {
                let measured = run(case, contestant, seed, plan.seconds)
                    .with_context(|| format!("{} by {}", case.name, contestant.name()))?;
                eprintln!("{} {} {}: {measured:?}", case.name, seed, contestant.name());
                table.add(case, contestant, measured);
            }
        }
    }
    println!("{}", table.markdown());
    Ok(())
}

fn run(case: &Case, contestant: Contestant, seed: u64, seconds: u64) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let (server, far) = Host::new("s", SERVER)?;
    let down = match contestant {
        Contestant::Ours(algorithm) | Contestant::Kernel(algorithm) => algorithm,
    };
    let sunk = server.serve(PORT, case.direction, down)?;
    if case.idle > 0 {
        server.hold(IDLE_PORT, &stop)?;
    }
    let (client, near, inner) = match contestant {
        Contestant::Kernel(_) => {
            let (host, near) = Host::new("c", CLIENT)?;
            (Some(host), Some(near), None)
        }
        Contestant::Ours(_) if case.path.is_some() => {
            let (near, inner) = pair()?;
            (None, Some(near), Some(inner))
        }
        Contestant::Ours(_) => (None, None, None),
    };
    thread::scope(|scope| {
        let relayed = case.path.zip(near.as_ref());
        if let Some((path, near)) = relayed {
            let (far, stop) = (&far, &stop);
            scope.spawn(move || relay::run(near, far, path, seed, stop));
        }
        let measured = match (&client, contestant) {
            (Some(host), Contestant::Kernel(algorithm)) => {
                let server = SocketAddr::new(SERVER.parse()?, PORT);
                let streams = case.streams;
                let got = host.dial(server, streams, case.direction, algorithm);
                let got = got.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                let counted = match case.direction {
                    Direction::Up => &sunk,
                    Direction::Down => &got,
                };
                count(counted, seconds)
            }
            (None, _) | (Some(_), Contestant::Ours(_)) => {
                let link = inner.as_ref().unwrap_or(&far);
                measure_ours(case, link, &sunk, seconds, &stop)
            }
        };
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

fn measure_ours(
    case: &Case,
    link: &File,
    sunk: &AtomicU64,
    seconds: u64,
    stop: &AtomicBool,
) -> Result<Measured> {
    let server: IpAddr = SERVER.parse()?;
    let client = Client {
        local: CLIENT.parse()?,
        server: SocketAddr::new(server, PORT),
        streams: case.streams,
        direction: case.direction,
        idle: (case.idle > 0).then(|| (SocketAddr::new(server, IDLE_PORT), case.idle)),
    };
    let (ready, got) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    thread::scope(|scope| {
        let running = scope.spawn(|| ours::run(link, &client, &ready, stop, &got));
        while !ready.load(Ordering::Relaxed) && !running.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let counted = match case.direction {
            Direction::Up => sunk,
            Direction::Down => &got,
        };
        let measured = count(counted, seconds);
        stop.store(true, Ordering::Relaxed);
        let usage: Usage = running.join().expect("the client does not panic")?;
        let bytes = match case.direction {
            Direction::Up => sunk.load(Ordering::Relaxed),
            Direction::Down => usage.received,
        };
        measured.map(|measured| Measured {
            user_per_gb: Some(usage.user / (bytes as f64 / 1e9)),
            ..measured
        })
    })
}

/// Counts for so many seconds.
fn count(counter: &AtomicU64, seconds: u64) -> Result<Measured> {
    let mut clock = os::clock::Clock::start();
    let begin = clock.now();
    let before = counter.load(Ordering::Relaxed);
    thread::sleep(Duration::from_secs(seconds));
    let bytes = counter.load(Ordering::Relaxed) - before;
    let took = clock.now() - begin;
    Ok(Measured {
        goodput: bytes as f64 * 8.0 / took.as_secs_f64() / 1e6,
        user_per_gb: None,
    })
}

/// A pair of descriptors that keep packets apart, as a TUN does.
fn pair() -> Result<(File, File)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&a, &b] {
        setsockopt(end, sockopt::SndBuf, &(4 << 20))?;
    }
    let file = |end: OwnedFd| File::from(end);
    Ok((file(a), file(b)))
}
