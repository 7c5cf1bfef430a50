//! `ginnel metrics`: what a node counts, as Prometheus reads it.

mod exposition;
pub(crate) mod listener;

use std::{process::ExitCode, time::Duration};

use crate::{
    agent::{
        Client, client,
        protocol::{self, Answer, Control, Request},
    },
    cli::Global,
    enrolled::Contact,
    remedy::advise,
    terminal,
};
use tunnel::Tunnel;

pub(crate) use self::exposition::PEERS_MAX;

/// Print the metrics of this node for Prometheus
///
/// Asks the local agent, starts nothing, and prints the text format of Prometheus. `ginnel up`,
/// `server` and `gateway` serve the same over HTTP with --metrics.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel metrics
  ginnel metrics > /var/lib/prometheus/node-exporter/ginnel.prom
  ginnel up --metrics 127.0.0.1:9586              then: curl http://127.0.0.1:9586/metrics";

/// What one answer is made of.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Version of the program.
    pub(crate) version: String,
    /// How it stands with the control plane; `None` where there is none to reach.
    pub(crate) control: Option<Control>,
    /// Open connections of commands; `None` where no commands come.
    pub(crate) connections: Option<usize>,
    /// What the node says.
    pub(crate) node: model::status::Status,
}

const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the agent, if it runs, and prints.
pub(crate) async fn run(_args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let answer = Client::of(global)?
        .ask_if_running(&Request::Status, TIMEOUT)
        .await?;
    match answer {
        Some((Answer::Status(status), _)) => {
            let text = Snapshot::from(*status).text();
            terminal::line(text.trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Some((answer, _)) => Err(client::unexpected(&answer)),
        None => Err(advise(
            "local agent: none runs, so there is nothing to measure",
            "start this machine's node with `ginnel up`",
        )),
    }
}

impl Snapshot {
    /// Asks the node of a process that serves no commands.
    pub(crate) fn of(tunnel: &Tunnel, contact: Option<(&str, &Contact)>) -> Self {
        let (node, now) = tunnel.with(|node, now| (node.status(now), now));
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control: contact.map(|(url, contact)| contact.status(now, url)),
            connections: None,
            node,
        }
    }

    /// Writes it in the text format of Prometheus.
    pub(crate) fn text(self) -> String {
        exposition::text(self)
    }
}

impl From<protocol::Status> for Snapshot {
    fn from(status: protocol::Status) -> Self {
        Self {
            version: status.version,
            control: status.control,
            connections: Some(status.connections),
            node: status.node,
        }
    }
}
