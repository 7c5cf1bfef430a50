//! What a capture costs who sends and receives as fast as it can: a node in user mode, and an
//! interface of `ginnel tun`.

use anyhow::{Result, bail};

use super::tunnel::{self, Case, Driven, Peer, Plan};
use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  capture takes --rounds N, --seconds N, --only tcp1|tcp1-reverse|tcp4|tcp4-reverse, --at user|tun
  and --ours PATH; it needs root, iperf3, iproute2 and wireguard-tools";

/// A name and the arguments of `ginnel capture`; the first is what the others are held against.
const CAPTURES: [(&str, &[&str]); 4] = [
    ("no capture", &[]),
    (
        "both, filter matches nothing",
        &[
            "--interface",
            "both",
            "--filter",
            "tcp port 4999 and host 203.0.113.9",
        ],
    ),
    ("inner, all", &["--interface", "inner"]),
    ("both, all", &["--interface", "both"]),
];

/// Where captures run: the word for `--at`, what the table is about, and how the program is driven
/// with the arguments of a capture.
type Place = (
    &'static str,
    &'static str,
    fn(&'static [&'static str]) -> Driven,
);

const PLACES: [Place; 2] = [
    ("user", "a node in user mode", Driven::User),
    ("tun", "`ginnel tun`", Driven::Captured),
];

/// Runs the bench and prints its tables.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (mut places, mut rest) = (PLACES.to_vec(), Vec::new());
    for pair in arguments.chunks(2) {
        match pair {
            ["--at", at] => places.retain(|(word, ..)| word == at),
            other => rest.extend_from_slice(other),
        }
    }
    if places.is_empty() {
        bail!("--at takes user or tun\n{USAGE}");
    }
    let cases = [Case::Tcp1, Case::Tcp1Reverse];
    for (_, what, driven) in places {
        let peers = |ours: &Peer| {
            let peers = CAPTURES.map(|(name, words)| Peer {
                name: name.to_owned(),
                program: ours.program.clone(),
                driven: driven(words),
            });
            peers.into()
        };
        let plan = Plan::of_ours(&rest, USAGE, &cases, peers)?;
        step::say(&format!("\n{what}:"));
        tunnel::measure(&plan)?;
    }
    Ok(())
}
