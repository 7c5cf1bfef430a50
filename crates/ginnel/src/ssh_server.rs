//! `ginnel ssh-server`: the SSH server of a machine, OpenSSH's or our own.

mod openssh;
mod principals;
mod run;

use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::Global;

/// Serve SSH to holders of the organisation's certificates
///
/// `install` lets this machine's OpenSSH accept them, on nodes with a network interface
/// (`ginnel up --tun`): the server sees from which address a person comes, and a certificate works
/// from one address only. `run` is a server of its own that knows no other credential.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh-server install     as root; keys and passwords go on working beside certificates
  ginnel ssh-server remove      takes all of it back
  ginnel ssh-server run --listen 127.0.0.1:2222 --user-ca user_ca.pub --host-key host_key";

#[derive(Debug, Subcommand)]
enum Action {
    /// Configure OpenSSH's server, test the result, and reload it
    Install(openssh::Args),
    /// Renew what `install` wrote where it is due; a timer calls this every hour
    Renew(openssh::Args),
    /// Take back what `install` did, and reload
    Remove(openssh::Args),
    /// Say whether a certificate may log in to an account; sshd asks this at each login
    #[command(hide = true)]
    Principals(principals::Args),
    Run(run::Args),
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Install(args) => openssh::install(&args, global).await,
        Action::Renew(args) => openssh::renew(&args, global).await,
        Action::Remove(args) => openssh::remove(&args, global),
        Action::Principals(args) => principals::run(&args, global),
        Action::Run(args) => run::run(args).await,
    }
}
