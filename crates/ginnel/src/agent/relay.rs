//! Datagrams between a command and UDP sockets inside the tunnel.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UnixStream,
        unix::{ReadHalf, WriteHalf},
    },
};

use super::{protocol::FRAME_MAX, wire};
use crate::socks::{self, Host, Parsed};
use tunnel::{Tunnel, UdpSocket};

/// Names that one relay remembers; at the bound all are forgotten.
const NAMES_MAX: usize = 64;

/// How long a name is remembered, whether it exists or not.
const NAME_AGE_MAX: Duration = Duration::from_secs(30);

/// How long a name may take; the datagrams behind it wait.
const NAME_TIMEOUT: Duration = Duration::from_secs(5);

/// One socket for each family of our addresses.
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

/// Relays until the command closes the connection.
pub(super) async fn join(client: &mut UnixStream, tunnel: &Tunnel) -> io::Result<()> {
    let sockets = Sockets {
        v4: UdpSocket::towards(tunnel, Ipv4Addr::UNSPECIFIED.into()).ok(),
        v6: UdpSocket::towards(tunnel, Ipv6Addr::UNSPECIFIED.into()).ok(),
    };
    let (from_client, to_client) = client.split();
    tokio::select! {
        ended = upwards(from_client, &sockets, tunnel) => ended,
        ended = downwards(&sockets, to_client) => ended,
    }
}

async fn upwards(mut client: ReadHalf<'_>, sockets: &Sockets, tunnel: &Tunnel) -> io::Result<()> {
    let mut names = BTreeMap::new();
    let mut frame = Vec::new();
    while wire::receive_frame(&mut client, &mut frame, FRAME_MAX).await? {
        let Parsed::Message(target, header) = socks::parse_datagram(&frame) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "malformed frame",
            ));
        };
        let Some(address) = resolve(tunnel, &mut names, target.host).await else {
            continue;
        };
        let socket = if address.is_ipv4() {
            &sockets.v4
        } else {
            &sockets.v6
        };
        let remote = SocketAddr::new(address, target.port);
        // A datagram that cannot be sent is lost, as UDP has it.
        if let Some(socket) = socket
            && let Err(error) = socket.send_to(&frame[header..], remote)
        {
            tracing::debug!(%remote, %error, "datagram not sent");
        }
    }
    Ok(())
}

async fn downwards(sockets: &Sockets, mut client: WriteHalf<'_>) -> io::Result<()> {
    let (mut from_v4, mut from_v6) = (vec![0; 65_535], vec![0; 65_535]);
    let mut frame = Vec::new();
    loop {
        let (payload, source) = tokio::select! {
            (length, source) = receive(sockets.v4.as_ref(), &mut from_v4) => {
                (&from_v4[..length], source)
            }
            (length, source) = receive(sockets.v6.as_ref(), &mut from_v6) => {
                (&from_v6[..length], source)
            }
        };
        frame.clear();
        frame.extend([0; 4]);
        socks::emit_datagram(source, &mut frame);
        frame.extend(payload);
        let length = u32::try_from(frame.len() - 4).expect("a datagram and its header");
        frame[..4].copy_from_slice(&length.to_be_bytes());
        client.write_all(&frame).await?;
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// Returns the address of a host; a name is looked up once in a while.
async fn resolve(
    tunnel: &Tunnel,
    names: &mut BTreeMap<String, (Instant, Option<IpAddr>)>,
    host: Host,
) -> Option<IpAddr> {
    let name = match host {
        Host::Address(address) => return Some(tunnel.of_alias(address).unwrap_or(address)),
        Host::Unknown => return None,
        Host::Name(name) => name,
    };
    let now = tunnel.now();
    if let Some((since, address)) = names.get(&name)
        && now.saturating_duration_since(*since) < NAME_AGE_MAX
    {
        return *address;
    }
    let addresses = tunnel.addresses(&name, now + NAME_TIMEOUT).await;
    let address = addresses
        .ok()
        .and_then(|addresses| addresses.first().copied());
    if names.len() >= NAMES_MAX {
        names.clear();
    }
    names.insert(name, (now, address));
    address
}
