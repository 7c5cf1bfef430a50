//! The SSH client: any byte stream, a certificate of our own, and a host that proves who it is.

mod escape;
pub(super) mod forward;
pub(super) mod shell;
mod trust;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use russh::{
    Channel, ChannelOpenFailure, SshId,
    client::{self, ChannelOpenHandle, Handle, Msg, Session},
    keys::{Certificate, PrivateKey, PublicKeyOrCertificate},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    task::JoinSet,
    time,
};

pub(super) use self::trust::Trust;
use super::{algorithms, channels::WINDOW};
use crate::remedy::{Advise as _, advise};

/// A server that does not answer for this long, asked at a quarter of it, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long keys may take to be exchanged and we to be let in.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// What we prove ourselves with.
pub(super) struct Credentials {
    pub(super) key: PrivateKey,
    pub(super) certificate: Certificate,
}

/// A connection to a server that has let us in.
pub(super) struct Connection {
    handle: Arc<Handle<Events>>,
    /// Bounded by the command line.
    forwards: JoinSet<Infallible>,
    /// Dropped at the other end when the connection ends.
    alive: oneshot::Receiver<()>,
}

/// What the connection tells us.
struct Events {
    trust: Trust,
    /// Why the server was not believed.
    doubt: Arc<Mutex<Option<String>>>,
    _alive: oneshot::Sender<()>,
}

impl Connection {
    /// Speaks SSH over `stream` until the server has let us in as `user`.
    pub(super) async fn open<S>(
        stream: S,
        user: &str,
        credentials: Credentials,
        trust: Trust,
    ) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let doubt = Arc::new(Mutex::new(None));
        let (sender, alive) = oneshot::channel();
        let events = Events {
            trust,
            doubt: Arc::clone(&doubt),
            _alive: sender,
        };
        let opened = async {
            let mut handle = client::connect_stream(Arc::new(config()), stream, events).await?;
            let Credentials { key, certificate } = credentials;
            let answer = handle.authenticate_openssh_cert(user, Arc::new(key), certificate);
            let answer = answer.await?;
            Ok::<_, russh::Error>((handle, answer))
        };
        let opened = time::timeout(LOGIN_TIMEOUT, opened).await;
        let doubt = doubt.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(doubt) = doubt {
            return Err(advise(
                format!("SSH: the host is not believed: {doubt}"),
                "somebody else may answer there: find out before you do anything else; an OpenSSH \
                 server gets its certificate by `ginnel ssh-server install`",
            ));
        }
        let (handle, answer) = opened
            .context("SSH: no answer in time")
            .remedy("see whether an SSH server runs there")?
            .context("SSH: the connection ended before the login")
            .remedy("see the log of the SSH server")?;
        if !answer.success() {
            return Err(advise(
                format!("SSH: the server does not let us in as `{user}`"),
                "its log says why; your role has to permit that account, and it has to exist",
            ));
        }
        Ok(Self {
            handle: Arc::new(handle),
            forwards: JoinSet::new(),
            alive,
        })
    }

    /// Leads what comes to `listener` to the far end, until the connection is dropped.
    pub(super) fn forward(&mut self, listener: forward::Listener) {
        self.forwards
            .spawn(listener.serve(Arc::clone(&self.handle)));
    }

    /// Waits until the connection ends.
    pub(super) async fn ended(&mut self) {
        // Nothing is ever sent.
        drop((&mut self.alive).await);
    }
}

fn config() -> client::Config {
    client::Config {
        client_id: SshId::Standard("SSH-2.0-ginnel".into()),
        window_size: WINDOW,
        channel_buffer_size: 64,
        preferred: algorithms::client(),
        keepalive_interval: Some(SILENCE_MAX / 4),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    }
}

impl client::Handler for Events {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let believed = self.trust.believe(key);
        let is_believed = believed.is_ok();
        if let Err(doubt) = believed {
            let mut place = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
            *place = Some(doubt);
        }
        Ok(is_believed)
    }

    // Every channel that a server may want to open is one that we did not offer; russh would
    // accept them.
    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await
    }
}

async fn prohibit(reply: ChannelOpenHandle) -> Result<(), russh::Error> {
    let reason = ChannelOpenFailure::AdministrativelyProhibited;
    reply.reject(reason).await;
    Ok(())
}

#[cfg(test)]
mod tests;
