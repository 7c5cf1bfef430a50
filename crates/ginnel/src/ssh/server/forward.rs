//! Connections that the person makes from the node, and ports of the node that lead to the person.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use russh::{
    Channel, ChannelOpenFailure,
    server::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
    time,
};

use crate::ssh::channels::Channels;

/// How long the other end of a forward may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The first port that everybody may listen on.
pub(super) const PORT_UNPRIVILEGED: u16 = 1_024;

/// Connects to `host` and moves bytes between it and the channel.
pub(super) fn connect(
    channels: Channels,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    host: String,
    port: u16,
) {
    tokio::spawn(async move {
        let connected = TcpStream::connect((host.as_str(), port));
        let Ok(Ok(stream)) = time::timeout(CONNECT_TIMEOUT, connected).await else {
            return refuse(&channels, &channel, reply).await;
        };
        // It only costs latency if it fails.
        drop(stream.set_nodelay(true));
        splice(channels, channel, reply, stream).await;
    });
}

/// Connects to a Unix socket and moves bytes between it and the channel.
pub(super) fn connect_unix(
    channels: Channels,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    path: String,
) {
    tokio::spawn(async move {
        match time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => splice(channels, channel, reply, stream).await,
            Ok(Err(_)) | Err(_) => refuse(&channels, &channel, reply).await,
        }
    });
}

async fn refuse(channels: &Channels, channel: &Channel<Msg>, reply: ChannelOpenHandle) {
    channels.close(channel.id());
    // Its inbox goes too.
    drop(channels.take(channel.id()));
    reply.reject(ChannelOpenFailure::ConnectFailed).await;
}

async fn splice<S>(channels: Channels, channel: Channel<Msg>, reply: ChannelOpenHandle, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (_, write) = channel.split();
    let inbox = channels.take(write.id());
    reply.accept().await;
    channels.splice(stream, write, inbox).await;
}

/// Ports that lead to the person; they are closed with this value.
pub(super) struct Listener {
    tasks: Vec<JoinHandle<()>>,
    pub(super) port: u16,
}

impl Listener {
    /// Listens on the loopback addresses, whatever address was asked for: who wants others to come
    /// in publishes a service.
    pub(super) async fn open(
        handle: &Handle,
        channels: &Channels,
        address: &str,
        port: u16,
    ) -> io::Result<Self> {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let port = first.local_addr()?.port();
        // A machine may have no IPv6.
        let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok();
        let address: Arc<str> = address.into();
        let tasks = [Some(first), second].into_iter().flatten().map(|listener| {
            let (handle, channels) = (handle.clone(), channels.clone());
            tokio::spawn(serve(
                listener,
                handle,
                channels,
                Arc::clone(&address),
                port,
            ))
        });
        Ok(Self {
            tasks: tasks.collect(),
            port,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve(
    listener: TcpListener,
    handle: Handle,
    channels: Channels,
    address: Arc<str>,
    port: u16,
) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "ssh: accept");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // It only costs latency if it fails.
        drop(stream.set_nodelay(true));
        let (handle, channels, address) = (handle.clone(), channels.clone(), address.to_string());
        tokio::spawn(async move {
            let from = (from.ip().to_string(), u32::from(from.port()));
            let opened =
                handle.channel_open_forwarded_tcpip(address, u32::from(port), from.0, from.1);
            channels.lead(stream, opened).await;
        });
    }
}
