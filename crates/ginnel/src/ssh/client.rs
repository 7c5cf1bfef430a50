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
    sync::{oneshot, watch},
    task::JoinSet,
    time,
};

use self::offer::prohibit;
pub(super) use self::{offer::Offers, trust::Trust};
use super::{algorithms, channels::WINDOW};
use crate::remedy::{Advise as _, advise};

/// A server that does not answer for this long, asked at a quarter of it, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long keys may take to be exchanged, and we to be let in.
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
    trust: Trusted,
    /// Why the server was not believed.
    doubt: Arc<Mutex<Option<String>>>,
    offers: Arc<Offers>,
    _alive: oneshot::Sender<()>,
}

/// Whom to trust, once that is known.
pub(super) type Trusted = watch::Receiver<Option<Trust>>;

/// A host that has proved who it is, before anybody has logged in (RFC 4253).
pub(super) struct Transport {
    handle: Handle<Events>,
    offers: Arc<Offers>,
    alive: oneshot::Receiver<()>,
}

impl Transport {
    /// Exchanges keys over `stream`, and waits for `trust` where the host proves who it is. The
    /// host may open what is offered.
    pub(super) async fn open<S>(stream: S, mut trust: Trusted, offers: Offers) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let doubt = Arc::new(Mutex::new(None));
        let offers = Arc::new(offers);
        let (sender, alive) = oneshot::channel();
        let events = Events {
            trust: trust.clone(),
            doubt: Arc::clone(&doubt),
            offers: Arc::clone(&offers),
            _alive: sender,
        };
        let too_late = async {
            // Whoever tells it has bounds of his own.
            drop(trust.wait_for(Option::is_some).await);
            time::sleep(LOGIN_TIMEOUT).await;
        };
        let opened = tokio::select! {
            opened = client::connect_stream(Arc::new(config()), stream, events) => Some(opened),
            () = too_late => None,
        };
        let doubt = doubt.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(doubt) = doubt {
            return Err(advise(
                format!("SSH: the host is not believed: {doubt}"),
                "somebody else may answer there: find out before you do anything else; an OpenSSH \
                 server gets its certificate by `ginnel ssh-server install`",
            ));
        }
        Ok(Self {
            handle: answer(opened)?,
            offers,
            alive,
        })
    }

    /// Logs in as `user`.
    pub(super) async fn log_in(
        mut self,
        user: &str,
        credentials: Credentials,
    ) -> Result<Connection> {
        let Credentials { key, certificate } = credentials;
        let asked = self
            .handle
            .authenticate_openssh_cert(user, Arc::new(key), certificate);
        let asked = time::timeout(LOGIN_TIMEOUT, asked).await;
        if !answer(asked.ok())?.success() {
            return Err(advise(
                format!("SSH: the server does not let us in as `{user}`"),
                "its log says why; your role has to permit that account, and it has to exist",
            ));
        }
        Ok(Connection {
            handle: Arc::new(self.handle),
            offers: self.offers,
            forwards: JoinSet::new(),
            alive: self.alive,
        })
    }
}

/// Takes what the server answered; `None` if it did not in time.
fn answer<T>(answer: Option<Result<T, russh::Error>>) -> Result<T> {
    let answer = answer
        .context("SSH: no answer in time")
        .remedy("see whether an SSH server runs there")?;
    answer
        .context("SSH: the connection ended before the login")
        .remedy("see the log of the SSH server")
}

impl Connection {
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
        let believed = match self.trust.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(trust)) => trust.believe(key),
            // Nobody waits for this host any more.
            Ok(None) | Err(_) => return Ok(false),
        };
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
