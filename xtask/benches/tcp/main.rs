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

mod between;
mod kernel;
mod ours;
mod plan;
mod relay;
mod smoltcp;
mod soak;

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
use netstack::CongestionControl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use self::{
    kernel::{Direction, Host},
    ours::{Client, Usage},
    plan::{Case, Contestant, Plan},
};

/// Of every packet, as inside a tunnel.
const MTU: usize = 1_420;

const CLIENT: &str = "10.77.1.1";
const RIVAL: &str = "10.77.1.2";
const SERVER: &str = "10.77.2.1";
const PORT: u16 = 5_001;
const IDLE_PORT: u16 = 5_010;
const RIVAL_PORT: u16 = 5_003;
const EXCHANGE_PORT: u16 = 5_004;
/// Idle connections to one port.
const IDLE_EACH: usize = 20_000;

/// What one contestant has done in one run.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Mbit/s of payload, from the first SYN on.
    goodput: f64,
    /// Seconds of CPU in user mode per GB; not the kernel's.
    user_per_gb: Option<f64>,
    /// What the rivals have had of their fair share.
    rivals: Option<f64>,
    /// How long exchanges took in milliseconds: median and 99th percentile.
    waits: Option<[f64; 2]>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments
        .iter()
        .position(|argument| argument == "--between")
    {
        let rest = arguments[at + 1..].iter();
        let rest: Vec<_> = rest
            .filter(|argument| *argument != "--bench")
            .cloned()
            .collect();
        return between::run(&rest);
    }
    let plan = Plan::parse(&arguments)?;
    if let Some(seconds) = plan.soak {
        println!("{}", soak::run(Duration::from_secs(seconds), seconds)?);
        return Ok(());
    }
    os::process::raise_descriptor_limit().context("raise the limit of descriptors")?;
    let mut table = plan::Table::default();
    // What changes on the machine meanwhile meets every case.
    for seed in 0..plan.seeds {
        for case in &plan.cases {
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
    let (server, far) = Host::new("s", SERVER, case.large)?;
    let down = match contestant {
        Contestant::Ours(algorithm) | Contestant::Kernel(algorithm) => algorithm,
        Contestant::Smoltcp => "cubic",
    };
    if case.exchanges {
        server.answer(EXCHANGE_PORT, &stop)?;
    }
    let sunk = server.serve(PORT, case.direction, down)?;
    let held = idle_ports(case.idle).map(|port| server.hold(port));
    let _held: Vec<_> = held.collect::<Result<_>>()?;
    let (client, near, inner) = match contestant {
        Contestant::Kernel(_) => {
            let (host, near) = Host::new("c", CLIENT, false)?;
            (Some(host), Some(near), None)
        }
        Contestant::Ours(_) | Contestant::Smoltcp if case.path.is_some() => {
            let (near, inner) = pair()?;
            (None, Some(near), Some(inner))
        }
        Contestant::Ours(_) | Contestant::Smoltcp => (None, None, None),
    };
    let rival = (case.rivals > 0)
        .then(|| Host::new("r", RIVAL, false))
        .transpose()?;
    thread::scope(|scope| {
        if let Some((path, near)) = case.path.zip(near.as_ref()) {
            let mut left = vec![(near, CLIENT.parse()?)];
            if let Some((_, near)) = &rival {
                left.push((near, RIVAL.parse()?));
            }
            let (far, stop) = (&far, &stop);
            scope.spawn(move || relay::run(&left, far, path, seed, stop));
        }
        let compete = || match &rival {
            Some((host, _)) => rivals(host, &server, case.rivals).map(Some),
            None => Ok(None),
        };
        let rivals = compete().inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        let measured = match (&client, contestant) {
            _ if case.exchanges => {
                let link = inner.as_ref().unwrap_or(&far);
                exchange(client.as_ref(), contestant, link, seconds)
            }
            (Some(host), Contestant::Kernel(algorithm)) => {
                let server = SocketAddr::new(SERVER.parse()?, PORT);
                let streams = case.streams;
                let got = host.dial(server, streams, case.direction, algorithm);
                let got = got.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                let counted = match case.direction {
                    Direction::Up => &sunk,
                    Direction::Down => &got,
                };
                count(counted, rivals.as_deref(), case, seconds)
            }
            (None, _) | (Some(_), Contestant::Ours(_) | Contestant::Smoltcp) => {
                let link = inner.as_ref().unwrap_or(&far);
                let sinks = (&*sunk, rivals.as_deref());
                measure_here(case, contestant, link, sinks, seconds, &stop)
            }
        };
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

/// Lets so many streams of a kernel with CUBIC send to the server, and gives them time to share.
fn rivals(host: &Host, server: &Host, streams: usize) -> Result<Arc<AtomicU64>> {
    let sunk = server.serve(RIVAL_PORT, Direction::Up, "cubic")?;
    let to = SocketAddr::new(SERVER.parse()?, RIVAL_PORT);
    host.dial(to, streams, Direction::Up, "cubic")?;
    thread::sleep(Duration::from_secs(3));
    Ok(sunk)
}

/// Ports for idle connections: one takes fewer than a host has ephemeral ones.
fn idle_ports(idle: usize) -> impl Iterator<Item = u16> {
    (IDLE_PORT..).take(idle.div_ceil(IDLE_EACH))
}

/// Measures a stack that runs in this process.
fn measure_here(
    case: &Case,
    contestant: Contestant,
    link: &File,
    (sunk, rivals): (&AtomicU64, Option<&AtomicU64>),
    seconds: u64,
    stop: &AtomicBool,
) -> Result<Measured> {
    let server: IpAddr = SERVER.parse()?;
    let client = Client {
        local: CLIENT.parse()?,
        server: SocketAddr::new(server, PORT),
        streams: case.streams,
        direction: case.direction,
        control: control(contestant),
        large: case.large,
        idle: (case.idle > 0).then(|| (SocketAddr::new(server, IDLE_PORT), case.idle)),
    };
    let (ready, got) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    thread::scope(|scope| {
        let running = scope.spawn(|| match contestant {
            Contestant::Smoltcp => smoltcp::run(link, &client, &ready, stop, &got),
            Contestant::Ours(_) | Contestant::Kernel(_) => {
                ours::run(link, &client, &ready, stop, &got)
            }
        });
        while !ready.load(Ordering::Relaxed) && !running.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let counted = match case.direction {
            Direction::Up => sunk,
            Direction::Down => &got,
        };
        let measured = count(counted, rivals, case, seconds);
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

/// Lets one side exchange small requests with the server for so many seconds.
fn exchange(
    host: Option<&Host>,
    contestant: Contestant,
    link: &File,
    seconds: u64,
) -> Result<Measured> {
    // What has begun is finished, so the relay goes on until then.
    let done = AtomicBool::new(false);
    let server = SocketAddr::new(SERVER.parse()?, EXCHANGE_PORT);
    let client = Client {
        local: CLIENT.parse()?,
        server,
        streams: 0,
        direction: Direction::Up,
        control: control(contestant),
        large: false,
        idle: None,
    };
    let took = thread::scope(|scope| {
        let running = scope.spawn(|| match (host, contestant) {
            (Some(host), Contestant::Kernel(algorithm)) => host.exchange(server, algorithm, &done),
            (None, _) | (Some(_), Contestant::Ours(_) | Contestant::Smoltcp) => {
                ours::exchange(link, &client, &done)
            }
        });
        thread::sleep(Duration::from_secs(seconds));
        done.store(true, Ordering::Relaxed);
        running.join().expect("the client does not panic")
    });
    let mut took = took?;
    took.sort_by(f64::total_cmp);
    let at = |percent| took.get(took.len() * percent / 100).copied();
    let octets = took.len() * ours::EXCHANGED * 2;
    Ok(Measured {
        goodput: octets as f64 * 8.0 / seconds as f64 / 1e6,
        user_per_gb: None,
        rivals: None,
        waits: at(50).zip(at(99)).map(|(median, late)| [median, late]),
    })
}

fn control(contestant: Contestant) -> CongestionControl {
    match contestant {
        Contestant::Ours("bbr") => CongestionControl::Bbr,
        Contestant::Ours(_) | Contestant::Kernel(_) | Contestant::Smoltcp => {
            CongestionControl::Cubic
        }
    }
}

/// Counts for so many seconds.
fn count(
    counter: &AtomicU64,
    rivals: Option<&AtomicU64>,
    case: &Case,
    seconds: u64,
) -> Result<Measured> {
    let mut clock = os::clock::Clock::start();
    let begin = clock.now();
    let counted = || {
        let rivals = rivals.map(|counter| counter.load(Ordering::Relaxed));
        (counter.load(Ordering::Relaxed), rivals.unwrap_or(0))
    };
    let before = counted();
    thread::sleep(Duration::from_secs(seconds));
    let after = counted();
    let took = clock.now() - begin;
    let (bytes, theirs) = (after.0 - before.0, after.1 - before.1);
    let share = theirs as f64 / (bytes + theirs) as f64;
    let fair = case.rivals as f64 / (case.rivals + case.streams) as f64;
    Ok(Measured {
        goodput: bytes as f64 * 8.0 / took.as_secs_f64() / 1e6,
        user_per_gb: None,
        rivals: rivals.map(|_| share / fair),
        waits: None,
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
