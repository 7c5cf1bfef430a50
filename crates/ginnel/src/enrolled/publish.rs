//! Published ports: each accepted connection is led to its target on this machine.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use netstack::ListenerId;
use node::Published;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time,
};

use super::led::Led;
use tunnel::Tunnel;

/// Connections to published ports at a time; at the bound new ones are closed.
const ACCEPTED_MAX: usize = 4_096;

/// How long a target may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes in flight in one direction of one connection.
const BUFFER: usize = 64 * 1024;

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Leads connections from published ports to their targets.
pub(super) struct Publisher {
    places: Arc<Semaphore>,
    led: Led,
    /// Listeners of the system, where the node has an interface; at most one for each service.
    listeners: BTreeMap<SocketAddr, Listener>,
}

/// A listener of the system, which ends with its owner.
struct Listener {
    target: String,
    task: JoinHandle<()>,
}

impl Publisher {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(ACCEPTED_MAX)),
            led: Led::default(),
            listeners: BTreeMap::new(),
        }
    }

    /// Returns the connections that it leads.
    pub(super) fn led(&self) -> Led {
        self.led.clone()
    }

    /// Listens where the map says, if the node has an interface; with a stack it does so itself.
    ///
    /// A port at which a program of this machine listens already is left to it: it is reached
    /// without us.
    pub(super) fn listen(&mut self, tunnel: &Tunnel) {
        if tunnel.interface().is_none() {
            return;
        }
        let wanted = tunnel.with(|node, _| node.published_ports());
        self.listeners.retain(|local, listener| {
            let target = wanted.get(local).map(target_of);
            target.as_ref() == Some(&listener.target)
        });
        for (local, published) in &wanted {
            if self.listeners.contains_key(local) {
                continue;
            }
            match self.open(*local, target_of(published)) {
                Ok(listener) => drop(self.listeners.insert(*local, listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    tracing::info!(%local, "published port: a program of this machine serves it");
                }
                Err(error) => tracing::warn!(%error, %local, "published port"),
            }
        }
    }

    /// Accepts every connection that waits at `listener` of the node's own stack.
    pub(super) fn accept(&self, tunnel: &Tunnel, listener: ListenerId) {
        let target = tunnel.with(|node, _| node.published(listener).map(target_of));
        while let Some(stream) = tunnel.accept(listener) {
            let place = Arc::clone(&self.places).try_acquire_owned();
            let (Some(target), Ok(place)) = (target.clone(), place) else {
                stream.abort();
                continue;
            };
            let led = self.led.clone();
            tokio::spawn(async move {
                let mut stream = stream;
                let source = stream.remote().ip();
                if !lead(&mut stream, source, &target, &led).await {
                    stream.abort();
                }
                drop(place);
            });
        }
    }

    fn open(&self, local: SocketAddr, target: String) -> io::Result<Listener> {
        let listener = std::net::TcpListener::bind(local)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (places, led) = (Arc::clone(&self.places), self.led.clone());
        let task = tokio::spawn(serve(listener, target.clone(), places, led));
        Ok(Listener { target, task })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns where connections to a published port are led.
fn target_of(published: &Published) -> String {
    let own = || format!("127.0.0.1:{}", published.port);
    published.target.clone().unwrap_or_else(own)
}

async fn serve(listener: TcpListener, target: String, places: Arc<Semaphore>, led: Led) {
    loop {
        let (mut stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "published port: accept");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned();
        let (target, led) = (target.clone(), led.clone());
        tokio::spawn(async move {
            // They only cost latency and manners if they fail.
            drop(stream.set_nodelay(true));
            if place.is_err() || !lead(&mut stream, client.ip(), &target, &led).await {
                drop(stream.set_zero_linger());
            }
            drop(place);
        });
    }
}

/// Moves bytes between a connection from `source` and its target; false when there is no target,
/// or when either end was reset: then the other one is to be reset as well.
async fn lead<S>(stream: &mut S, source: IpAddr, target: &str, led: &Led) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut program = match time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => {
            tracing::warn!(%error, target, "published port");
            return false;
        }
        Err(_) => {
            tracing::warn!(target, "published port: no answer");
            return false;
        }
    };
    // It only costs latency if it fails.
    drop(program.set_nodelay(true));
    // Dropped before the program's connection, which is older.
    let _entry = led.insert(&program, source);
    join(stream, &mut program).await
}

/// Moves bytes until both ends have finished; false when either was reset: the system's connection
/// is then reset as soon as it is dropped, and the other one is to be reset as well.
pub(super) async fn join<S>(stream: &mut S, system: &mut TcpStream) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let moved = copy_bidirectional_with_sizes(stream, system, BUFFER, BUFFER).await;
    if let Err(error) = &moved {
        tracing::debug!(%error, "connection");
        drop(system.set_zero_linger());
    }
    moved.is_ok()
}
