//! What a gateway spends on forwarding between its peers: ours, and a tunnel with the kernel's
//! forwarding behind it, in turn.
//!
//! ```text
//!   peer 0 .. peer N-1, each a UDP socket of this process ══ loopback ══ the gateway's process
//!   peer i sends to peer i + N/2: N conversations, every peer sends and receives
//! ```
//! The peers seal for real, in user mode, and send each turn's packets as one run or singly. A
//! window over all peers holds them back, so that the gateway is busy and its queues do not
//! overflow. Prints lines `PEERS TAB BURST TAB PROGRAM TAB CPU-s/GB TAB packets/CPU-s TAB Gbit/s
//! TAB lost %`. Must run in a network namespace of its own, as root.

mod ends;
mod program;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use self::{ends::Ends, program::Running};

/// Peers, and packets that each sends at once.
const CASES: [(u16, usize); 6] = [
    (2, 32),
    (100, 32),
    (1_000, 32),
    (2, 1),
    (100, 1),
    (1_000, 1),
];

fn main() -> ExitCode {
    let (mut programs, mut seconds, mut rounds) = (Vec::new(), 3, 3);
    let mut cases = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        // Cargo adds `--bench`.
        if argument == "--bench" {
            continue;
        }
        let value = arguments.next().expect("every argument takes a value");
        match argument.as_str() {
            "--program" => {
                let (name, path) = value.split_once('=').expect("--program takes NAME=PATH");
                programs.push((name.to_owned(), PathBuf::from(path)));
            }
            "--seconds" => seconds = value.parse().expect("a number of seconds"),
            "--rounds" => rounds = value.parse().expect("a number of rounds"),
            "--peers" => {
                let peers: u16 = value.parse().expect("a number of peers");
                cases.extend(CASES.into_iter().filter(|case| case.0 == peers));
            }
            _ => panic!("unexpected argument `{argument}`"),
        }
    }
    if cases.is_empty() {
        cases = CASES.to_vec();
    }
    os::process::raise_descriptor_limit().expect("a descriptor for each peer");
    for round in 0..rounds {
        for &(peers, burst) in &cases {
            for (name, path) in &programs {
                let running = Running::start(name, path, peers);
                let mut ends = Ends::new(peers, round);
                ends.shake_hands(program::PORT);
                // Tables and queues have their size, and every session is confirmed.
                ends.exchange(burst, 1);
                let before = running.cpu();
                let exchanged = ends.exchange(burst, seconds);
                let cpu = (running.cpu() - before).as_secs_f64();
                print(peers, burst, name, &exchanged, cpu);
            }
        }
    }
    ExitCode::SUCCESS
}

fn print(peers: u16, burst: usize, name: &str, exchanged: &ends::Exchanged, cpu: f64) {
    let received = f64::from(exchanged.received);
    let bytes = received * f64::from(ends::PACKET);
    let lost = f64::from(exchanged.lost) * 100.0 / (received + f64::from(exchanged.lost)).max(1.0);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{peers}\t{burst}\t{name}\t{:.3}\t{:.0}\t{:.2}\t{lost:.2}",
        cpu / (bytes / 1e9),
        received / cpu.max(1e-9),
        bytes * 8.0 / exchanged.took.as_secs_f64() / 1e9,
    )
    .expect("somebody reads");
}
