//! What a capture costs a node in user mode that sends and receives as fast as it can.

use anyhow::Result;

use super::tunnel::{self, Case, Driven, Peer, Plan};

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  capture takes --rounds N, --seconds N, --only tcp1|tcp1-reverse|tcp4|tcp4-reverse and --ours
  PATH; it needs root, iperf3, iproute2 and wireguard-tools";

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

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let cases = [Case::Tcp1, Case::Tcp1Reverse];
    let peers = |ours: &Peer| {
        let peers = CAPTURES.map(|(name, words)| Peer {
            name: name.to_owned(),
            program: ours.program.clone(),
            driven: Driven::User(words),
        });
        peers.into()
    };
    tunnel::measure(&Plan::of_ours(arguments, USAGE, &cases, peers)?)
}
