//! `ginnel join`: makes this machine a node.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::{api::EnrolRequest, name::Label, token};

use crate::{api::Client, cli::Global, enrol, enrolment::State, remedy::Advise as _, terminal};

/// Make this machine a node of an organisation
///
/// The token names the organisation and carries the fingerprint of the server's certificate
/// authority, so no certificate needs to be copied. The machine makes its own key and keeps it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group = enrol::token_required())]
pub(crate) struct Args {
    /// The server, as it printed itself
    #[arg(value_name = "URL")]
    url: String,

    #[command(flatten)]
    token: enrol::TokenSource,

    /// The machine's name in the organisation [default: its host name]
    #[arg(long)]
    name: Option<Label>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel join https://vpn.example.org:8443 --token ginnel-join-… --name db
  ginnel join https://vpn.example.org:8443 --token-file token.txt

Afterwards: `ginnel up`";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    enrol::refuse_second(&state)?;
    let token = args
        .token
        .read()?
        .require(token::Kind::Join)
        .context("sign-in")
        .remedy("ask an administrator for `ginnel token add`, which prints a join token")?;
    let name = enrol::name(args.name)?;
    let key = state.private_key_or_new()?;
    let request = EnrolRequest {
        name,
        public_key: enrol::public_key(&key),
    };
    let client = Client::with_token(&args.url, token)?;
    let enrolled = client.join(&request).await?;
    state.keep_enrolled(&args.url, &enrolled)?;
    if global.json {
        terminal::json(&serde_json::json!({
            "id": enrolled.id, "name": enrolled.name, "org": enrolled.org,
            "address": enrolled.address, "state": enrolled.map.own.state,
        }))?;
    } else {
        terminal::line(format_args!(
            "joined {} as {} with address {}",
            enrolled.org, enrolled.name, enrolled.address
        ))?;
    }
    if let Some((why, remedy)) = enrolled.map.own.hindrance() {
        terminal::note(format_args!("{why}: {remedy}"));
    }
    Ok(ExitCode::SUCCESS)
}
