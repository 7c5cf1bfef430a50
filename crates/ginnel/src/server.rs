//! `ginnel server`: control plane, gateway and names in one process, with no root.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use control::{Bootstrap, CertificateSource, Database, Server};
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::{
    admin,
    cli::Global,
    enrol,
    enrolled::{Enrolled, Source},
    enrolment::State,
    metrics::{self, Snapshot},
    remedy::advise,
    terminal,
};

mod copy;

/// Run the control plane, a gateway and the names of a network, all in one process
///
/// Needs no root. Keeps everything in one directory. The first start prints the URL and a
/// one-time token for the first administrator.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true,
          subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,

    /// Where the server keeps its database, its keys and its certificates
    #[arg(long, value_name = "DIR", required = true)]
    data: Option<PathBuf>,

    /// A PostgreSQL database instead of the file in DIR, as postgres://USER@HOST/DATABASE
    ///
    /// The database is empty at first. Several servers may share it, each with a directory of its
    /// own into which ca.key, ca.pem and master.key of the first were copied. The URL may hold a
    /// password, which others on this machine see in a command line: give it by GINNEL_DATABASE
    /// then. Keys and certificates stay in DIR.
    #[arg(long, value_name = "URL", env = "GINNEL_DATABASE", hide_env_values = true,
          value_parser = database_url)]
    database: Option<Zeroizing<String>>,

    /// Where the API listens for HTTPS
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8443")]
    listen: SocketAddr,

    /// Where the gateway listens for WireGuard
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:51820")]
    wireguard: SocketAddr,

    /// How nodes reach the API [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    public: Option<String>,

    /// How nodes reach the gateway of this server [default: the host of --public, the port of
    /// --wireguard]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,

    /// A certificate chain in PEM instead of the server's own authority
    #[arg(long, value_name = "FILE", requires = "certificate_key")]
    certificate: Option<PathBuf>,

    /// The private key of --certificate
    #[arg(long, value_name = "FILE", requires = "certificate")]
    certificate_key: Option<PathBuf>,

    /// Certificate authorities in PEM that identity providers may have beside the system's
    #[arg(long, value_name = "FILE")]
    provider_ca: Option<PathBuf>,

    /// How often identity providers are asked whether people are still there, 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_revalidation)]
    revalidation: Duration,

    /// Print a new login token, for an operator who lost hers
    #[arg(long)]
    admin_token: bool,

    #[command(flatten)]
    metrics: metrics::listener::Address,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Copy(copy::Args),
}

const EXAMPLES: &str = "\
Examples:
  ginnel server --data ./data --public vpn.example.org:8443
  ginnel server --data ./data --listen 127.0.0.1:0 --wireguard 127.0.0.1:0      for a try

Afterwards: `ginnel login` with the URL and the token that it prints";

