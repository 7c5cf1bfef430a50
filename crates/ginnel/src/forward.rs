//! `ginnel forward`: remote ports on this machine.

mod spec;

use std::process::ExitCode;

use crate::{cli::Global, forward::spec::Spec};

/// Make remote ports reachable on this machine, until Ctrl-C
///
/// Each SPEC listens on this machine and leads every connection through the tunnel. Names are
/// resolved inside the tunnel. The addresses that are listened at are printed, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// [BIND:]PORT:HOST:PORT, with /udp at the end for UDP, or PATH:HOST:PORT for a Unix socket
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<Spec>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel forward 5432:db:5432                     then: psql -h 127.0.0.1
  ginnel forward 0:db:5432 8080:web:80            several at once; port 0 lets the system choose
  ginnel forward 5353:10.0.0.53:53/udp            UDP
  ginnel forward '[::1]:80:[fd00::1]:80'          IPv6 stands in brackets
  ginnel forward /tmp/.s.PGSQL.5432:db:5432       a Unix socket; then: psql -h /tmp";

/// Runs the forwards until the process is interrupted.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let _ = (args, global);
    std::future::ready(()).await;
    Ok(ExitCode::FAILURE)
}
