//! `ginnel forward`: remote ports on this machine.

mod datagram;
pub(crate) mod spec;
mod stream;

use std::{io, net::SocketAddr, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use serde::Serialize;
use tokio::{
    net::{TcpListener, UdpSocket, UnixListener},
    task::JoinSet,
};

use crate::{
    agent::Client,
    cli::Global,
    forward::spec::{Local, Spec},
    local_port,
    remedy::advise,
    terminal,
};

/// Make remote ports reachable on this machine, until Ctrl-C
///
/// Each SPEC listens on this machine and leads every connection through the tunnel. Names are
/// resolved inside the tunnel. The addresses that are listened at are printed, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// [BIND:]PORT:HOST:PORT, with /udp at the end for UDP, or PATH:HOST:PORT for a Unix socket
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<Spec>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel forward 5432:db:5432                     then: psql -h 127.0.0.1
  ginnel forward 0:db:5432 8080:web:80            several at once; port 0 lets the system choose
  ginnel forward 5353:10.0.0.53:53/udp            UDP
  ginnel forward '[::1]:80:[fd00::1]:80'          IPv6 stands in brackets
  ginnel forward /tmp/.s.PGSQL.5432:db:5432       a Unix socket; then: psql -h /tmp";

/// What listens on this machine.
enum Listener {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
    Unix(UnixListener, SocketFile),
}

/// Removes a socket's file when the forward ends.
struct SocketFile(std::path::PathBuf);

/// One forward as `--json` prints it.
#[derive(Serialize)]
struct Bound<'a> {
    protocol: &'static str,
    local: String,
    host: &'a str,
    port: u16,
}

/// Runs the forwards until Ctrl-C.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if let Err(error) = os::process::raise_descriptor_limit() {
        tracing::debug!(%error, "raise the limit of open descriptors");
    }
    let client = Client::of(global)?;
    let mut bound = Vec::new();
    for spec in args.specs {
        bound.push((bind(&spec.local).await?, spec));
    }
    // Nothing is printed unless every port could be bound and the tunnel be opened.
    client.hello().await?;
    let mut forwards = JoinSet::new();
    for (listener, spec) in bound {
        announce(&listener, &spec, global.json)?;
        let (client, spec) = (client.clone(), Arc::new(spec));
        forwards.spawn(async move {
            match listener {
                Listener::Tcp(listener) => stream::serve_tcp(listener, &client, &spec).await,
                Listener::Udp(socket) => datagram::serve(socket, &client, &spec).await,
                Listener::Unix(listener, _file) => {
                    stream::serve_unix(listener, &client, &spec).await;
                }
            }
        });
    }
    terminal::interrupted().await?;
    forwards.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

async fn bind(local: &Local) -> anyhow::Result<Listener> {
    let listener = match local {
        Local::Tcp(address) => local_port::listen(*address).map(Listener::Tcp),
        Local::Udp(address) => UdpSocket::bind(address)
            .await
            .map(Arc::new)
            .map(Listener::Udp),
        Local::Unix(path) => bind_unix(path),
    };
    listener.map_err(|error| {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "the standard library grows the enum; the rest has one remedy"
        )]
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there: stop it, or choose another port; 0 lets the \
                 system choose"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 need root: choose a higher one",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "choose another address or port",
        };
        advise(format!("local port: listen at {local}: {error}"), remedy)
    })
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    let listener = UnixListener::bind(path).or_else(|error| {
        // A socket that nobody serves any more was left behind by a crash.
        let dead = std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if error.kind() == io::ErrorKind::AddrInUse && dead {
            std::fs::remove_file(path)?;
            return UnixListener::bind(path);
        }
        Err(error)
    })?;
    Ok(Listener::Unix(listener, SocketFile(path.to_owned())))
}

fn announce(listener: &Listener, spec: &Spec, as_json: bool) -> anyhow::Result<()> {
    let address = |address: io::Result<SocketAddr>| address.context("read the bound address");
    let (protocol, local) = match listener {
        Listener::Tcp(listener) => ("tcp", address(listener.local_addr())?.to_string()),
        Listener::Udp(socket) => ("udp", address(socket.local_addr())?.to_string()),
        Listener::Unix(_, file) => ("unix", file.0.display().to_string()),
    };
    let (host, port) = (spec.host.as_str(), spec.port);
    if as_json {
        terminal::json(&Bound {
            protocol,
            local,
            host,
            port,
        })?;
    } else {
        let suffix = if protocol == "udp" { "/udp" } else { "" };
        terminal::line(format_args!("{local}{suffix} leads to {host} port {port}"))?;
    }
    Ok(())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        drop(std::fs::remove_file(&self.0));
    }
}
