//! The SSH client: any byte stream, a certificate of our own, and a host that proves who it is.

mod display;
mod escape;
pub(super) mod forward;
mod offer;
pub(super) mod shell;
mod trust;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use russh::{
    Channel, ChannelMsg, ChannelStream, SshId,
    client::{self, ChannelOpenHandle, Handle, Msg, Session},
    keys::{Certificate, PrivateKey, PublicKeyOrCertificate},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    task::JoinSet,
    time,
};

use self::offer::prohibit;
pub(super) use self::{offer::Offers, trust::Trust};
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
    offers: Arc<Offers>,
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
    offers: Arc<Offers>,
    _alive: oneshot::Sender<()>,
}

impl Connection {
    /// Speaks SSH over `stream` until the server has let us in as `user`. It may open what is
    /// offered.
    pub(super) async fn open<S>(
        stream: S,
        user: &str,
        credentials: Credentials,
        trust: Trust,
        offers: Offers,
    ) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let doubt = Arc::new(Mutex::new(None));
        let offers = Arc::new(offers);
        let (sender, alive) = oneshot::channel();
        let events = Events {
            trust,
            doubt: Arc::clone(&doubt),
            offers: Arc::clone(&offers),
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
            offers,
            forwards: JoinSet::new(),
            alive,
        })
    }

    /// Leads what comes to `listener` to the far end, until the connection is dropped.
    pub(super) fn forward(&mut self, listener: forward::Listener) {
        self.forwards
            .spawn(listener.serve(Arc::clone(&self.handle)));
    }

    /// Leads `port` of `address`, as the node listens there, to a port that this machine reaches;
    /// returns the port, which the node chooses if it is zero.
    pub(super) async fn lead_here(&self, at: (&str, u16), target: (String, u16)) -> Result<u16> {
        self.offers.lead(&self.handle, at, target).await
    }

    /// Opens a subsystem of the server, such as `sftp`.
    pub(super) async fn subsystem(&self, name: &str) -> Result<ChannelStream<Msg>> {
        let channel = self.handle.channel_open_session().await;
        let mut channel = channel.context("SSH: open a session")?;
        channel.request_subsystem(true, name).await?;
        let answer = async {
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Success) => return true,
                    None | Some(ChannelMsg::Failure | ChannelMsg::Close) => return false,
                    Some(_) => {}
                }
            }
        };
        let answer = time::timeout(LOGIN_TIMEOUT, answer).await;
        if !answer.context("SSH: no answer in time")? {
            return Err(advise(
                format!("SSH: the server has no subsystem `{name}`"),
                "an OpenSSH server names it in its configuration (`Subsystem`); the account may \
                 be bound to one command",
            ));
        }
        Ok(channel.into_stream())
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

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let offers = Arc::clone(&self.offers);
        tokio::spawn(async move { offers.port(channel, port, reply).await });
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let offers = Arc::clone(&self.offers);
        tokio::spawn(async move { offers.agent(channel, reply).await });
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let offers = Arc::clone(&self.offers);
        tokio::spawn(async move { offers.x11(channel, reply).await });
        Ok(())
    }

    // Every other channel that a server may want to open is one that we did not offer; russh would
    // accept them.

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await;
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await;
        Ok(())
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
        prohibit(reply).await;
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        prohibit(reply).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
