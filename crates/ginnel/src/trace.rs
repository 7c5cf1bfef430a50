//! `ginnel trace`: each hop on the way to a machine, inside and outside the tunnel.

use std::{
    cell::Cell,
    convert::Infallible,
    io::{self, IsTerminal as _, Write as _},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use os::{echo, reactor::Watched};
use serde::Serialize;
use tokio::{net::UnixStream, time};

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Outcome, Probe, Request, Trace, Traced, Way},
        wire,
    },
    cli::Global,
    ping::{RoundTrip, loss_percent, milliseconds, parse_interval, statistics},
    terminal,
};

/// Show each hop on the way to a machine, with loss and latency
///
/// Every hop inside the tunnel is asked: the gateway, the machine, and with PORT whether something
/// accepts connections there. Beside that the gateway's machine is asked outside the tunnel, so
/// that you see whether the fault is on the way to it or behind it. Needs no root. Ends with 1
/// when the machine, or its port, was not reached.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name or address of the remote machine or service
    host: String,

    /// Also open a TCP connection to this port, once in each round
    port: Option<u16>,

    /// Ask each hop so often
    #[arg(
        short,
        long,
        default_value_t = 5,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1_000)
    )]
    count: u16,

    /// Wait this many seconds between two rounds
    #[arg(
        short,
        long,
        default_value_t = 0.2,
        value_name = "SECONDS",
        value_parser = parse_interval
    )]
    interval: f64,
}

const EXAMPLES: &str = "\
Examples:
  ginnel trace db
  ginnel trace pg.svc 5432 --count 20
  ginnel trace 192-168-200-244.office.site

How to read it:
  loss outside the tunnel and at every hop   the way to the gateway loses packets
  loss from one hop on                       the way to that hop does
  loss at one hop only                       it answers few such requests, and passes the rest on
  no answer outside the tunnel alone         a firewall drops ping there: no fault
  `ginnel doctor HOST [PORT]` finds the cause of what is not reached at all.";

/// The agent bounds name and handshake; this bounds the agent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than a round may take: then the agent is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a machine outside the tunnel may take to answer.
const OUTSIDE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often progress is shown.
const REDRAW: Duration = Duration::from_secs(1);

/// Data of an echo request, as ping(8) sends it.
const SIZE: usize = 56;

/// What was found, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    host: String,
    address: IpAddr,
    port: Option<u16>,
    /// Whether the machine, or its port, was reached.
    reached: bool,
    /// The gateway's machine; `None` when there is no endpoint.
    outside: Option<Hop>,
    hops: Vec<Hop>,
    service: Option<Hop>,
}

/// One hop and what was heard of it.
#[derive(Debug, Serialize)]
struct Hop {
    /// How many routers there are up to it, from 1; `None` outside the tunnel and of a port.
    hop: Option<u8>,
    name: Option<String>,
    address: Option<IpAddr>,
    sent: u64,
    answered: u64,
    loss_percent: f64,
    round_trip_ms: Option<RoundTrip>,
    /// What its latest answer said; `silent` without any.
    outcome: Outcome,
    /// Why it could not be asked.
    error: Option<String>,
    #[serde(skip)]
    times_ms: Vec<f64>,
}

