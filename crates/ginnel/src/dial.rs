//! `ginnel dial`: one connection on stdin and stdout.

use std::process::ExitCode;

use crate::cli::Global;

/// Connect stdin and stdout to a remote port
///
/// Ends when both sides have ended. Fits OpenSSH's ProxyCommand. The end of stdin ends our direction only, so the answer is still read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name or address of the remote machine
    host: String,

    /// Its TCP port
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// Give up after this many seconds without a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    timeout: u32,
}

const EXAMPLES: &str = "\
Examples:
  ginnel dial db 5432
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | ginnel dial web 80
  ssh -o ProxyCommand='ginnel dial %h %p' root@db";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let _ = (args, global);
    std::future::ready(()).await;
    Ok(ExitCode::FAILURE)
}
