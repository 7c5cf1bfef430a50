//! `ginnel login`: signs a person in and makes this device a node of hers.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::{api::EnrolRequest, name::Label, token};

use crate::{api::Client, cli::Global, enrol, enrolment::State, remedy::Advise as _, terminal};

/// Sign in and make this device yours in the network
///
/// The server prints a one-time login token at its first start; `ginnel user add` invites others
/// with one, and `ginnel token add --kind login` signs a further device in.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group = enrol::token_required())]
pub(crate) struct Args {
    /// The server, as it printed itself
    #[arg(value_name = "URL")]
    url: String,

    #[command(flatten)]
    token: enrol::TokenSource,

    /// The device's name in the organisation [default: its host name]
    #[arg(long)]
    name: Option<Label>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel login https://vpn.example.org:8443 --token ginnel-login-…
  ginnel login https://vpn.example.org:8443 --token-file token.txt --name laptop";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    enrol::refuse_second(&state)?;
    let token = args
        .token
        .read()?
        .require(token::Kind::Login)
        .context("sign-in")
        .remedy(
            "the server prints a login token at its first start, `ginnel user add` another; a \
             machine uses `join`",
        )?;
    let name = enrol::name(args.name)?;
    let key = state.private_key_or_new()?;
    let request = EnrolRequest {
        name,
        public_key: enrol::public_key(&key),
    };
    let client = Client::with_token(&args.url, token)?;
    let answer = client.login(&request).await?;
    state.keep_session(&answer)?;
    state.keep_enrolled(&args.url, &answer.device)?;
    let device = &answer.device;
    if global.json {
        terminal::json(&serde_json::json!({
            "user": answer.user_name, "id": device.id, "name": device.name, "org": device.org,
            "address": device.address, "expires": answer.session_expires,
        }))?;
    } else {
        terminal::line(format_args!(
            "signed in as {}; this device is {} in {} with address {}",
            answer.user_name, device.name, device.org, device.address
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
