//! `ginnel resolve`: what a name means inside the tunnel.

use std::process::ExitCode;

use crate::{agent::protocol::RecordKind, cli::Global};

/// Look a name up inside the tunnel
///
/// Asks the network's own resolver: that of the organisation, or the DNS line of a plain configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The name
    name: String,

    /// Which records: A, AAAA or TXT; A and AAAA when left out
    #[arg(ignore_case = true)]
    kind: Option<RecordKind>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel resolve db
  ginnel resolve _whoami.internal TXT
  ginnel resolve web.svc AAAA --json";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let _ = (args, global);
    std::future::ready(()).await;
    Ok(ExitCode::FAILURE)
}
