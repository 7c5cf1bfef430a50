//! One SOCKS5 client: CONNECT becomes a pipe, UDP ASSOCIATE a relay of datagrams.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream, UdpSocket,
        unix::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time,
};

use super::{DIAL_TIMEOUT, REQUEST_TIMEOUT};
use crate::{
    agent::{
        Client,
        protocol::{Answer, Code, FRAME_MAX, Request as AgentRequest},
        wire,
    },
    socks::{self, Command, Host, MESSAGE_MAX, Parsed, Reply, Request, Target},
};

/// Serves one connection to its end.
pub(super) async fn serve(mut stream: TcpStream, client: Client) {
    if let Err(error) = converse(&mut stream, &client).await {
        tracing::debug!(%error, "socks5");
    }
}

async fn converse(stream: &mut TcpStream, client: &Client) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(MESSAGE_MAX);
    let request = match time::timeout(REQUEST_TIMEOUT, greet(stream, &mut bytes)).await {
        Ok(request) => request?,
        Err(_) => return Ok(()),
    };
    let Some(Request { command, target }) = request else {
        return Ok(());
    };
    match command {
        Command::Connect => connect(stream, client, target, &bytes).await,
        Command::UdpAssociate => associate(stream, client).await,
        Command::Bind | Command::Unknown => refuse(stream, Reply::CommandNotSupported).await,
    }
}

/// Greets and reads the request; what the client has sent beyond it stays in `bytes`.
async fn greet(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let Some(accepted) = read(stream, bytes, socks::parse_greeting).await? else {
        return Ok(None);
    };
    stream.write_all(&socks::emit_method(accepted)).await?;
    if !accepted {
        return Ok(None);
    }
    read(stream, bytes, socks::parse_request).await
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

async fn connect(
    stream: &mut TcpStream,
    client: &Client,
    target: Target,
    early: &[u8],
) -> io::Result<()> {
    let host = match target.host {
        Host::Address(address) => address.to_string(),
        Host::Name(name) => name,
        Host::Unknown => return refuse(stream, Reply::AddressNotSupported).await,
    };
    let mut pipe = match client.dial(&host, target.port, DIAL_TIMEOUT).await {
        Ok(Ok(pipe)) => pipe,
        Ok(Err(failure)) => {
            tracing::info!(%host, port = target.port, "{failure}");
            return refuse(stream, reply(failure.code)).await;
        }
        Err(error) => {
            tracing::warn!("{error:#}");
            return refuse(stream, Reply::GeneralFailure).await;
        }
    };
    let mut message = Vec::new();
    socks::emit_reply(Reply::Succeeded, pipe.local, &mut message);
    stream.write_all(&message).await?;
    pipe.stream.write_all(early).await?;
    let moved = pipe.join(client, stream).await;
    if moved.is_err() {
        // The program here sees a reset, not an end.
        drop(stream.set_zero_linger());
    }
    moved
}

async fn refuse(stream: &mut TcpStream, reply: Reply) -> io::Result<()> {
    let mut message = Vec::new();
    socks::emit_reply(reply, SocketAddr::from(([0; 4], 0)), &mut message);
    stream.write_all(&message).await?;
    stream.shutdown().await
}

/// Relays datagrams as long as the connection stands (RFC 1928, 6).
async fn associate(stream: &mut TcpStream, client: &Client) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(stream.local_addr()?.ip(), 0)).await?;
    let from = stream.peer_addr()?.ip();
    let (answer, mut agent) = match client.ask(&AgentRequest::Udp, DIAL_TIMEOUT).await {
        Ok(answered) => answered,
        Err(error) => {
            tracing::warn!("{error:#}");
            return refuse(stream, Reply::GeneralFailure).await;
        }
    };
    if !matches!(answer, Answer::Relaying) {
        return refuse(stream, Reply::GeneralFailure).await;
    }
    let mut message = Vec::new();
    socks::emit_reply(Reply::Succeeded, socket.local_addr()?, &mut message);
    stream.write_all(&message).await?;
    let (from_agent, to_agent) = agent.split();
    // The first datagram tells the client's port; others of that machine are not listened to.
    let program = watch::Sender::new(None);
    tokio::select! {
        ended = upwards(&socket, from, &program, to_agent) => ended,
        ended = downwards(&socket, program.subscribe(), from_agent) => ended,
        ended = closed(stream) => ended,
    }
}

async fn upwards(
    socket: &UdpSocket,
    from: IpAddr,
    program: &watch::Sender<Option<SocketAddr>>,
    mut agent: WriteHalf<'_>,
) -> io::Result<()> {
    // Room for the length in front, so that the frame is written in one piece.
    let mut frame = vec![0; 4 + FRAME_MAX];
    loop {
        let (length, source) = socket.recv_from(&mut frame[4..]).await?;
        let known = *program.borrow();
        let welcome = known.map_or(source.ip() == from, |known| known == source);
        let datagram = socks::parse_datagram(&frame[4..4 + length]);
        if !welcome || !matches!(datagram, Parsed::Message(..)) {
            continue;
        }
        program.send_if_modified(|known| known.replace(source).is_none());
        let count = u32::try_from(length).map_err(io::Error::other)?;
        frame[..4].copy_from_slice(&count.to_be_bytes());
        agent.write_all(&frame[..4 + length]).await?;
    }
}

async fn downwards(
    socket: &UdpSocket,
    mut program: watch::Receiver<Option<SocketAddr>>,
    mut agent: ReadHalf<'_>,
) -> io::Result<()> {
    let program = {
        let known = program.wait_for(Option::is_some).await;
        *known.map_err(io::Error::other)?
    };
    let Some(program) = program else {
        return Ok(());
    };
    let mut frame = Vec::new();
    while wire::receive_frame(&mut agent, &mut frame, FRAME_MAX).await? {
        // It may have gone.
        drop(socket.send_to(&frame, program).await);
    }
    Ok(())
}

async fn closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 64];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

fn reply(code: Code) -> Reply {
    match code {
        Code::NameUnknown | Code::Unreachable => Reply::HostUnreachable,
        Code::NoRoute | Code::EndpointUnknown | Code::NameRefused => Reply::NetworkUnreachable,
        Code::Prohibited => Reply::NotAllowed,
        Code::ConnectionRefused | Code::ConnectionReset => Reply::ConnectionRefused,
        Code::HandshakeUnanswered | Code::RemoteSilent | Code::ResolverSilent => Reply::TtlExpired,
        Code::TooMany
        | Code::Draining
        | Code::ConfigurationChanged
        | Code::KeyNotReplaced
        | Code::Misunderstood => Reply::GeneralFailure,
    }
}