/// Runs the server until it is interrupted.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    if let Some(Action::Copy(args)) = args.action {
        return copy::run(args, global).await;
    }
    let data = args.data.clone().context("name a directory with --data")?;
    // Every node keeps a connection open while it waits for its map.
    if let Err(error) = os::process::raise_descriptor_limit() {
        tracing::debug!("raise the limit of descriptors: {error}");
    }
    // Nobody else may touch the database while it is opened.
    let _lock = State::at(&data).lock("server")?;
    let (server, listener, state) = open(&args, data).await?;
    let metrics = args.metrics.listen().await?;
    let key = state.private_key_or_new()?;
    let url = server.url();
    let port = gateway_port(args.wireguard)?;
    let endpoint = match &args.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => format!("{}:{port}", host_of(&url)),
    };
    let node = server
        .register_builtin_gateway(enrol::public_key(&key), &endpoint)
        .await
        .context("register the gateway of this process")?;
    let source = Source::Here {
        server: server.clone(),
        gateway: node,
    };
    let listen = SocketAddr::new(args.wireguard.ip(), port);
    let gateway = Enrolled::open(state, &key, source, listen, None).await?;
    let mut bootstrap = server
        .bootstrap()
        .await
        .context("prepare the first sign-in")?;
    if bootstrap.is_none() && args.admin_token {
        bootstrap = Some(server.admin_token().await?);
    }
    announce(&server, &endpoint, bootstrap.as_ref(), global)?;
    if let Some(listener) = &metrics {
        listener.announce(global.json)?;
    }
    let tunnel = gateway.tunnel().clone();
    let metrics = metrics::listener::serve(metrics, move || Snapshot::of(&tunnel, None));
    let interrupted = async {
        // Without signal handlers the default action ends the process.
        drop(terminal::interrupted().await);
    };
    let mut serving = std::pin::pin!(server.serve(listener, interrupted));
    tokio::select! {
        served = &mut serving => served?,
        never = metrics => match never {},
        ended = gateway.run() => {
            ended.context("the gateway of this server")?;
            // Its maps have ended because the server ends.
            serving.await?;
        }
    }
    server.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn open(args: &Args, data: PathBuf) -> Result<(Server, TcpListener, State)> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::AddrInUse {
            "another program has the port: stop it, or choose one with --listen"
        } else {
            "choose an address of this machine and a port above 1023 with --listen"
        };
        advise(
            format_args!("HTTPS: listen at {}: {error}", args.listen),
            remedy,
        )
    })?;
    let public = match &args.public {
        Some(public) => public.clone(),
        None => reachable(listener.local_addr()?).to_string(),
    };
    let certificate = match (&args.certificate, &args.certificate_key) {
        (Some(chain), Some(key)) => CertificateSource::Files {
            chain: chain.clone(),
            key: key.clone(),
        },
        (None, _) | (_, None) => CertificateSource::Own,
    };
    let config = control::Config {
        data: data.clone(),
        database: match &args.database {
            Some(url) => Database::Postgres(url.clone()),
            None => Database::File,
        },
        public,
        certificate,
        provider_ca: args.provider_ca.clone(),
        revalidation: args.revalidation,
        wall: Arc::new(os::clock::wall),
        random: Arc::new(crate::random::OsRandom),
    };
    let server = Server::open(config)
        .await
        .with_context(|| format!("open the data directory `{}`", data.display()))?;
    Ok((server, listener, State::at(data.join("gateway"))))
}

fn parse_revalidation(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (1..=3_600).contains(&interval.as_secs()) {
        Ok(interval)
    } else {
        Err("providers are asked every 1s to 1h".to_owned())
    }
}

/// Takes the URL of a database that the server can use.
pub(crate) fn database_url(text: &str) -> Result<Zeroizing<String>, &'static str> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    match scheme {
        Some("postgres" | "postgresql") => Ok(Zeroizing::new(text.to_owned())),
        Some(_) | None => Err("it begins with postgres://; a file needs no URL, only --data"),
    }
}

/// Returns the port of `wireguard`, or a free one for zero: nodes are told before it is bound.
fn gateway_port(wireguard: SocketAddr) -> Result<u16> {
    if wireguard.port() != 0 {
        return Ok(wireguard.port());
    }
    let probe = std::net::UdpSocket::bind(wireguard).context("UDP: find a free port")?;
    Ok(probe.local_addr()?.port())
}

/// Returns how this machine itself reaches `address`: a wildcard stands for its loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    }
    address
}

fn host_of(url: &str) -> &str {
    let authority = url.trim_start_matches("https://");
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

fn announce(
    server: &Server,
    endpoint: &str,
    bootstrap: Option<&Bootstrap>,
    global: &Global,
) -> Result<()> {
    if global.json {
        let token = bootstrap.map(|bootstrap| bootstrap.token.emit());
        let token = token.as_ref().map(|token| token.as_str());
        terminal::json(&serde_json::json!({
            "url": server.url(), "wireguard": endpoint, "admin_token": token,
        }))?;
        return Ok(());
    }
    terminal::line(format_args!("server     {}", server.url()))?;
    terminal::line(format_args!("wireguard  {endpoint}"))?;
    if let Some(bootstrap) = bootstrap {
        let expires = admin::time(bootstrap.expires);
        terminal::line(format_args!("login token, for one use until {expires}:"))?;
        terminal::line(bootstrap.token.emit().as_str())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_is_what_stands_before_its_port() {
        assert_eq!(host_of("https://vpn.example.org:8443"), "vpn.example.org");
        assert_eq!(host_of("https://[fd00::1]:8443"), "[fd00::1]");
    }

    #[test]
    fn a_wildcard_is_announced_as_the_loopback() {
        let reached = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(reached("[::]:8443"), "127.0.0.1:8443");
        assert_eq!(reached("10.0.0.1:8443"), "10.0.0.1:8443");
    }
}
