//! What is measured, and the table of it.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{Measured, kernel::Direction, relay::Path};

/// One row of the table: a path and what goes over it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// `None` is a TUN without a relay.
    pub(crate) path: Option<Path>,
    pub(crate) direction: Direction,
    pub(crate) streams: usize,
    /// The TUN takes and gives super-packets.
    pub(crate) large: bool,
    /// Connections that are open beside the streams.
    pub(crate) idle: usize,
    /// Streams of a kernel with CUBIC that send over the same bottleneck.
    pub(crate) rivals: usize,
    /// Small exchanges, each over a connection of its own, instead of streams.
    pub(crate) exchanges: bool,
    /// smoltcp takes part.
    smoltcp: bool,
    algorithms: &'static [&'static str],
}

/// Whose case it is, and with which congestion control who sends does so.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Contestant {
    Ours(&'static str),
    Kernel(&'static str),
    /// With CUBIC.
    Smoltcp,
}

/// What the arguments ask for.
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
    pub(crate) seeds: u64,
    pub(crate) seconds: u64,
    /// Nothing is measured, but so many seconds long compared.
    pub(crate) soak: Option<u64>,
}

/// The results, in the order in which they came.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<(String, Contestant)>,
    values: BTreeMap<(String, Contestant), Vec<Measured>>,
}

/// The bottleneck of every path.
const RATE: u64 = 100_000_000;
const QUEUE: u64 = 500_000;

impl Contestant {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Ours(algorithm) => format!("ginnel {algorithm}"),
            Self::Kernel(algorithm) => format!("kernel {algorithm}"),
            Self::Smoltcp => "smoltcp cubic".to_owned(),
        }
    }
}

impl Case {
    /// Everybody who runs it, ours first.
    pub(crate) fn contestants(&self) -> impl Iterator<Item = Contestant> + use<'_> {
        let ours = self.algorithms.iter().map(|name| Contestant::Ours(name));
        let kernels = self.algorithms.iter().map(|name| Contestant::Kernel(name));
        // Nothing compares with a kernel that has no other kernel behind the TUN.
        let kernels = kernels.filter(|_| self.path.is_some());
        let smoltcp = self.smoltcp.then_some(Contestant::Smoltcp);
        ours.chain(kernels).chain(smoltcp)
    }

    fn over(name: String, path: Option<Path>, direction: Direction) -> Self {
        Self {
            name,
            path,
            direction,
            streams: 1,
            large: false,
            idle: 0,
            rivals: 0,
            exchanges: false,
            smoltcp: false,
            algorithms: &["cubic"],
        }
    }
}

/// A bottleneck of 100 Mbit/s with a drop-tail queue, `round_trip` in milliseconds.
pub(crate) fn path(round_trip: u64, loss: f64) -> Path {
    Path {
        rate: RATE,
        queue: QUEUE,
        delay: Duration::from_millis(round_trip) / 2,
        loss,
        reordering: 0.0,
        duplication: 0.0,
    }
}

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, direction) in [("send", Direction::Up), ("receive", Direction::Down)] {
        let mut direct = Case::over(format!("direct-{name}"), None, direction);
        direct.smoltcp = true;
        cases.push(direct);
        for (count, idle) in [("10,000", 10_000), ("100,000", 100_000)] {
            let mut beside = Case::over(format!("idle-{count}-{name}"), None, direction);
            beside.idle = idle;
            cases.push(beside);
        }
        let mut large = Case::over(format!("large-{name}"), None, direction);
        large.large = true;
        cases.push(large);
    }
    for round_trip in [20, 50, 100] {
        let name = format!("queue-{round_trip}ms");
        let path = Some(path(round_trip, 0.0));
        let mut case = Case::over(name, path, Direction::Up);
        case.algorithms = &["cubic", "bbr"];
        cases.push(case);
    }
    for round_trip in [20, 50, 100] {
        for (percent, loss) in [("0.1", 0.001), ("1", 0.01), ("3", 0.03)] {
            let name = format!("loss-{percent}%-{round_trip}ms");
            let path = Some(path(round_trip, loss));
            let mut case = Case::over(name, path, Direction::Up);
            case.algorithms = &["cubic", "bbr"];
            case.smoltcp = true;
            cases.push(case);
        }
    }
    for round_trip in [20, 50, 100] {
        for (percent, loss) in [("0.1", 0.001), ("1", 0.01), ("3", 0.03)] {
            let name = format!("receive-{percent}%-{round_trip}ms");
            let mut case = Case::over(name, Some(path(round_trip, loss)), Direction::Down);
            case.algorithms = &["bbr"];
            cases.push(case);
        }
    }
    for streams in [1, 4] {
        let name = format!("beside-4-cubic-{streams}-50ms");
        let mut case = Case::over(name, Some(path(50, 0.0)), Direction::Up);
        case.algorithms = &["cubic", "bbr"];
        case.streams = streams;
        case.rivals = 4;
        cases.push(case);
    }
    let mut short = Case::over(
        "short-10kB-1%-50ms".to_owned(),
        Some(path(50, 0.01)),
        Direction::Up,
    );
    short.exchanges = true;
    cases.push(short);
    let path = Some(path(50, 0.01));
    let mut many = Case::over("streams-64-1%-50ms".to_owned(), path, Direction::Up);
    many.algorithms = &["cubic", "bbr"];
    many.streams = 64;
    cases.push(many);
    cases
}

