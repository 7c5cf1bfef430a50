//! `ginnel up`: the node on this machine, in the foreground.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    agent::{self, Profile},
    cli::Global,
    enrolment::State,
    metrics, offload, terminal,
};
use tunnel::{INTERFACE, Tunnel, Wanted};

/// Run this machine's node until it is interrupted
///
/// Serves what the machine publishes and every other ginnel command of this user. Commands start
/// a node by themselves when none runs; a machine that others shall reach runs `up`.
///
/// A node with an interface that is killed leaves unreachable routes behind, so that nothing that
/// was meant for the network leaves the machine in the clear. The next one takes them over;
/// `logout` removes them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// With a network interface, for all programs of this machine; needs CAP_NET_ADMIN [default
    /// where that is there]
    #[arg(long, conflicts_with = "user")]
    tun: bool,

    /// In this program, with no network interface and no privileges [default elsewhere]
    #[arg(long)]
    user: bool,

    /// The name of the network interface
    #[arg(long, default_value = INTERFACE, value_name = "NAME", conflicts_with = "user")]
    interface: String,

    /// Where a network of this machine lies inside a site's prefix, reach the rest of the site; the
    /// network keeps its own addresses. Without it the whole prefix is left alone
    #[arg(long, conflicts_with = "user")]
    except_lan: bool,

    /// Serve SSH at this node's address to holders of the organisation's certificates, as root for
    /// every account that they name, else for your own only
    #[arg(long)]
    ssh: bool,

    #[command(flatten)]
    metrics: metrics::listener::Address,
}

const EXAMPLES: &str = "\
Examples:
  ginnel up
  ginnel up --user
  ginnel up --metrics 127.0.0.1:9586
  ginnel up --tun --interface office0
  ginnel up --user --ssh                        then: ginnel ssh root@NODE
  ginnel --config wg0.conf up

Environment: GINNEL_OFFLOAD=off moves every packet by itself, for kernels and network cards
whose segmentation is broken; tcp and checksums let the interface pass only so much as one.
`ginnel status` shows what passes.";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let interface = (!args.user).then_some(Wanted {
        name: args.interface,
        required: args.tun,
        except_lan: args.except_lan,
        offload: offload::max()?,
    });
    let profile = Profile::of(global)?;
    let name = match &global.config {
        Some(path) => path.display().to_string(),
        None => State::locate(global)?.enrolment()?.name.to_string(),
    };
    let listener = args.metrics.listen().await?;
    if let Some(listener) = &listener {
        listener.announce(global.json)?;
    }
    let options = agent::Options {
        idle: None,
        interface,
        ssh: args.ssh,
        metrics: listener,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let ready = |tunnel: Option<&Tunnel>| {
        let Some(tunnel) = tunnel else {
            return;
        };
        // Whoever closed stdout does not wait for the line.
        drop(match tunnel.interface() {
            Some(interface) => terminal::line(format_args!("{name} is ready on {interface}")),
            None => terminal::line(format_args!("{name} is ready")),
        });
        let hindrance = tunnel.with(|node, _| node.map()?.own.hindrance());
        if let Some((why, remedy)) = hindrance {
            drop(terminal::line(format_args!("{why}: {remedy}")));
        }
    };
    agent::serve(&profile, options, ready).await?;
    Ok(ExitCode::SUCCESS)
}
