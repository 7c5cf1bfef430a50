//! The whole path of user mode: a node without an interface, its tunnel, and a machine behind
//! `ginnel tun`, against two machines with interfaces.

use anyhow::Result;

use super::tunnel::{self, Case, Driven, Peer, Plan};

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  user takes --rounds N, --seconds N, --only tcp1|tcp1-reverse|tcp4|tcp4-reverse, --ours PATH, and
  --round-trip MS and --loss SHARE of a relay with 100 Mbit/s instead of a veth; it needs root,
  iperf3, iproute2 and wireguard-tools";

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let cases = [Case::Tcp1, Case::Tcp1Reverse, Case::Tcp4, Case::Tcp4Reverse];
    let peers = |ours: &Peer| {
        let user = Peer {
            name: "user mode".to_owned(),
            program: ours.program.clone(),
            driven: Driven::User(&[]),
        };
        let kernel = Peer {
            name: "kernel TCP".to_owned(),
            ..ours.clone()
        };
        vec![user, kernel]
    };
    tunnel::measure(&Plan::of_ours(arguments, USAGE, &cases, peers)?)
}
