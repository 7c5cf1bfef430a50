//! UDP of a forward: one session for each program that sends.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{
        UdpSocket,
        unix::{ReadHalf, WriteHalf},
    },
    sync::mpsc,
    time,
};

use super::spec::Spec;
use crate::{
    agent::{
        Client, client,
        protocol::{Answer, FRAME_MAX, Request},
        wire,
    },
    socks::{self, Host, Parsed, Target},
    terminal,
};

/// Sessions of one forward; at the bound datagrams of new programs are dropped.
const SESSIONS_MAX: usize = 1_024;

/// Datagrams of one session that wait for the agent; at the bound further ones are dropped.
const QUEUE_MAX: usize = 64;

/// A session ends after so long without a datagram; RFC 4787 asks for two minutes at least.
const IDLE: Duration = Duration::from_secs(120);

/// How long the agent may take to begin a session.
const TIMEOUT: Duration = Duration::from_secs(10);

type Sessions = Arc<Mutex<BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>>>>;

/// Serves until its task ends.
pub(super) async fn serve(socket: Arc<UdpSocket>, client: &Client, spec: &Arc<Spec>) {
    let sessions = Sessions::default();
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error about an answer that nobody wanted any more.
                tracing::debug!(%error, "receive");
                continue;
            }
        };
        let datagram = buffer[..length].to_vec();
        let mut known = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = known.get(&source) {
            drop(session.try_send(datagram));
            continue;
        }
        if known.len() >= SESSIONS_MAX {
            tracing::warn!(%source, "too many sessions");
            continue;
        }
        let (sender, datagrams) = mpsc::channel(QUEUE_MAX);
        drop(sender.try_send(datagram));
        known.insert(source, sender);
        drop(known);
        let session = Session {
            socket: Arc::clone(&socket),
            source,
            spec: Arc::clone(spec),
        };
        let (client, sessions) = (client.clone(), Arc::clone(&sessions));
        tokio::spawn(async move {
            if let Err(error) = session.run(&client, datagrams).await {
                terminal::note(format_args!("{}: {error:#}", session.spec.local));
            }
            sessions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&source);
        });
    }
}

/// The datagrams between one local program and the remote port.
struct Session {
    socket: Arc<UdpSocket>,
    source: SocketAddr,
    spec: Arc<Spec>,
}

impl Session {
    async fn run(&self, client: &Client, datagrams: mpsc::Receiver<Vec<u8>>) -> anyhow::Result<()> {
        let (answer, mut stream) = client.ask(&Request::Udp, TIMEOUT).await?;
        if !matches!(answer, Answer::Relaying) {
            return Err(client::unexpected(&answer));
        }
        let heard = AtomicBool::new(false);
        let (from_agent, to_agent) = stream.split();
        tokio::select! {
            ended = self.upwards(datagrams, to_agent, &heard) => ended?,
            ended = self.downwards(from_agent, &heard) => ended?,
        }
        Ok(())
    }

    async fn upwards(
        &self,
        mut datagrams: mpsc::Receiver<Vec<u8>>,
        mut agent: WriteHalf<'_>,
        heard: &AtomicBool,
    ) -> io::Result<()> {
        let host = match self.spec.host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(self.spec.host.clone()),
        };
        let target = Target {
            host,
            port: self.spec.port,
        };
        let mut header = vec![0; 4];
        if !socks::emit_datagram_to(&target, &mut header) {
            return Err(io::Error::other(
                "the name of the remote machine is too long",
            ));
        }
        loop {
            let datagram = match time::timeout(IDLE, datagrams.recv()).await {
                Ok(Some(datagram)) => datagram,
                Ok(None) => return Ok(()),
                Err(_) if heard.swap(false, Ordering::Relaxed) => continue,
                Err(_) => return Ok(()),
            };
            let length = header.len() - 4 + datagram.len();
            let length = u32::try_from(length).map_err(io::Error::other)?;
            let mut frame = header.clone();
            frame[..4].copy_from_slice(&length.to_be_bytes());
            frame.extend(datagram);
            agent.write_all(&frame).await?;
        }
    }

    async fn downwards(&self, mut agent: ReadHalf<'_>, heard: &AtomicBool) -> io::Result<()> {
        let mut frame = Vec::new();
        while wire::receive_frame(&mut agent, &mut frame, FRAME_MAX).await? {
            if let Parsed::Message(_, header) = socks::parse_datagram(&frame) {
                heard.store(true, Ordering::Relaxed);
                // The program may have gone.
                drop(self.socket.send_to(&frame[header..], self.source).await);
            }
        }
        Ok(())
    }
}
