//! `ginnel ping`: is it there, and how far.

use std::{net::IpAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{net::UnixStream, time};

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Request},
        wire,
    },
    cli::Global,
    terminal,
};

/// Send ICMP echo requests through the tunnel
///
/// Needs no root. Prints a line for each answer and statistics at the end, as ping does. Ends with
/// 1 when nothing answered.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name or address of the remote machine
    host: String,

    /// Stop after this many requests
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,

    /// Wait this many seconds between requests
    #[arg(
        short,
        long,
        default_value_t = 1.0,
        value_name = "SECONDS",
        value_parser = parse_interval
    )]
    interval: f64,

    /// Payload of a request, in bytes
    #[arg(short, long, default_value_t = 56, value_name = "BYTES")]
    size: u16,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ping db
  ginnel ping -c 3 -i 0.2 10.0.0.5";

/// The agent bounds name and handshake; this bounds the agent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than the stack waits for an answer: then the agent is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What was found, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
struct Report {
    host: String,
    address: Option<IpAddr>,
    transmitted: u64,
    received: u64,
    loss_percent: f64,
    round_trip_ms: Option<RoundTrip>,
    #[serde(skip)]
    times_ms: Vec<f64>,
}

/// Statistics over all answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RoundTrip {
    pub(crate) min: f64,
    pub(crate) avg: f64,
    pub(crate) max: f64,
    pub(crate) mdev: f64,
}

/// Answers that the statistics remember; further ones are only counted.
const TIMES_MAX: usize = 1_000_000;

/// Sends requests until all are answered or Ctrl-C.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let interval = Duration::from_secs_f64(args.interval);
    let request = Request::Ping {
        host: args.host.clone(),
        count: args.count,
        interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        size: args.size,
    };
    let (answer, mut stream) = Client::of(global)?.ask(&request, TIMEOUT).await?;
    let Answer::Pinging(address) = answer else {
        return Err(client::unexpected(&answer));
    };
    let mut report = Report {
        host: args.host,
        address: Some(address),
        ..Report::default()
    };
    if !global.json {
        let (host, size) = (&report.host, args.size);
        terminal::line(format_args!("PING {host} ({address}): {size} data bytes"))?;
    }
    tokio::select! {
        ended = receive(&mut stream, &mut report, interval, global.json) => ended?,
        _ = tokio::signal::ctrl_c() => {}
    }
    report.finish();
    if global.json {
        terminal::json(&report)?;
    } else {
        terminal::line(report.summary())?;
    }
    Ok(if report.received > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn receive(
    stream: &mut UnixStream,
    report: &mut Report,
    interval: Duration,
    quiet: bool,
) -> anyhow::Result<()> {
    let address = report
        .address
        .map(|address| address.to_string())
        .unwrap_or_default();
    loop {
        let answer = time::timeout(SILENCE_MAX + interval, wire::receive(stream)).await;
        let answer = answer.context("local agent: it says nothing more")?;
        let Some(answer) = answer.context("local agent: read its answer")? else {
            anyhow::bail!("local agent: it has ended");
        };
        match answer {
            Answer::Echo {
                sequence,
                round_trip_us: Some(time),
                ..
            } => {
                report.add(time);
                if !quiet {
                    let time = milliseconds(time);
                    terminal::line(format_args!(
                        "from {address}: seq={sequence} time={time:.3} ms"
                    ))?;
                }
            }
            Answer::Echo {
                sequence, error, ..
            } => {
                report.transmitted += 1;
                if !quiet {
                    let why = error.unwrap_or_else(|| "no answer".to_owned());
                    terminal::line(format_args!("from {address}: seq={sequence} {why}"))?;
                }
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
            | Answer::Tracing(_)
            | Answer::Traced(_)
            | Answer::Status(_)
            | Answer::Draining { .. }
            | Answer::Retired
            | Answer::Failed(_) => return Err(client::unexpected(&answer)),
        }
    }
}

impl Report {
    fn add(&mut self, time_us: u64) {
        self.transmitted += 1;
        self.received += 1;
        if self.times_ms.len() < TIMES_MAX {
            self.times_ms.push(milliseconds(time_us));
        }
    }

    fn finish(&mut self) {
        self.loss_percent = loss_percent(self.transmitted, self.received);
        self.round_trip_ms = statistics(&self.times_ms);
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "--- {} ping statistics ---\n{} requests, {} answers, {:.1}% loss",
            self.host, self.transmitted, self.received, self.loss_percent
        );
        if let Some(RoundTrip {
            min,
            avg,
            max,
            mdev,
        }) = self.round_trip_ms
        {
            text +=
                &format!("\nround trip min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms");
        }
        text
    }
}

pub(crate) fn statistics(times: &[f64]) -> Option<RoundTrip> {
    if times.is_empty() {
        return None;
    }
    let count = u32::try_from(times.len()).map_or(f64::from(u32::MAX), f64::from);
    let avg = times.iter().sum::<f64>() / count;
    let variance = times.iter().map(|time| (time - avg).powi(2)).sum::<f64>() / count;
    let min = times.iter().copied().fold(f64::INFINITY, f64::min);
    let max = times.iter().copied().fold(0.0, f64::max);
    Some(RoundTrip {
        min,
        avg,
        max,
        mdev: variance.sqrt(),
    })
}

pub(crate) fn milliseconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64() * 1_000.0
}

/// Tells how many of a hundred requests had no answer; zero when there was none.
pub(crate) fn loss_percent(requests: u64, answers: u64) -> f64 {
    if requests == 0 {
        return 0.0;
    }
    let lost = requests.saturating_sub(answers);
    Duration::from_nanos(lost).as_secs_f64() / Duration::from_nanos(requests).as_secs_f64() * 100.0
}

pub(crate) fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.01..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "give from 0.01 to 3600 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_reads_as_that_of_ping() {
        let mut report = Report {
            host: "db".into(),
            ..Report::default()
        };
        for time in [1_000, 3_000] {
            report.add(time);
        }
        report.transmitted += 2;
        report.finish();
        assert_eq!(
            report.summary(),
            "--- db ping statistics ---\n4 requests, 2 answers, 50.0% loss\n\
             round trip min/avg/max/mdev = 1.000/2.000/3.000/1.000 ms"
        );
    }

    #[test]
    fn an_interval_is_bounded() {
        assert_eq!(parse_interval("0.2"), Ok(0.2));
        for text in ["0", "-1", "NaN", "inf", "1e9", "x"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
