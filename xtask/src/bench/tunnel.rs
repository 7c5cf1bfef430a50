//! Tunnels between two namespaces, ours and others' in turn: throughput, packets, latency, memory.
//!
//! ```text
//! iperf3 ─ gbn0 ═ tunnel A ═ veth ═ tunnel B ═ gbn1 ─ iperf3
//!   namespace ginnel-bench-a       namespace ginnel-bench-b
//! ```

mod measure;
mod pingpong;
mod report;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::{report::Report, world::World};
use crate::step;

pub(crate) use self::{
    measure::Case,
    pingpong::{echo, measure as ping},
};

/// A program that makes a tunnel.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) driven: Driven,
}

/// How a program is told what to do.
#[derive(Clone, Debug)]
pub(crate) enum Driven {
    /// By `wg`; it is started with these words and its interface.
    Wg(&'static [&'static str]),
    /// By a configuration file, as a node of ours without an interface that forwards a port to
    /// the other end, which is `ginnel tun`. A capture with these arguments runs at the node, if
    /// there are any.
    User(&'static [&'static str]),
    /// As `ginnel tun` at both ends. A capture with these arguments runs at the interface where the
    /// traffic comes from, if there are any.
    Captured(&'static [&'static str]),
}

/// What to measure and how long.
pub(crate) struct Plan {
    pub(crate) peers: Vec<Peer>,
    pub(crate) cases: Vec<Case>,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    /// What lies between the two namespaces; a veth if nothing is said.
    pub(crate) far: Option<Far>,
}

/// A relay with a bottleneck of 100 Mbit/s.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Far {
    /// Milliseconds.
    pub(crate) round_trip: u32,
    /// Share of packets that are lost, each way.
    pub(crate) loss: f64,
}

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  tunnel takes --quick, --rounds N, --seconds N, --only CASE, --peer NAME=PATH, --ours PATH and
  --alone (no peers); it needs root, iperf3, iproute2 and wireguard-tools";

impl Plan {
    /// Reads the arguments of a bench whose programs are all ours, made from `ginnel tun`.
    pub(crate) fn of_ours(
        arguments: &[&str],
        usage: &str,
        cases: &[Case],
        peers: impl FnOnce(&Peer) -> Vec<Peer>,
    ) -> Result<Self> {
        let (mut rounds, mut seconds, mut program) = (3, 5, None);
        let mut only = Vec::new();
        let (mut round_trip, mut loss) = (None, None);
        for pair in arguments.chunks(2) {
            let [argument, value] = pair else {
                bail!("{} takes a value\n{usage}", pair[0]);
            };
            match *argument {
                "--rounds" => rounds = value.parse().context("parse --rounds")?,
                "--seconds" => seconds = value.parse().context("parse --seconds")?,
                "--only" => only.push(Case::parse(value)?),
                "--ours" => program = Some(PathBuf::from(value)),
                "--round-trip" => {
                    round_trip = Some(value.parse().context("parse --round-trip")?);
                }
                "--loss" => loss = Some(value.parse().context("parse --loss")?),
                _ => bail!("unexpected argument `{argument}`\n{usage}"),
            }
        }
        let far = (round_trip.is_some() || loss.is_some()).then(|| Far {
            round_trip: round_trip.unwrap_or(0),
            loss: loss.unwrap_or(0.0),
        });
        Ok(Self {
            peers: peers(&ours(program)?),
            cases: if only.is_empty() {
                cases.to_vec()
            } else {
                only
            },
            rounds,
            seconds,
            far,
        })
    }
}

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    measure(&parse(arguments)?)
}

/// Measures each case with each program by turns, and prints the table.
pub(crate) fn measure(plan: &Plan) -> Result<()> {
    let mut report = Report::default();
    if plan.far.is_some() {
        // Before anybody waits for its interfaces.
        let relay = ["bench", "--no-run", "--package", "xtask", "--bench", "tcp"];
        step::must(step::cargo(&relay))?;
    }
    for round in 1..=plan.rounds {
        for peer in &plan.peers {
            step::note(&format!("round {round} of {}: {}", plan.rounds, peer.name));
            let world = World::build(peer, plan.far, round)
                .with_context(|| format!("build with {}", peer.name))?;
            for case in &plan.cases {
                let measured = measure::run(&world, *case, plan.seconds);
                let measured = measured
                    .with_context(|| format!("measure {} of {}", case.name(), peer.name))?;
                step::note(&format!("  {measured}"));
                report.add(&peer.name, *case, measured);
            }
        }
    }
    step::say(&report.table());
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Plan> {
    let (mut rounds, mut seconds, mut alone) = (3, 5, false);
    let (mut cases, mut extra, mut ours) = (Vec::new(), Vec::new(), None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .with_context(|| format!("{argument} takes a value"))
        };
        match *argument {
            "--quick" => (rounds, seconds) = (1, 2),
            "--alone" => alone = true,
            "--rounds" => rounds = value()?.parse().context("parse --rounds")?,
            "--seconds" => seconds = value()?.parse().context("parse --seconds")?,
            "--only" => cases.push(Case::parse(value()?)?),
            "--ours" => ours = Some(PathBuf::from(value()?)),
            "--peer" => extra.push(other(value()?)?),
            _ => bail!("unexpected argument `{argument}`\n{USAGE}"),
        }
    }
    if cases.is_empty() {
        cases = Case::ALL.to_vec();
    }
    let mut peers = vec![self::ours(ours)?];
    if !alone {
        peers.extend(installed());
        peers.extend(extra);
    }
    Ok(Plan {
        peers,
        cases,
        rounds,
        seconds,
        far: None,
    })
}

/// Returns ours: the given program, or what is built now.
pub(crate) fn ours(program: Option<PathBuf>) -> Result<Peer> {
    let program = match program {
        Some(program) => program,
        None => build()?,
    };
    Ok(Peer {
        name: "ginnel".to_owned(),
        program,
        driven: Driven::Wg(&["tun", "-f"]),
    })
}

fn build() -> Result<PathBuf> {
    step::must(step::cargo(&["build", "--release", "--package", "ginnel"]))?;
    Ok(crate::root().join("target/release/ginnel"))
}

/// Parses the value of `--peer`.
pub(crate) fn other(text: &str) -> Result<Peer> {
    let (name, path) = text.split_once('=').context("--peer takes NAME=PATH")?;
    Ok(peer(name, PathBuf::from(path)))
}

fn peer(name: &str, program: PathBuf) -> Peer {
    let dropping = ["boringtun", "gotatun"];
    let arguments: &[&str] = if dropping.iter().any(|prefix| name.starts_with(prefix)) {
        &["--disable-drop-privileges", "-f"]
    } else {
        &["-f"]
    };
    Peer {
        name: name.to_owned(),
        program,
        driven: Driven::Wg(arguments),
    }
}

/// Returns the peers that stand in PATH.
pub(crate) fn installed() -> Vec<Peer> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &str| {
        let mut places = std::env::split_paths(&path).map(|place| place.join(name));
        places.find(|place| place.is_file())
    };
    ["wireguard-go", "boringtun-cli"]
        .into_iter()
        .filter_map(|name| Some(peer(name, find(name)?)))
        .collect()
}