/// Asks until every hop was asked so often, or Ctrl-C.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let interval = Duration::from_secs_f64(args.interval);
    let request = Request::Trace(Trace {
        host: args.host.clone(),
        port: args.port,
        count: args.count,
        interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
    });
    let (answer, mut stream) = Client::of(global)?.ask(&request, TIMEOUT).await?;
    let Answer::Tracing(way) = answer else {
        return Err(client::unexpected(&answer));
    };
    if !global.json {
        terminal::line(begins(&args, &way))?;
    }
    let mut report = Report {
        host: args.host,
        address: way.address,
        port: args.port,
        reached: false,
        outside: way.endpoint.map(|endpoint| outside_hop(endpoint, &way)),
        hops: Vec::new(),
        service: None,
    };
    let Report {
        outside,
        hops,
        service,
        ..
    } = &mut report;
    let outside = async {
        if let Some(hop) = outside {
            ask_outside(hop, args.count, interval).await;
        }
    };
    let rounds = Cell::new(0);
    let inside = receive(&mut stream, (hops, service), interval, &rounds);
    let waited = tokio::select! {
        ended = both(inside, outside) => ended,
        never = show_progress(&rounds, args.count) => match never {},
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    show(format_args!(""));
    waited?;
    report.finish(&way);
    if global.json {
        terminal::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.reached {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn begins(args: &Args, way: &Way) -> String {
    let (host, address) = (&args.host, way.address);
    let through = match (&way.peer, way.endpoint) {
        (Some(name), Some(endpoint)) => format!(" through {name} at {endpoint}"),
        (None, Some(endpoint)) => format!(" through {endpoint}"),
        (Some(name), None) => format!(" through {name}"),
        (None, None) => String::new(),
    };
    format!(
        "the way to {host} ({address}){through}, {} rounds",
        args.count
    )
}

/// Lives as long as the hops inside are asked. A machine outside that answers late or never keeps
/// nobody waiting.
async fn both(
    inside: impl Future<Output = anyhow::Result<()>>,
    outside: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(inside, outside);
    tokio::select! {
        ended = &mut inside => {
            ended?;
            drop(time::timeout(OUTSIDE_TIMEOUT, outside).await);
            Ok(())
        }
        () = &mut outside => inside.await,
    }
}

/// Shows how far it has come: while a machine is silent, each round lasts.
async fn show_progress(rounds: &Cell<u16>, count: u16) -> Infallible {
    let mut ticks = time::interval(REDRAW);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        let round = rounds.get().saturating_add(1).min(count);
        show(format_args!("round {round} of {count}, {tick} s"));
    }
    std::future::pending().await
}

/// Replaces what stands in the last line of a terminal; says nothing in a pipe.
fn show(text: impl std::fmt::Display) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        // The rest of a longer text before is erased (ECMA-48: EL). Nobody reads a closed stderr.
        drop(write!(stderr, "\r{text}\x1b[K"));
        drop(stderr.flush());
    }
}

async fn receive(
    stream: &mut UnixStream,
    (hops, service): (&mut Vec<Hop>, &mut Option<Hop>),
    interval: Duration,
    rounds: &Cell<u16>,
) -> anyhow::Result<()> {
    loop {
        let answer = time::timeout(SILENCE_MAX + interval, wire::receive(stream)).await;
        let answer = answer.context("local agent: it says nothing more")?;
        let Some(answer) = answer.context("local agent: read its answer")? else {
            anyhow::bail!("local agent: it has ended");
        };
        match answer {
            Answer::Traced(Traced::Hop(probe)) => {
                rounds.set(probe.sequence);
                let known = hops.iter_mut().find(|hop| hop.hop == Some(probe.hop));
                match known {
                    Some(hop) => hop.add(&probe),
                    None => {
                        let mut hop = Hop::new(Some(probe.hop));
                        hop.add(&probe);
                        hops.push(hop);
                    }
                }
            }
            Answer::Traced(Traced::Port(probe)) => {
                service.get_or_insert_with(|| Hop::new(None)).add(&probe);
            }
            Answer::Done => return Ok(()),
            Answer::Hello { .. }
            | Answer::Connected { .. }
            | Answer::Ended(_)
            | Answer::Relaying
            | Answer::Records(_)
            | Answer::Capturing
            | Answer::Peer(_)
            | Answer::Whois(_)
            | Answer::Following
            | Answer::Pinging(_)
            | Answer::Echo { .. }
            | Answer::Tracing(_)
            | Answer::Status(_)
            | Answer::Draining { .. }
            | Answer::Retired
            | Answer::Failed(_) => return Err(client::unexpected(&answer)),
        }
    }
}

fn outside_hop(endpoint: SocketAddr, way: &Way) -> Hop {
    Hop {
        name: way.peer.as_ref().map(ToString::to_string),
        address: Some(endpoint.ip()),
        ..Hop::new(None)
    }
}

