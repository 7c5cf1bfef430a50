//! Published ports: each accepted connection is led to its target on this machine.

use std::{sync::Arc, time::Duration};

use netstack::ListenerId;
use tokio::{io::copy_bidirectional_with_sizes, net::TcpStream, sync::Semaphore, time};

use crate::tunnel::{self, Tunnel};

/// Connections to published ports at a time; at the bound new ones are closed.
const ACCEPTED_MAX: usize = 4_096;

/// How long a target may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes in flight in one direction of one connection.
const BUFFER: usize = 64 * 1024;

/// Leads connections from published ports to their targets.
pub(super) struct Publisher {
    places: Arc<Semaphore>,
}

impl Publisher {
    pub(super) fn new() -> Self {
        let places = Arc::new(Semaphore::new(ACCEPTED_MAX));
        Self { places }
    }

    /// Accepts every connection that waits at `listener`.
    pub(super) fn accept(&self, tunnel: &Tunnel, listener: ListenerId) {
        let target = tunnel.with(|node, _| {
            let published = node.published(listener)?;
            let own = || format!("127.0.0.1:{}", published.port);
            Some(published.target.clone().unwrap_or_else(own))
        });
        while let Some(stream) = tunnel.accept(listener) {
            let place = Arc::clone(&self.places).try_acquire_owned();
            let (Some(target), Ok(place)) = (target.clone(), place) else {
                stream.abort();
                continue;
            };
            tokio::spawn(async move {
                lead(stream, &target).await;
                drop(place);
            });
        }
    }
}

async fn lead(mut stream: tunnel::TcpStream, target: &str) {
    let mut program = match time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => {
            tracing::warn!(%error, target, "published port");
            return stream.abort();
        }
        Err(_) => {
            tracing::warn!(target, "published port: no answer");
            return stream.abort();
        }
    };
    // It only costs latency if it fails.
    drop(program.set_nodelay(true));
    let moved = copy_bidirectional_with_sizes(&mut stream, &mut program, BUFFER, BUFFER);
    if let Err(error) = moved.await {
        tracing::debug!(%error, target, "published port");
    }
}
