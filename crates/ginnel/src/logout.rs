//! `ginnel logout`: takes this device out of the network and forgets its key.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::api::ErrorCode;

use crate::{agent, api::Client, cli::Global, enrolment::State, remedy::Advise as _, terminal};

/// Take this machine out of the network and forget its keys
///
/// The server removes the node and ends the session; then the local agent stops and the state is
/// deleted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Forget the local state even if the server cannot be told
    #[arg(long)]
    force: bool,
}

const EXAMPLES: &str = "\
Examples:
  ginnel logout
  ginnel logout --force      the server is gone; an administrator removes the node there";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    let enrolment = state.enrolment()?;
    let told = Client::with_token(&enrolment.url, enrolment.token.clone())?
        .logout()
        .await;
    match told {
        Ok(()) => {}
        Err(error) if is_unknown(&error) || args.force => {}
        Err(error) => {
            return Err(error)
                .context("tell the server")
                .remedy("try again, or forget the local state alone with --force");
        }
    }
    // The agent writes into the state until it has ended.
    let _no_agent = agent::stop(global).await?;
    // A node that was killed keeps the machine from saying in the clear what was meant for it.
    tunnel::remove_left_routes().await;
    state.clear()?;
    let text = format_args!("{} has left the network", enrolment.name);
    terminal::done(text, global.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells whether the server has forgotten the node already.
fn is_unknown(error: &crate::api::Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::NodeRemoved | ErrorCode::TokenUnknown | ErrorCode::TokenRevoked)
    )
}