/// Asks the machine of the endpoint as often as the hops inside are asked.
async fn ask_outside(hop: &mut Hop, count: u16, interval: Duration) {
    let Some(address) = hop.address else {
        return;
    };
    let socket = echo::Echo::connect(address).and_then(Watched::new);
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            hop.error = Some(format!("this user may not send echo requests: {error}"));
            return;
        }
    };
    let mut clock = os::clock::Clock::start();
    let mut ticks = time::interval(interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    for sequence in 1..=count {
        ticks.tick().await;
        let begin = clock.now();
        let answer = async {
            socket.get().send(sequence, SIZE)?;
            socket.read(|socket| socket.recv(sequence)).await
        };
        let heard = time::timeout(OUTSIDE_TIMEOUT, answer).await;
        let time = clock.now().saturating_duration_since(begin);
        let outcome = match heard {
            Ok(Ok(None)) => Outcome::Reply,
            Ok(Ok(Some(_)) | Err(_)) => Outcome::Unreachable,
            Err(_) => Outcome::Silent,
        };
        let answered = outcome == Outcome::Reply;
        hop.add(&Probe {
            hop: 0,
            sequence,
            from: None,
            round_trip_us: answered.then(|| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            outcome,
        });
    }
}

impl Hop {
    fn new(hop: Option<u8>) -> Self {
        Self {
            hop,
            name: None,
            address: None,
            sent: 0,
            answered: 0,
            loss_percent: 0.0,
            round_trip_ms: None,
            outcome: Outcome::Silent,
            error: None,
            times_ms: Vec::new(),
        }
    }

    fn add(&mut self, probe: &Probe) {
        self.sent += 1;
        if let Some(time) = probe.round_trip_us {
            self.answered += 1;
            self.times_ms.push(milliseconds(time));
        }
        if probe.outcome != Outcome::Silent {
            self.outcome = probe.outcome;
            self.address = probe.from.or(self.address);
        }
    }

    fn finish(&mut self) {
        self.loss_percent = loss_percent(self.sent, self.answered);
        self.round_trip_ms = statistics(&self.times_ms);
    }

    fn note(&self, outside: bool) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        let note = match self.outcome {
            Outcome::TimeExceeded => "",
            Outcome::Reply if outside => "outside the tunnel",
            Outcome::Reply => "",
            Outcome::Silent if outside => {
                "outside the tunnel: no answer, ping may be dropped there"
            }
            Outcome::Silent => "no answer",
            Outcome::Prohibited => "prohibited: see `ginnel policy explain`",
            Outcome::Unreachable if outside => "outside the tunnel: unreachable",
            Outcome::Unreachable => "nothing is behind this hop: offline or removed",
            Outcome::Refused => "nothing listens at this port",
        };
        note.to_owned()
    }
}

impl Report {
    /// Drops what a lost answer has made look like a hop, names the rest and sums up.
    fn finish(&mut self, way: &Way) {
        self.hops.sort_by_key(|hop| hop.hop);
        let end = self.hops.iter().position(|hop| hop.outcome.is_end());
        let heard = self.hops.iter().rposition(|hop| hop.answered > 0);
        // Behind the last that answers one silent hop tells enough.
        let shown = end.unwrap_or_else(|| heard.map_or(0, |heard| heard + 1));
        self.hops.truncate(shown + 1);
        let inside = way.gateway.zip(way.peer.as_ref());
        for hop in &mut self.hops {
            let gateway = inside.filter(|(address, _)| hop.address == Some(*address));
            hop.name = match gateway {
                Some((_, name)) => Some(name.to_string()),
                None => (hop.outcome == Outcome::Reply).then(|| self.host.clone()),
            };
        }
        if let (Some(service), Some(port)) = (&mut self.service, self.port) {
            service.name = Some(format!("port {port}"));
        }
        let parts = self.outside.iter_mut().chain(&mut self.hops);
        parts.chain(&mut self.service).for_each(Hop::finish);
        let last = self.service.as_ref().or(self.hops.last());
        self.reached = last.is_some_and(|last| last.outcome == Outcome::Reply);
    }
}

