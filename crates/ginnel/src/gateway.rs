//! `ginnel gateway`: a gateway apart from the server.

use std::{
    net::{Ipv6Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use model::{api::GatewayRequest, endpoint::Endpoint, name::Label, token};

use crate::{
    api::Client,
    cli::Global,
    enrol,
    enrolled::{Enrolled, Source},
    enrolment::{Enrolment, State},
    metrics::{self, Snapshot},
    remedy::Advise as _,
    terminal,
};

/// Run a gateway apart from the server
///
/// Forwards between the nodes of each organisation and answers their names; needs no root. It
/// keeps its last map and where its nodes are: it works on while the server is away and carries
/// traffic again as soon as it restarts. The first start needs a gateway token and --endpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The server, as it printed itself
    #[arg(value_name = "URL")]
    url: String,

    #[command(flatten)]
    token: Option<enrol::TokenSource>,

    /// How nodes reach the gateway, for the first start
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<Endpoint>,

    /// Where it listens for WireGuard [default: the port of --endpoint]
    #[arg(long, value_name = "ADDR:PORT")]
    wireguard: Option<SocketAddr>,

    /// The gateway's name [default: the host name]
    #[arg(long)]
    name: Option<Label>,

    #[command(flatten)]
    metrics: metrics::listener::Address,
}

const EXAMPLES: &str = "\
Examples:
  ginnel gateway https://vpn.example.org:8443 --token-file token.txt \\
      --endpoint gw.example.org:51820
  ginnel gateway https://vpn.example.org:8443          again, after a restart";

/// Runs the gateway until it is interrupted or removed.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    let _lock = state.lock("gateway")?;
    if !state.is_enrolled() {
        enrol_gateway(&args, &state).await?;
    }
    let enrolment = state.enrolment()?;
    let key = state
        .private_key()?
        .context("the state directory has no private key")?;
    let listen = match args.wireguard {
        Some(listen) => listen,
        None => default_listen(&state)?,
    };
    let listener = args.metrics.listen().await?;
    let client = Client::with_token(&enrolment.url, enrolment.token)?;
    let source = Source::Server(Arc::new(client));
    let enrolled = Enrolled::open(state, &key, source, listen, None).await?;
    let port = enrolled.tunnel().port();
    if global.json {
        terminal::json(&serde_json::json!({ "name": enrolment.name, "port": port }))?;
    } else {
        terminal::line(format_args!(
            "gateway {} is ready on UDP port {port}",
            enrolment.name
        ))?;
    }
    if let Some(listener) = &listener {
        listener.announce(global.json)?;
    }
    let (tunnel, contact, url) = (enrolled.tunnel().clone(), enrolled.contact(), enrolment.url);
    let snapshot = move || Snapshot::of(&tunnel, Some((&url, &contact)));
    tokio::select! {
        never = metrics::listener::serve(listener, snapshot) => match never {},
        ended = enrolled.run() => ended.map(|()| ExitCode::SUCCESS),
        _ = terminal::interrupted() => Ok(ExitCode::SUCCESS),
    }
}

const LISTEN: &str = "listen.json";

fn default_listen(state: &State) -> Result<SocketAddr> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    Ok(state.read(LISTEN)?.unwrap_or(any))
}

async fn enrol_gateway(args: &Args, state: &State) -> Result<()> {
    let token = args
        .token
        .as_ref()
        .context("sign-in: the first start of a gateway needs a token")
        .remedy("make one with `ginnel token add --kind gateway` and give it with --token-file")?
        .read()?
        .require(token::Kind::Gateway)
        .context("sign-in")
        .remedy("make one with `ginnel token add --kind gateway`")?;
    let endpoint = args
        .endpoint
        .as_ref()
        .context("the first start of a gateway needs its endpoint")
        .remedy("give the address and UDP port that nodes reach it at: --endpoint HOST:PORT")?;
    let key = state.private_key_or_new()?;
    let request = GatewayRequest {
        name: enrol::name(args.name.clone())?,
        public_key: enrol::public_key(&key),
        endpoint: endpoint.to_string(),
    };
    let client = Client::with_token(&args.url, token)?;
    let answer = client.enrol_gateway(&request).await?;
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, endpoint.port));
    state.write(LISTEN, &args.wireguard.unwrap_or(any))?;
    state.keep_map(&answer.map)?;
    state.keep_enrolment(&Enrolment {
        url: args.url.clone(),
        id: answer.id,
        name: answer.name,
        org: None,
        address: None,
        token: answer.node_token,
    })
}