impl Plan {
    /// Reads the arguments: `--seeds N`, `--seconds N`, `--soak N`, and `--only PREFIX` of
    /// cases as often as wanted.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut plan = Self {
            cases: all(),
            seeds: 3,
            seconds: 10,
            soak: None,
        };
        let mut only: Vec<&str> = Vec::new();
        let mut rest = arguments.iter().filter(|argument| *argument != "--bench");
        while let Some(argument) = rest.next() {
            let value = rest.next();
            let value = value.with_context(|| format!("{argument} takes a value"))?;
            match argument.as_str() {
                "--seeds" => plan.seeds = value.parse().context("parse --seeds")?,
                "--seconds" => plan.seconds = value.parse().context("parse --seconds")?,
                "--soak" => plan.soak = Some(value.parse().context("parse --soak")?),
                "--only" => only.push(value),
                other => anyhow::bail!("`{other}`: give --seeds, --seconds, --only or --soak"),
            }
        }
        let wanted = |name: &str| only.iter().any(|prefix| name.starts_with(prefix));
        plan.cases
            .retain(|case| only.is_empty() || wanted(&case.name));
        ensure!(!plan.cases.is_empty(), "no case begins like that");
        Ok(plan)
    }
}

impl Table {
    pub(crate) fn add(&mut self, case: &Case, contestant: Contestant, measured: Measured) {
        let key = (case.name.clone(), contestant);
        if !self.rows.contains(&key) {
            self.rows.push(key.clone());
        }
        self.values.entry(key).or_default().push(measured);
    }

    /// The table; a ratio is ours over theirs with the same congestion control, above 1 in our
    /// favour, and the share of rivals is 1 where everybody has the same.
    pub(crate) fn markdown(&self) -> String {
        let mut text =
            "| case | stack | ratio | Mbit/s (range) | rivals | p50, p99 ms | user s/GB |\n"
                .to_owned();
        text += "|---|---|---|---|---|---|---|\n";
        for key in &self.rows {
            let (case, contestant) = key;
            let values = &self.values[key];
            let (low, goodput, high) = spread(values.iter().map(|value| value.goodput));
            let ratio = |algorithm| {
                let ours = (case.clone(), Contestant::Ours(algorithm));
                let ours = spread(self.values[&ours].iter().map(|value| value.goodput)).1;
                format!("{:.2}", ours / goodput)
            };
            let ratio = match *contestant {
                Contestant::Ours(_) => String::new(),
                Contestant::Kernel(algorithm) => ratio(algorithm),
                Contestant::Smoltcp => ratio("cubic"),
            };
            let some = |value: f64, digits| match value.is_nan() {
                true => String::new(),
                false => format!("{value:.digits$}"),
            };
            let rivals = spread(values.iter().filter_map(|value| value.rivals)).1;
            let rivals = some(rivals, 2);
            let waits = [0, 1].map(|at| {
                let waits = values
                    .iter()
                    .filter_map(|value| value.waits.map(|waits| waits[at]));
                some(spread(waits).1, 0)
            });
            let waits = waits.join(" ");
            let user = spread(values.iter().filter_map(|value| value.user_per_gb)).1;
            let user = some(user, 2);
            let name = contestant.name();
            writeln!(
                text,
                "| {case} | {name} | {ratio} | {goodput:.2} ({low:.2}-{high:.2}) | {rivals} | \
                 {waits} | {user} |"
            )
            .expect("a string takes everything");
        }
        text
    }
}

/// The least, the median and the most.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    (
        at(0),
        at(values.len() / 2),
        at(values.len().wrapping_sub(1)),
    )
}
