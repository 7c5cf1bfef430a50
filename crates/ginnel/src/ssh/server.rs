//! The node's own SSH server: lets in who holds a certificate of the organisation's CA.
//!
//! ```text
//!   stream ── Cut ── russh ── Connection (who, what is permitted)
//!                                │ each channel: Channels
//!                                ├── Program: shell, command, sftp; on a terminal or on pipes
//!                                │     └── Record, where the organisation demands it
//!                                └── forward: -L, -R, agent, X11
//! ```

mod connection;
mod cut;
mod forward;
mod program;
mod record;
mod socket;
mod verdict;
mod waiting;
mod x11;

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use model::ssh::{Recording, RefusedLogin};
use os::account::Account;
use russh::{
    Limits, MethodKind, MethodSet, SshId,
    keys::{Certificate, PrivateKey},
    server,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, oneshot},
    time,
};

pub(crate) use self::record::Archive;
use self::{
    connection::Connection,
    cut::Cut,
    waiting::{Place, Waiting},
};
use super::{
    acceptance::{Authority, Permit},
    algorithms,
    channels::{Channels, WINDOW_OPENSSH},
};

/// Connections at a time; at the bound new ones are closed.
const CONNECTIONS_MAX: usize = 1_024;

/// Keys and certificates that one connection may try.
const ATTEMPTS_MAX: usize = 6;

/// A peer that does not answer for this long, asked at a quarter of it, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A refusal takes this long, so that its time tells nothing about its reason.
const REFUSAL_TIME: Duration = Duration::from_millis(50);

/// How long a connection may take, and do nothing.
#[derive(Clone, Copy)]
struct Patience {
    /// From the first byte to an accepted certificate.
    login_grace: Duration,
    /// A connection over which nothing has moved for this long ends.
    idle_max: Duration,
    /// How often it is looked whether an open connection may stay.
    look_again: Duration,
}

const PATIENCE: Patience = Patience {
    login_grace: Duration::from_secs(60),
    idle_max: Duration::from_secs(24 * 60 * 60),
    look_again: Duration::from_secs(5),
};

/// Asks whom the organisation trusts now, as the peer with this address meets it; an error says why
/// nobody knows, and nobody comes in.
pub(crate) type Lookup = Arc<dyn Fn(IpAddr) -> Answer + Send + Sync>;
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Arc<Authority>, String>> + Send>>;

/// What the server asks and tells its organisation.
pub(crate) struct Organisation {
    /// Whom it trusts.
    pub(crate) authority: Lookup,
    /// Hears of each connection that ends without a login although one was tried.
    pub(crate) refused: Arc<dyn Fn(RefusedLogin) + Send + Sync>,
    /// Where the records of sessions go; without it, none that must be recorded begins.
    pub(crate) archive: Option<Arc<dyn Archive>>,
}

/// An SSH server.
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<server::Config>,
    organisation: Organisation,
    places: Arc<Semaphore>,
    waiting: Waiting,
    patience: Patience,
    /// The account of this process.
    own: Account,
}

/// How the server proves who it is.
pub(crate) struct Identity {
    /// Its key.
    pub(crate) key: PrivateKey,
    /// What the organisation's CA says about that key.
    pub(crate) certificate: Option<Certificate>,
}

/// Who has come in.
#[derive(Clone)]
struct Login {
    permit: Permit,
    /// What had to be recorded when it was last known.
    recording: Recording,
    account: Account,
    /// Programs have to become the account first.
    switch: bool,
}

impl Server {
    /// Makes a server.
    pub(crate) fn new(identity: Identity, organisation: Organisation) -> anyhow::Result<Self> {
        let own = Account::own()
            .context("find the own account")?
            .context("the user database does not know this process's user")?;
        let shared = Shared {
            config: Arc::new(config(identity)),
            organisation,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            waiting: Waiting::default(),
            patience: PATIENCE,
            own,
        };
        let shared = Arc::new(shared);
        Ok(Self { shared })
    }

