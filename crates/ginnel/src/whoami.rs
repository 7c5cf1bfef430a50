//! `ginnel whoami`: as whom the server sees this machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::{admin, api::Client, cli::Global, enrolment::State, terminal};

/// Say as whom the server sees this machine
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel whoami
  ginnel whoami --json";

/// Runs the command.
pub(crate) async fn run(_: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    let enrolment = state.enrolment()?;
    let token = match state.session()? {
        Some(session) => session.token,
        None => enrolment.token.clone(),
    };
    let answer = Client::with_token(&enrolment.url, token)?.whoami().await?;
    if global.json {
        terminal::json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut words = Vec::new();
    if let Some(user) = &answer.user_name {
        let role = answer.role.map(|role| format!(" ({role})"));
        words.push(format!("signed in as {user}{}", role.unwrap_or_default()));
    }
    words.push(format!("node {}", enrolment.name));
    if let Some(org) = &enrolment.org {
        words.push(format!("in {org}"));
    }
    words.push(format!("at {}", enrolment.url));
    if let Some(expires) = answer.expires {
        words.push(format!("until {}", admin::time(expires)));
    }
    terminal::line(words.join(", "))?;
    Ok(ExitCode::SUCCESS)
}
