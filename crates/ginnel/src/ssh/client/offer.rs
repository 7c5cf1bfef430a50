//! What the person lets the server open: ports of the node that lead here (`-R`), the agent
//! (`-A`), and the display (`-X`).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use russh::{
    Channel, ChannelOpenFailure,
    client::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpStream, UnixStream},
    sync::Mutex,
    time,
};

use super::{Events, display::Display};
use crate::remedy::{Advise as _, advise};

/// How long the near end of a forward may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// What the server may open. By default nothing.
#[derive(Default)]
pub(in crate::ssh) struct Offers {
    /// The socket of the person's agent.
    agent: Option<PathBuf>,
    /// The person's display.
    display: Option<Display>,
    /// Where ports of the node lead; bounded by the command line. Held while the node is asked,
    /// so that a connection which comes at once finds its port.
    ports: Mutex<BTreeMap<u32, (String, u16)>>,
}

impl Offers {
    /// Offers the agent of this session as well.
    pub(in crate::ssh) fn with_agent(mut self) -> Result<Self> {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
        let socket = socket
            .context("SSH: there is no agent to forward")
            .remedy("start one, such as `eval $(ssh-agent)`, or leave out -A")?;
        self.agent = Some(socket.into());
        Ok(self)
    }

    /// Offers the display of this session as well.
    pub(in crate::ssh) async fn with_display(mut self) -> Result<Self> {
        self.display = Some(Display::own().await?);
        Ok(self)
    }

    /// Whether the agent is offered.
    pub(super) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Returns the display that is offered.
    pub(super) fn display(&self) -> Option<&Display> {
        self.display.as_ref()
    }

    /// Asks the node to listen at `port` of `address` and leads what comes there to `target`;
    /// returns the port, which the node chooses if it is zero.
    pub(super) async fn lead(
        &self,
        handle: &Handle<Events>,
        (address, port): (&str, u16),
        target: (String, u16),
    ) -> Result<u16> {
        let mut ports = self.ports.lock().await;
        let asked = handle.tcpip_forward(address, port.into()).await;
        let chosen = asked.map_err(|_| {
            advise(
                format!("SSH: the node does not listen at port {port}"),
                "another program may listen there, or the certificate does not permit it \
                 (permit-port-forwarding); port 0 lets the node choose",
            )
        })?;
        let chosen = match port {
            0 => u16::try_from(chosen).context("SSH: the node names no port")?,
            port => port,
        };
        ports.insert(chosen.into(), target);
        Ok(chosen)
    }

    /// Answers a connection that came to `port` of the node.
    pub(super) async fn port(&self, channel: Channel<Msg>, port: u32, reply: ChannelOpenHandle) {
        let target = self.ports.lock().await.get(&port).cloned();
        let Some((host, port)) = target else {
            return prohibit(reply).await;
        };
        let connected = TcpStream::connect((host.as_str(), port));
        match time::timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Ok(stream)) => {
                // It only costs latency if it fails.
                drop(stream.set_nodelay(true));
                join(channel, stream, reply).await;
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("{host} port {port} of this machine does not answer");
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
            }
        }
    }

    /// Answers a program at the node that wants the agent.
    pub(super) async fn agent(&self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        let Some(path) = &self.agent else {
            return prohibit(reply).await;
        };
        match time::timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => join(channel, stream, reply).await,
            Ok(Err(_)) | Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
    }

    /// Answers a program at the node that wants the display.
    pub(super) async fn x11(&self, channel: Channel<Msg>, reply: ChannelOpenHandle) {
        let Some(display) = &self.display else {
            return prohibit(reply).await;
        };
        let connected = time::timeout(CONNECT_TIMEOUT, display.connect()).await;
        let Ok(Ok(mut near)) = connected else {
            tracing::warn!("the X server of this session does not answer");
            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
        };
        reply.accept().await;
        let mut far = channel.into_stream();
        match display.introduce(&mut far).await {
            // Either end may break off; both see it.
            Ok(setup) => {
                if near.write_all(&setup).await.is_ok() {
                    drop(copy_bidirectional(&mut near, &mut far).await);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a program at the node does not show the display's cookie");
                drop(far.shutdown().await);
            }
        }
    }
}

/// Refuses what was not offered.
pub(super) async fn prohibit(reply: ChannelOpenHandle) {
    let reason = ChannelOpenFailure::AdministrativelyProhibited;
    reply.reject(reason).await;
}

async fn join<S>(channel: Channel<Msg>, mut stream: S, reply: ChannelOpenHandle)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    reply.accept().await;
    let mut far = channel.into_stream();
    // Either end may break off; both see it.
    drop(copy_bidirectional(&mut stream, &mut far).await);
}
