//! Ports of this machine that lead to the far end: to one port (`-L`), or wherever a SOCKS5 client
//! wants (`-D`).

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use russh::{Channel, client::Handle, client::Msg};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

use super::Events;
use crate::{
    local_port,
    remedy::Advise as _,
    socks::{self, Command, Host, MESSAGE_MAX, Parsed, Reply},
};

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a program may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A port of this machine, and where it leads to from the far end.
pub(in crate::ssh) struct Listener {
    listener: TcpListener,
    destination: Arc<Destination>,
}

/// Where a port leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::ssh) enum Destination {
    /// To one port, as the far end reaches it.
    Fixed(String, u16),
    /// Wherever a SOCKS5 client wants (RFC 1928).
    Socks,
}

impl Listener {
    /// Listens at `local`; port zero lets the system choose.
    pub(in crate::ssh) fn bind(local: SocketAddr, destination: Destination) -> Result<Self> {
        let listener = local_port::listen(local)
            .with_context(|| format!("local port: listen at {local}"))
            .remedy("choose another address or port")?;
        Ok(Self {
            listener,
            destination: Arc::new(destination),
        })
    }

    /// Returns where it listens.
    pub(in crate::ssh) fn local(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context("find the own address")
    }

    /// Leads connections for ever; dropping it ends them.
    pub(super) async fn serve(self, handle: Arc<Handle<Events>>) -> Infallible {
        // Bounded by the descriptors of this process.
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = open.join_next() => continue,
            };
            match accepted {
                Ok((stream, from)) => {
                    // It only costs latency if it fails.
                    drop(stream.set_nodelay(true));
                    let handle = Arc::clone(&handle);
                    let destination = Arc::clone(&self.destination);
                    open.spawn(async move { lead(&handle, &destination, stream, from).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn lead(
    handle: &Handle<Events>,
    destination: &Destination,
    mut stream: TcpStream,
    from: SocketAddr,
) {
    let opened = match destination {
        Destination::Fixed(host, port) => open(handle, host, *port, from).await.ok(),
        Destination::Socks => match negotiate(handle, &mut stream, from).await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::debug!(%error, "socks5");
                None
            }
        },
    };
    let Some(channel) = opened else {
        // The client learns it by a reset, after the answer of SOCKS5 if there was one.
        if matches!(destination, Destination::Fixed(..)) {
            drop(stream.set_zero_linger());
        }
        return;
    };
    let mut far = channel.into_stream();
    if copy_bidirectional(&mut stream, &mut far).await.is_err() {
        drop(stream.set_zero_linger());
    }
}

async fn open(
    handle: &Handle<Events>,
    host: &str,
    port: u16,
    from: SocketAddr,
) -> Result<Channel<Msg>, russh::Error> {
    let (own, own_port) = (from.ip().to_string(), u32::from(from.port()));
    let opened = handle.channel_open_direct_tcpip(host, port.into(), own, own_port);
    let opened = opened.await;
    if let Err(error) = &opened {
        tracing::warn!("{host} port {port}: {error}");
    }
    opened
}

/// Learns from a SOCKS5 client where it wants to go and connects it there.
async fn negotiate(
    handle: &Handle<Events>,
    stream: &mut TcpStream,
    from: SocketAddr,
) -> io::Result<Option<Channel<Msg>>> {
    let mut bytes = Vec::with_capacity(MESSAGE_MAX);
    let request = async {
        let Some(accepted) = read(stream, &mut bytes, socks::parse_greeting).await? else {
            return Ok(None);
        };
        stream.write_all(&socks::emit_method(accepted)).await?;
        if !accepted {
            return Ok(None);
        }
        read(stream, &mut bytes, socks::parse_request).await
    };
    let request = time::timeout(REQUEST_TIMEOUT, request).await;
    let Some(request) = request.unwrap_or(Ok(None))? else {
        return Ok(None);
    };
    let host = match request.target.host {
        Host::Address(address) => address.to_string(),
        Host::Name(name) => name,
        Host::Unknown => return answer(stream, Reply::AddressNotSupported).await,
    };
    match request.command {
        Command::Connect => {}
        Command::Bind | Command::UdpAssociate | Command::Unknown => {
            return answer(stream, Reply::CommandNotSupported).await;
        }
    }
    let Ok(channel) = open(handle, &host, request.target.port, from).await else {
        return answer(stream, Reply::HostUnreachable).await;
    };
    answer(stream, Reply::Succeeded).await?;
    if !bytes.is_empty() {
        // A client may send before it has the answer.
        channel.data(&bytes[..]).await.map_err(io::Error::other)?;
    }
    Ok(Some(channel))
}

/// Answers a request; what the far end bound is not known, which is all zeros.
async fn answer(stream: &mut TcpStream, reply: Reply) -> io::Result<Option<Channel<Msg>>> {
    let mut message = Vec::new();
    socks::emit_reply(reply, (Ipv4Addr::UNSPECIFIED, 0).into(), &mut message);
    stream.write_all(&message).await?;
    Ok(None)
}

/// Reads until there is one message; `None` when the stream ends or is not SOCKS5.
async fn read<T>(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    parse: impl Fn(&[u8]) -> Parsed<T>,
) -> io::Result<Option<T>> {
    loop {
        match parse(bytes) {
            Parsed::Message(message, length) => {
                bytes.drain(..length);
                return Ok(Some(message));
            }
            Parsed::Malformed => return Ok(None),
            // The parsers want no more than `MESSAGE_MAX` bytes.
            Parsed::Incomplete => {
                let mut chunk = [0; MESSAGE_MAX];
                match stream.read(&mut chunk).await? {
                    0 => return Ok(None),
                    length => bytes.extend(&chunk[..length]),
                }
            }
        }
    }
}
