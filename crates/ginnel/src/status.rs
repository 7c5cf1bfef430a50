//! `ginnel status`: what the local agent does.

use std::process::ExitCode;

use crate::cli::Global;

/// Show the tunnel and what runs through it
///
/// Says whether the local agent runs, the age of the last handshake, bytes in each direction and open connections.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel status
  ginnel --config wg0.conf status --json";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let _ = (args, global);
    std::future::ready(()).await;
    Ok(ExitCode::FAILURE)
}
