//! The local agent: one process for each profile holds the tunnel and serves every command.
//!
//! ```text
//!   dial, forward, proxy, ping, trace, resolve, status, metrics, peer, events, capture
//!      | one connection, one request (protocol)
//!   Unix socket 0600 --> server --> Tunnel --> UDP
//! ```
//! Two processes with one key would steal each other's session, so a lock holds the second back.
//! A newer command retires an idle agent at once and a busy one as soon as it is idle.

mod capture;
pub(crate) mod client;
mod ending;
mod enrolled;
mod events;
mod path;
mod pipe;
mod plain;
pub(crate) mod profile;
pub(crate) mod protocol;
mod relay;
mod request;
mod server;
mod trace;
pub(crate) mod wire;

use std::{io::Write as _, process::ExitCode, time::Duration};

use os::file::Lock;

use self::client::Ready;
pub(crate) use self::{
    client::Client,
    profile::Profile,
    server::{Options, serve},
};
use crate::{cli::Global, remedy};

/// How long an agent may take to say that it ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Hold the tunnel and serve the commands of this user
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Exit after this many seconds without a command [default: 600; with --config 30]
    #[arg(long, env = "GINNEL_AGENT_IDLE", value_name = "SECONDS")]
    idle: Option<u64>,

    /// Pretend to be this version, to try an upgrade
    #[arg(long, hide = true, default_value = env!("CARGO_PKG_VERSION"), value_name = "VERSION")]
    as_version: String,
}

/// Serves until idle. The first line on stdout says whether it could begin.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let outcome = async {
        let profile = Profile::of(global)?;
        let idle = args.idle.map(Duration::from_secs);
        let options = Options {
            idle: Some(idle.unwrap_or_else(|| profile.idle_default())),
            // A command that needs a node makes no interface on the way.
            interface: None,
            ssh: false,
            metrics: None,
            version: args.as_version,
        };
        serve(&profile, options, |_| say(&Ready::Ready)).await
    };
    let outcome = outcome.await;
    if let Err(error) = &outcome {
        say(&Ready::Failed {
            message: format!("{error:#}"),
            remedy: remedy::remedy_of(error).map(str::to_owned),
        });
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Ends the agent of the profile, if one runs, and keeps another from beginning until the lock
/// is dropped. Fails when connections stay open.
pub(crate) async fn stop(global: &Global) -> anyhow::Result<Lock> {
    let client = Client::of(global)?;
    client
        .ask_if_running(&protocol::Request::Drain, STOP_TIMEOUT)
        .await?;
    server::lock(&Profile::of(global)?).await
}

/// Tells the command that started us; it may have gone away.
fn say(ready: &Ready) {
    let mut line = serde_json::to_string(ready).expect("a plain enum");
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    drop(
        stdout
            .write_all(line.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}
