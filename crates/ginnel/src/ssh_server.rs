//! `ginnel ssh-server`: the SSH server of a machine, without a network around it.

mod run;

use std::process::ExitCode;

use clap::Subcommand;

/// Serve SSH to holders of certificates
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh-server run --listen 127.0.0.1:2222 --user-ca user_ca.pub --host-key host_key";

#[derive(Debug, Subcommand)]
enum Action {
    Run(run::Args),
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Run(args) => run::run(args).await,
    }
}
