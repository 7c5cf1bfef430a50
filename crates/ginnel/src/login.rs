//! `ginnel login`: signs a person in and makes this device a node of hers.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use control::DEFAULT_ORG;
use model::{
    api::{EnrolRequest, LoggedIn},
    name::Label,
    token::{self, Pin},
};

use crate::{
    api::Client, cli::Global, enrol, enrolment::State, remedy::Advise as _, sign_in, terminal,
};

/// Sign in and make this device yours in the network
///
/// Without a token, the identity provider of the organisation signs you in: in a browser here, or
/// with --device in a browser anywhere. The server prints a one-time login token at its first
/// start; `ginnel user add` invites others with one, and `ginnel token add --kind login` signs a
/// further device in.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The server, as it printed itself
    #[arg(value_name = "URL")]
    url: String,

    #[command(flatten)]
    token: enrol::TokenSource,

    /// The organisation whose identity provider signs you in
    #[arg(long, default_value = DEFAULT_ORG)]
    org: Label,

    /// Sign in with a code in any browser instead of one on this machine
    #[arg(long)]
    device: bool,

    /// The pin of the server's own authority, as `ginnel oidc show` prints it
    #[arg(long)]
    pin: Option<Pin>,

    /// The device's name in the organisation [default: its host name]
    #[arg(long)]
    name: Option<Label>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel login https://vpn.example.org:8443 --org acme
  ginnel login https://vpn.example.org:8443 --org acme --device
  ginnel login https://vpn.example.org:8443 --token ginnel-login-…
  ginnel login https://vpn.example.org:8443 --token-file token.txt --name laptop";

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    let answer = if args.token.is_given() {
        by_token(&args, &state).await?
    } else {
        by_provider(&args, &state).await?
    };
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

async fn by_token(args: &Args, state: &State) -> Result<LoggedIn> {
    enrol::refuse_second(state)?;
    let token = args
        .token
        .read()?
        .require(token::Kind::Login)
        .context("sign-in")
        .remedy(
            "the server prints a login token at its first start, `ginnel user add` another; a \
             machine uses `join`",
        )?;
    let name = enrol::name(args.name.clone())?;
    let key = state.private_key_or_new()?;
    let request = EnrolRequest {
        name,
        public_key: enrol::public_key(&key),
    };
    let client = Client::with_token(&args.url, token)?;
    Ok(client.login(&request).await?)
}

async fn by_provider(args: &Args, state: &State) -> Result<LoggedIn> {
    // A person whose session has ended signs in again on the same device.
    let earlier = match state.is_enrolled() {
        true => Some(state.enrolment()?).filter(|_| state.session().is_ok_and(|it| it.is_some())),
        false => None,
    };
    let earlier = earlier.filter(|earlier| earlier.url == args.url);
    if earlier.is_none() {
        enrol::refuse_second(state)?;
    }
    let pin = args.pin.or_else(|| earlier.as_ref()?.token.pin());
    let known_name = earlier.as_ref().map(|earlier| earlier.name.clone());
    let name = enrol::name(args.name.clone().or(known_name))?;
    let key = state.private_key_or_new()?;
    let client = Client::new(&args.url, pin, None)?;
    let attempt = sign_in::Attempt {
        client: &client,
        org: args.org.clone(),
        name,
        public_key: enrol::public_key(&key),
    };
    if args.device {
        sign_in::with_device_code(attempt).await
    } else {
        sign_in::in_browser(attempt).await
    }
}
