//! `ginnel status`: what the local agent does.

mod interface;
pub(crate) mod site;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use model::status::{Connection, Peer, Tunnel};
use tokio::time;

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Capturing, Control, Request, Status},
    },
    cli::Global,
    offload, terminal,
};

/// Show the tunnel and what runs through it
///
/// Says whether the local agent runs, how each peer stands, bytes in each direction, open
/// connections and why packets were not delivered. Starts nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Show the interface of `ginnel tun NAME` instead: offloads, and what was not delivered
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Show the TCP connections of user mode with their windows and round-trip times
    #[arg(long)]
    connections: bool,
    /// Show it anew every second until Ctrl-C; with --json an object a line
    #[arg(long, conflicts_with = "interface")]
    watch: bool,
}

const EXAMPLES: &str = "\
Examples:
  ginnel status
  ginnel status --connections
  ginnel status --watch
  ginnel --config wg0.conf status --json
  ginnel status --interface wg0";

const TIMEOUT: Duration = Duration::from_secs(5);

const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Asks the agent, if it runs, and prints.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.interface {
        return interface::show(name, global.json);
    }
    let client = Client::of(global)?;
    loop {
        let report = report(&client, &args, global.json).await?;
        if args.watch && !global.json {
            terminal::clear()?;
        }
        match global.json {
            true => terminal::json_text(&report)?,
            false => terminal::line(report)?,
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = time::sleep(WATCH_PERIOD) => {}
            interrupted = terminal::interrupted() => {
                interrupted.context("await Ctrl-C")?;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Says how it stands now.
async fn report(client: &Client, args: &Args, json: bool) -> anyhow::Result<String> {
    let answer = client.ask_if_running(&Request::Status, TIMEOUT).await?;
    match answer {
        None if json => Ok(serde_json::json!({ "running": false }).to_string()),
        None => Ok("no agent runs; the next command that needs one starts it".to_owned()),
        Some((Answer::Status(mut status), _)) if json => {
            status.tcp = status.tcp.filter(|_| args.connections);
            let mut value = serde_json::to_value(&status)?;
            value["running"] = true.into();
            Ok(value.to_string())
        }
        Some((Answer::Status(status), _)) => {
            let mut lines = vec![text(&status)];
            let connections = status.tcp.iter().flatten().filter(|_| args.connections);
            lines.extend(connections.map(connection_text));
            Ok(lines.join("\n"))
        }
        Some((answer, _)) => Err(client::unexpected(&answer)),
    }
}

fn text(status: &Status) -> String {
    let mut lines = vec![
        format!("profile      {}", status.profile),
        format!(
            "agent        version {}, process {}, up {}{}",
            status.version,
            status.pid,
            age(status.uptime_seconds),
            if status.draining {
                ", ends with its open connections"
            } else {
                ""
            }
        ),
        format!(
            "attachment   {}",
            match &status.interface {
                Some(name) => format!("interface {name}"),
                None => "user mode".to_owned(),
            }
        ),
        format!("connections  {}", status.connections),
    ];
    for line in status.offload.iter().flat_map(offload::lines) {
        lines.push(format!("offload      {line}"));
    }
    let addresses: Vec<_> = status
        .node
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    lines.push(format!("addresses    {}", addresses.join(", ")));
    if let Some(control) = &status.control {
        lines.push(format!(
            "control      {}",
            control_text(control, status.node.serial)
        ));
    }
    match &status.capture {
        Some(capture) => lines.push(format!("capture      {}", capture_text(capture))),
        None if status.key_exposed => {
            lines.push(
                "key          given away by a capture; the server has not taken another one yet"
                    .to_owned(),
            );
        }
        None => {}
    }
    for peer in &status.node.peers {
        lines.push(format!("peer         {}", peer_text(peer)));
    }
    for told in &status.sites {
        lines.push(format!("site         {}", site::text(told)));
    }
    for conflict in &status.site_conflicts {
        lines.push(format!("site         {conflict}"));
    }
    for (reason, count) in &status.node.discards {
        lines.push(format!("discarded    {count} {reason}"));
    }
    for problem in &status.node.problems {
        lines.push(format!(
            "problem      {}\n  {}",
            problem.message, problem.remedy
        ));
    }
    lines.join("\n")
}

fn capture_text(capture: &Capturing) -> String {
    let mut text = match capture.keys {
        true => "runs, with keys".to_owned(),
        false => "runs".to_owned(),
    };
    if let Some(by) = &capture.by {
        text.push_str(&format!(", asked for by {by} from elsewhere"));
    }
    if let Some(filter) = &capture.filter {
        text.push_str(&format!(": {filter}"));
    }
    text
}

fn control_text(control: &Control, serial: Option<u64>) -> String {
    let map = serial.map_or_else(|| "no map".to_owned(), |serial| format!("map {serial}"));
    match (control.reached, control.away_seconds) {
        (Some(true), _) => format!("{} reached, {map}", control.url),
        (Some(false), away) => format!(
            "{} away for {}, works by {map}: {}",
            control.url,
            age(away.unwrap_or_default()),
            control.error.as_deref().unwrap_or("no answer"),
        ),
        (None, _) => format!("{} has not answered yet, works by {map}", control.url),
    }
}

/// Tells how a peer stands, in one line.
pub(crate) fn peer_text(peer: &Peer) -> String {
    let name = match &peer.name {
        Some(name) => name.to_string(),
        None => peer.public_key.to_string(),
    };
    let endpoint = peer
        .endpoint
        .map_or_else(|| "no endpoint".to_owned(), |e| e.to_string());
    let tunnel = match peer.tunnel {
        Tunnel::Up => "up",
        Tunnel::Idle => "idle",
        Tunnel::Unanswered => "handshake unanswered",
        Tunnel::Unresolved => "name of the endpoint not resolved",
        Tunnel::NoEndpoint => "waits to be called",
    };
    let handshake = peer.last_handshake_seconds;
    let handshake = handshake.map_or_else(|| "never".to_owned(), |s| format!("{} ago", age(s)));
    let path_mtu = peer.path_mtu_bytes;
    let path_mtu = path_mtu.map_or_else(String::new, |bytes| format!(", path MTU {bytes} B"));
    format!(
        "{name} at {endpoint}: {tunnel}, last handshake {handshake}, {} B received, {} B \
         sent{path_mtu}",
        peer.traffic.received_bytes, peer.traffic.sent_bytes
    )
}

fn connection_text(told: &Connection) -> String {
    let millis = |micros: u64| format!("{}.{} ms", micros / 1_000, micros / 100 % 10);
    let or_none = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let rtt = told
        .smoothed_rtt_us
        .map_or_else(|| "none".to_owned(), millis);
    format!(
        "tcp          {} {} to {}\n  {} with cwnd {} B, ssthresh {}, {} B in flight, pace {} B/s, \
         segments of {} B\n  round trip {rtt} (varies by {}), timeout {}, {} retransmissions\n  \
         {} B acknowledged, {} B received, {} B to send, {} B to read, windows {} B and {} B",
        told.state,
        told.local,
        told.remote,
        told.congestion_control,
        told.cwnd_bytes,
        or_none(told.ssthresh_bytes.map(u64::from)),
        told.in_flight_bytes,
        or_none(told.pacing_rate_bytes),
        told.segment_bytes,
        millis(told.rtt_variation_us),
        millis(told.retransmission_timeout_us),
        told.retransmissions,
        told.acknowledged_bytes,
        told.received_bytes,
        told.send_queue_bytes,
        told.receive_queue_bytes,
        told.send_window_bytes,
        told.receive_window_bytes,
    )
}

/// Writes a span of time with its two largest units.
pub(crate) fn age(seconds: u64) -> String {
    match (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    ) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_its_two_largest_units() {
        let ages = [(0, "0s"), (61, "1m1s"), (3_661, "1h1m"), (90_000, "1d1h")];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
    }
}
