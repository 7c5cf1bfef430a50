//! `ginnel proxy`: a SOCKS5 and HTTP proxy into the network.

mod http;
mod socks5;

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::{agent::Client, cli::Global, local_port, remedy::advise, terminal};

/// Run a SOCKS5 and HTTP proxy into the network, until Ctrl-C
///
/// Names are resolved inside the tunnel. SOCKS5 knows CONNECT and UDP ASSOCIATE; HTTP knows
/// CONNECT and plain http:// requests. Without a flag both run, at ports 1080 and 8080 of this
/// machine.
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
  ginnel proxy --socks5 127.0.0.1:1080    then: curl -x socks5h://127.0.0.1:1080 http://web/
  ginnel proxy --http 127.0.0.1:8080      then: curl -x http://127.0.0.1:8080 http://web/";

/// Connections of one listener at a time; at the bound further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4_096;

/// How long a program may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the remote port may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// A failed accept, out of descriptors for example, is repeated after this time.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until Ctrl-C.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if let Err(error) = os::process::raise_descriptor_limit() {
        tracing::debug!(%error, "raise the limit of open descriptors");
    }
    let default = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let (socks5, http) = match (args.socks5, args.http) {
        (None, None) => (default(1080), default(8080)),
        given => given,
    };
    let client = Client::of(global)?;
    let socks5 = bind(socks5, args.allow_remote)?;
    let http = bind(http, args.allow_remote)?;
    // Nothing is printed unless every port could be bound and the tunnel be opened.
    client.hello().await?;
    let mut servers = JoinSet::new();
    if let Some(listener) = socks5 {
        announce("socks5", &listener, global.json)?;
        let client = client.clone();
        servers.spawn(serve(listener, move |stream| {
            socks5::serve(stream, client.clone())
        }));
    }
    if let Some(listener) = http {
        announce("http", &listener, global.json)?;
        servers.spawn(serve(listener, move |stream| {
            http::serve(stream, client.clone())
        }));
    }
    terminal::interrupted().await?;
    servers.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

fn bind(address: Option<SocketAddr>, allow_remote: bool) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else {
        return Ok(None);
    };
    if !address.ip().is_loopback() && !allow_remote {
        return Err(advise(
            format!("local port: {address} would let other machines into the network"),
            "listen at 127.0.0.1 or [::1], or add --allow-remote if that is meant",
        ));
    }
    let listener = local_port::listen(address).map_err(|error| {
        let remedy = if error.kind() == io::ErrorKind::AddrInUse {
            "another program listens there: stop it, or choose another port with --socks5 and \
             --http; 0 lets the system choose"
        } else {
            "choose another address or port with --socks5 and --http"
        };
        advise(format!("local port: listen at {address}: {error}"), remedy)
    });
    listener.map(Some)
}

fn announce(protocol: &str, listener: &TcpListener, as_json: bool) -> anyhow::Result<()> {
    let local = listener.local_addr().context("read the bound address")?;
    if as_json {
        terminal::json(&serde_json::json!({ "protocol": protocol, "local": local }))?;
    } else {
        terminal::line(format_args!("{protocol} at {local}"))?;
    }
    Ok(())
}

async fn serve<F, S>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                // It only costs latency if it fails.
                drop(stream.set_nodelay(true));
                let serving = serve(stream);
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                time::sleep(PAUSE).await;
            }
        }
    }
}
