//! `ginnel events`: what happens to this node, as it happens.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use model::{
    event::{Event, Who},
    site::Health,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
};

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, Occurrence, Request},
    },
    cli::Global,
    remedy::Advise as _,
    terminal,
};

/// Follow what happens to this node
///
/// Prints handshakes, peers that move, changes of the map and of the control plane, captures, sites
/// with several nodes that another one carries, and why packets were not delivered, each reason at
/// most once a second. With --json each is one object on a line. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel events
  ginnel events --json | jq 'select(.event == \"discarded\")'";

const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints events until Ctrl-C or the end of the agent.
pub(crate) async fn run(_args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let (answer, stream) = Client::of(global)?.ask(&Request::Events, TIMEOUT).await?;
    let Answer::Following = answer else {
        return Err(client::unexpected(&answer));
    };
    tokio::select! {
        printed = print(stream, global.json) => printed?,
        interrupted = terminal::interrupted() => interrupted.context("await Ctrl-C")?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn print(stream: UnixStream, json: bool) -> anyhow::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines
        .next_line()
        .await
        .context("local agent: read events")?
    {
        if json {
            terminal::json_text(&line)?;
            continue;
        }
        let occurrence: Occurrence = serde_json::from_str(&line)
            .context("local agent: understand an event")
            .remedy("use the same version of ginnel everywhere")?;
        terminal::line(format_args!(
            "{}  {}",
            occurrence.time,
            text(&occurrence.event)
        ))?;
    }
    Ok(())
}

fn text(event: &Event) -> String {
    let at = |endpoint: Option<std::net::SocketAddr>| {
        endpoint.map_or_else(|| "no endpoint".to_owned(), |at| at.to_string())
    };
    match event {
        Event::HandshakeCompleted { peer, endpoint } => {
            format!(
                "handshake completed with {} at {}",
                name(peer),
                at(*endpoint)
            )
        }
        Event::HandshakeAbandoned { peer, endpoint } => {
            format!(
                "handshake abandoned with {} at {}",
                name(peer),
                at(*endpoint)
            )
        }
        Event::EndpointMoved { peer, endpoint } => {
            format!("{} moved to {endpoint}", name(peer))
        }
        Event::UnknownInitiator { public_key, source } => {
            format!("initiation of the unknown key {public_key} from {source}")
        }
        Event::MapApplied { serial } => format!("map {serial} applied"),
        Event::ControlReached => "control plane reached".to_owned(),
        Event::ControlAway { error } => format!("control plane away: {error}"),
        Event::SiteMoved {
            site,
            carrier,
            former,
            former_health,
            ..
        } => format!(
            "site {site}: {carrier} carries it, no longer {former}, which {}",
            what_it_is(*former_health)
        ),
        Event::Discarded { reason, count } => format!("discarded {count} {reason}"),
        Event::CaptureBegun { keys, by } => {
            let what = if *keys {
                "capture with keys"
            } else {
                "capture"
            };
            match by {
                Some(by) => format!("{what} begun, asked for by {by} from elsewhere"),
                None => format!("{what} begun"),
            }
        }
        Event::CaptureEnded => "capture ended".to_owned(),
        Event::Missed { count } => format!("{count} events are not told: too many at once"),
    }
}

/// Says how it stands with a node that has handed a site over.
fn what_it_is(health: Health) -> &'static str {
    match health {
        Health::Healthy => "is not the preferred one",
        Health::Untried
        | Health::Silent
        | Health::NoLan
        | Health::NotForwarding
        | Health::Returning => health.in_words(),
    }
}

fn name(peer: &Who) -> String {
    match &peer.peer {
        Some(name) => name.to_string(),
        None => format!("peer {}", peer.public_key),
    }
}