    /// Serves one connection to its end; at the bound it is closed.
    pub(crate) fn serve<S>(
        &self,
        stream: S,
        remote: SocketAddr,
        local: SocketAddr,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let permit = Arc::clone(&shared.places).try_acquire_owned();
        async move {
            let Ok(_permit) = permit else {
                tracing::warn!(%remote, "ssh: {CONNECTIONS_MAX} connections are open");
                return;
            };
            // Who is many times there cannot keep others out; what is closed is told once.
            if let Some(place) = shared.waiting.enter(remote.ip().to_canonical()) {
                shared.serve(stream, remote, local, place).await;
            }
        }
    }
}

impl Shared {
    async fn serve<S>(
        self: Arc<Self>,
        stream: S,
        remote: SocketAddr,
        local: SocketAddr,
        place: Place,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, cut) = Cut::new(stream);
        let (sender, accepted) = oneshot::channel();
        let channels = Channels::default();
        let connection =
            Connection::new(Arc::clone(&self), remote, local, channels.clone(), sender);
        let config = Arc::clone(&self.config);
        let running = async {
            match server::run_stream(config, stream, connection).await {
                Ok(session) => session.await,
                Err(error) => Err(error),
            }
        };
        let ended = {
            tokio::pin!(running);
            tokio::select! {
                ended = &mut running => ended,
                reason = self.watch(remote.ip(), place, accepted, &channels) => {
                    tracing::warn!(%remote, "ssh: cut off: {reason}");
                    // It may have ended by itself.
                    let _unheard = cut.send(());
                    running.await
                }
            }
        };
        // Programs that wait for a word of the peer would wait for ever.
        channels.close_all();
        if let Err(error) = ended {
            tracing::debug!(%remote, %error, "ssh: the connection ended");
        }
    }

    /// Waits until the connection may not stay, and says why.
    async fn watch(
        &self,
        peer: IpAddr,
        mut place: Place,
        accepted: oneshot::Receiver<Login>,
        channels: &Channels,
    ) -> String {
        let Patience {
            login_grace,
            idle_max,
            look_again,
        } = self.patience;
        let accepted = tokio::select! {
            accepted = time::timeout(login_grace, accepted) => accepted,
            () = place.displaced() => return "others wait to log in, and it is one of many".into(),
        };
        let login = match accepted {
            Ok(Ok(login)) => login,
            // It has ended.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return format!("no accepted certificate within {} s", login_grace.as_secs()),
        };
        drop(place);
        let mut quiet = Quiet::default();
        loop {
            time::sleep(look_again).await;
            if quiet.look(channels.moved(), look_again) >= idle_max {
                return format!("nothing has moved for {} hours", idle_max.as_secs() / 3_600);
            }
            // Who came in stays while nobody can say that he must go.
            if let Ok(authority) = (self.organisation.authority)(peer).await
                && let Err(refusal) = login.permit.still(&authority)
            {
                return refusal.to_string();
            }
        }
    }
}

/// For how long nothing has moved on a connection.
#[derive(Default)]
struct Quiet {
    moved: usize,
    time: Duration,
}

impl Quiet {
    /// Returns it at a look that is `passed` after the one before; `moved` changes with what moves.
    fn look(&mut self, moved: usize, passed: Duration) -> Duration {
        let before = std::mem::replace(&mut self.moved, moved);
        self.time = match before == moved {
            true => self.time + passed,
            false => Duration::ZERO,
        };
        self.time
    }
}

fn config(identity: Identity) -> server::Config {
    server::Config {
        // The version of a program helps those who look for old ones.
        server_id: SshId::Standard("SSH-2.0-ginnel".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL_TIME,
        // The first question of every client, which tells it what there is.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![identity.key],
        certificates: identity.certificate.into_iter().collect(),
        limits: Limits::default(),
        // The first; who the client is decides the next.
        window_size: WINDOW_OPENSSH,
        maximum_packet_size: 32 * 1024,
        channel_buffer_size: 16,
        event_buffer_size: 64,
        preferred: algorithms::server(),
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: Some(SILENCE_MAX),
        keepalive_interval: Some(SILENCE_MAX / 4),
        keepalive_max: 3,
        nodelay: true,
    }
}

#[cfg(test)]
mod tests;
