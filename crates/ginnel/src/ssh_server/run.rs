//! `ginnel ssh-server run`: the SSH server at an ordinary address, by CA keys in files.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use russh::keys::{Certificate, PrivateKey, PublicKey};
use tokio::{net::TcpListener, time};

use crate::{
    remedy::Advise as _,
    ssh::{Authority, Identity, Lookup, Organisation, Server},
    terminal,
};

/// Serve SSH at an address of this machine, by CA keys in files
///
/// Lets in whoever holds a user certificate of the CA, as the account that the certificate names;
/// no passwords, no bare keys. As root it becomes that account, else it serves its own account
/// only. The files are read again at each login.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// Public keys of the CA that certifies users, one a line
    #[arg(long, value_name = "FILE")]
    user_ca: PathBuf,

    /// The private key of this host, Ed25519
    #[arg(long, value_name = "FILE")]
    host_key: PathBuf,

    /// The certificate of that key
    #[arg(long, value_name = "FILE")]
    host_certificate: Option<PathBuf>,

    /// Serials of certificates that count no more, one a line
    #[arg(long, value_name = "FILE")]
    revoked: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  ssh-keygen -t ed25519 -f user_ca -N '' && ssh-keygen -t ed25519 -f host_key -N ''
  ginnel ssh-server run --listen 127.0.0.1:2222 --user-ca user_ca.pub --host-key host_key";

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is interrupted.
pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let identity = identity(&args)?;
    let sources = Arc::new((args.user_ca, args.revoked));
    authority(&sources.0, sources.1.as_deref())?;
    let lookup: Lookup = Arc::new(move |_| {
        let sources = Arc::clone(&sources);
        Box::pin(async move {
            let read = authority(&sources.0, sources.1.as_deref());
            read.map(Arc::new).map_err(|error| format!("{error:#}"))
        })
    });
    // There is nobody to tell; the log says it.
    let refused = Arc::new(|_| ());
    let organisation = Organisation {
        authority: lookup,
        refused,
        archive: None,
    };
    let server = Server::new(identity, organisation)?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener
        .with_context(|| format!("listen at {}", args.listen))
        .remedy("choose another address: --listen ADDR:PORT")?;
    let local = listener.local_addr().context("find the own address")?;
    terminal::line(format_args!("ssh at {local}"))?;
    let interrupted = terminal::interrupted();
    tokio::pin!(interrupted);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut interrupted => return Ok(ExitCode::SUCCESS),
        };
        match accepted {
            Ok((stream, remote)) => {
                // It only costs latency if it fails.
                drop(stream.set_nodelay(true));
                tokio::spawn(server.serve(stream, remote, local));
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn identity(args: &Args) -> Result<Identity> {
    let key = PrivateKey::read_openssh_file(&args.host_key)
        .with_context(|| format!("host key: read `{}`", args.host_key.display()))
        .remedy("make one: ssh-keygen -t ed25519 -f FILE -N ''")?;
    let certificate = args.host_certificate.as_deref().map(|path| {
        Certificate::read_file(path)
            .with_context(|| format!("host certificate: read `{}`", path.display()))
            .remedy("give the file that `ssh-keygen -s` wrote")
    });
    Ok(Identity {
        key,
        certificate: certificate.transpose()?,
    })
}

fn authority(user_ca: &Path, revoked: Option<&Path>) -> Result<Authority> {
    let text = fs::read_to_string(user_ca)
        .with_context(|| format!("user CA: read `{}`", user_ca.display()))
        .remedy("give the file of its public key, such as `user_ca.pub`")?;
    let keys = lines(&text).map(|line| {
        let key = PublicKey::from_openssh(line);
        key.map(|key| key.key_data().clone())
            .with_context(|| format!("user CA: a line of `{}`", user_ca.display()))
    });
    let user_ca = keys.collect::<Result<_>>()?;
    let revoked = match revoked {
        Some(path) => serials(path)?,
        None => BTreeSet::new(),
    };
    Ok(Authority {
        user_ca,
        revoked,
        ..Authority::default()
    })
}

fn serials(path: &Path) -> Result<BTreeSet<u64>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("revoked serials: read `{}`", path.display()))
        .remedy("make the file, empty if nothing is revoked")?;
    let serials = lines(&text).map(|line| {
        line.parse()
            .with_context(|| format!("revoked serials: a line of `{}`", path.display()))
    });
    serials.collect()
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}
