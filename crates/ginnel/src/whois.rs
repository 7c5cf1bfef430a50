//! `ginnel whois`: whose an address in the network is, for people and for web servers.

mod auth;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use model::whois::Whois;
use tokio::net::TcpListener;

use crate::{
    agent::{
        Client, client,
        protocol::{Answer, RecordKind, Request, Sought},
    },
    cli::Global,
    remedy::{Advise as _, advise},
    terminal::{self, Column},
};

/// Say whose an address in the network is, to a person or to a web server
///
/// Answers by the map that this machine's node has: the node, and if it is a person's device, the
/// person and her role. With --listen a web server on this machine asks over HTTP at each request
/// of a client, so that it signs people in by the tunnel they come through: see docs/whois.md.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An address, or the name of a node
    #[arg(value_name = "ADDRESS|NAME", required_unless_present = "listen")]
    host: Option<String>,

    /// Answer programs of this machine at http://ADDR:PORT/auth, as nginx's auth_request asks; an
    /// address of the loopback
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "host", value_parser = loopback)]
    listen: Option<SocketAddr>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel whois db
  ginnel whois fd3a:51c2:9e01:1::7 --json
  ginnel whois --listen 127.0.0.1:9587            for nginx: see docs/whois.md";

/// The agent bounds a look-up; this bounds the agent.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Parses where to listen: who asks from elsewhere could ask about anybody.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "not of the form ADDR:PORT")?;
    if !address.ip().is_loopback() {
        return Err("not an address of the loopback, such as 127.0.0.1:9587".to_owned());
    }
    Ok(address)
}

/// Asks and prints, or answers others until it is told to end.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if global.config.is_some() {
        return Err(advise(
            "configuration: a plain one names no organisation and no people",
            "leave --config out",
        ));
    }
    let client = Client::of(global)?;
    if let Some(address) = args.listen {
        return listen(client, address, global.json).await;
    }
    let host = args.host.unwrap_or_default();
    let address = address(&client, &host).await?;
    let request = Request::Whois(Sought::Address(address));
    let (answer, _) = client.ask(&request, TIMEOUT).await?;
    let Answer::Whois(found) = answer else {
        return Err(client::unexpected(&answer));
    };
    let found = found.with_context(|| format!("map: no node of the organisation has {address}"));
    let found = found.remedy("see `ginnel node list` for the nodes that there are")?;
    terminal::show(&found, &COLUMNS, global.json)?;
    Ok(ExitCode::SUCCESS)
}

const COLUMNS: [Column<Whois>; 6] = [
    ("address", |found| found.address.to_string()),
    ("node", |found| found.node.to_string()),
    ("site", |found| or_dash(found.site.as_ref())),
    ("user", |found| or_dash(found.user.as_ref())),
    ("role", |found| or_dash(found.role.as_ref())),
    ("org", |found| found.org.to_string()),
];

fn or_dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

async fn listen(client: Client, address: SocketAddr, json: bool) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .with_context(|| format!("whois: listen at {address}"))
        .remedy("choose a free port of this machine with --listen")?;
    let url = format!("http://{}/auth", listener.local_addr()?);
    match json {
        true => terminal::json(&serde_json::json!({ "whois": url }))?,
        false => terminal::line(format_args!("whois at {url}"))?,
    }
    match auth::serve(listener, client).await {}
}

/// Returns the one address of a name.
async fn address(client: &Client, host: &str) -> anyhow::Result<IpAddr> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let request = Request::Resolve {
        name: host.to_owned(),
        kinds: vec![RecordKind::Aaaa],
    };
    let (answer, _) = client.ask(&request, TIMEOUT).await?;
    let Answer::Records(records) = answer else {
        return Err(client::unexpected(&answer));
    };
    match records.as_slice() {
        [record] => {
            let read = || format!("DNS: read the address of {host}");
            record.value.parse().with_context(read)
        }
        several => Err(advise(
            format!("DNS: {host} has {} addresses", several.len()),
            "ask for one of those that `ginnel resolve` tells",
        )),
    }
}
