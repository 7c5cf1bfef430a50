//! `ginnel up`: the node on this machine, in the foreground.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    agent::{self, Profile},
    cli::Global,
    enrolment::State,
    terminal,
};

/// Run this machine's node until it is interrupted
///
/// Serves what the machine publishes and every other ginnel command of this user. Commands start
/// a node by themselves when none runs; a machine that others shall reach runs `up`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// In this program, with no network interface and no privileges
    #[arg(long)]
    user: bool,
}

const EXAMPLES: &str = "\
Examples:
  ginnel up
  ginnel up --user
  ginnel --config wg0.conf up";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let _ = args;
    let profile = Profile::of(global)?;
    let name = match &global.config {
        Some(path) => path.display().to_string(),
        None => State::locate(global)?.enrolment()?.name.to_string(),
    };
    let options = agent::Options {
        idle: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let ready = || {
        // Whoever closed stdout does not wait for the line.
        drop(terminal::line(format_args!("{name} is ready")));
    };
    agent::serve(&profile, options, ready).await?;
    Ok(ExitCode::SUCCESS)
}