fn print(report: &Report) -> io::Result<()> {
    let outside = report.outside.iter().map(|hop| (true, hop));
    let inside = report.hops.iter().chain(&report.service);
    let all: Vec<_> = outside.chain(inside.map(|hop| (false, hop))).collect();
    let rows = all
        .iter()
        .map(|(outside, hop)| row(*outside, hop))
        .collect();
    let titles = [
        "HOP", "NAME", "ADDRESS", "SENT", "LOSS", "MIN", "AVG", "MAX ms", "",
    ];
    terminal::table(&titles, rows)
}

fn row(outside: bool, hop: &Hop) -> Vec<String> {
    let time = |of: fn(&RoundTrip) -> f64| {
        let time = hop.round_trip_ms.as_ref().map(of);
        time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
    };
    let dash = || "-".to_owned();
    vec![
        hop.hop.map_or_else(dash, |hop| hop.to_string()),
        hop.name.clone().unwrap_or_else(dash),
        hop.address.map_or_else(dash, |address| address.to_string()),
        hop.sent.to_string(),
        format!("{:.1}%", hop.loss_percent),
        time(|times| times.min),
        time(|times| times.avg),
        time(|times| times.max),
        hop.note(outside),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "fd00::35";
    const NODE: &str = "fd00::2";

    fn way() -> Way {
        Way {
            address: NODE.parse().expect("an address"),
            gateway: GATEWAY.parse().ok(),
            peer: "gate".parse().ok(),
            endpoint: None,
        }
    }

    fn probe(hop: u8, from: Option<&str>, outcome: Outcome) -> Probe {
        Probe {
            hop,
            sequence: 1,
            from: from.map(|from| from.parse().expect("an address")),
            round_trip_us: from.map(|_| 2_000),
            outcome,
        }
    }

    fn report(probes: &[Probe]) -> Report {
        let mut report = Report {
            host: "db".to_owned(),
            address: way().address,
            port: None,
            reached: false,
            outside: None,
            hops: Vec::new(),
            service: None,
        };
        for probe in probes {
            let known = report
                .hops
                .iter_mut()
                .find(|hop| hop.hop == Some(probe.hop));
            match known {
                Some(hop) => hop.add(probe),
                None => {
                    let mut hop = Hop::new(Some(probe.hop));
                    hop.add(probe);
                    report.hops.push(hop);
                }
            }
        }
        report.finish(&way());
        report
    }

    fn names(report: &Report) -> Vec<Option<&str>> {
        report.hops.iter().map(|hop| hop.name.as_deref()).collect()
    }

    #[test]
    fn a_lost_answer_is_a_loss_and_no_hop() {
        let report = report(&[
            probe(1, Some(GATEWAY), Outcome::TimeExceeded),
            probe(2, None, Outcome::Silent),
            probe(3, Some(NODE), Outcome::Reply),
            probe(1, Some(GATEWAY), Outcome::TimeExceeded),
            probe(2, Some(NODE), Outcome::Reply),
            probe(3, Some(NODE), Outcome::Reply),
        ]);
        assert!(report.reached);
        assert_eq!(names(&report), [Some("gate"), Some("db")]);
        let rows: Vec<_> = report.hops.iter().map(|hop| row(false, hop)).collect();
        assert_eq!(rows[0][3..], ["2", "0.0%", "2.000", "2.000", "2.000", ""]);
        assert_eq!(rows[1][3..], ["2", "50.0%", "2.000", "2.000", "2.000", ""]);
    }

    #[test]
    fn of_what_does_not_answer_one_hop_is_shown() {
        let report = report(&[
            probe(1, Some(GATEWAY), Outcome::TimeExceeded),
            probe(2, None, Outcome::Silent),
            probe(3, None, Outcome::Silent),
        ]);
        assert!(!report.reached);
        assert_eq!(names(&report), [Some("gate"), None]);
        let row = row(false, &report.hops[1]);
        assert_eq!(
            row[1..],
            ["-", "-", "1", "100.0%", "-", "-", "-", "no answer"]
        );
    }

    #[test]
    fn a_refusal_ends_the_way_at_who_refuses() {
        let report = report(&[
            probe(1, Some(GATEWAY), Outcome::TimeExceeded),
            probe(2, Some(GATEWAY), Outcome::Prohibited),
        ]);
        assert!(!report.reached);
        assert_eq!(names(&report), [Some("gate"), Some("gate")]);
    }
}
