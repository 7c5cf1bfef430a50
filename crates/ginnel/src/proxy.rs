//! `ginnel proxy`: a SOCKS5 and HTTP proxy into the network.

use std::{net::SocketAddr, process::ExitCode};

use crate::cli::Global;

/// Run a SOCKS5 and HTTP proxy into the network, until Ctrl-C
///
/// Names are resolved inside the tunnel. SOCKS5 knows CONNECT and UDP ASSOCIATE; HTTP knows CONNECT and plain http:// requests. Without a flag both run, at ports 1080 and 8080 of this machine.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Serve SOCKS5 (RFC 1928) at this address
    #[arg(long, value_name = "ADDR:PORT")]
    socks5: Option<SocketAddr>,

    /// Serve HTTP CONNECT and http:// requests at this address
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,

    /// Let other machines in: needed for any address but a loopback address
    #[arg(long)]
    allow_remote: bool,
}

const EXAMPLES: &str = "\
Examples:
  ginnel proxy
  ginnel proxy --socks5 127.0.0.1:1080        then: curl --socks5-hostname 127.0.0.1:1080 http://web/
  ginnel proxy --http 127.0.0.1:8080          then: curl -x http://127.0.0.1:8080 http://web/";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let _ = (args, global);
    std::future::ready(()).await;
    Ok(ExitCode::FAILURE)
}
