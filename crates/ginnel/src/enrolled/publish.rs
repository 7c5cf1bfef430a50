//! Published ports: each accepted connection is led to its target on this machine.

use std::time::Duration;

use netstack::ListenerId;
use tokio::{io, net::TcpStream, time};

use crate::tunnel::Tunnel;

/// How long a target may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts every connection that waits at `listener` and leads it to the target.
pub(crate) fn accept(tunnel: &Tunnel, listener: ListenerId) {
    let published = tunnel.with(|node, _| node.published(listener).cloned());
    let Some(published) = published else {
        return;
    };
    let target = published
        .target
        .unwrap_or_else(|| format!("127.0.0.1:{}", published.port));
    while let Some(stream) = tunnel.accept(listener) {
        let (target, name) = (target.clone(), published.name.clone());
        tokio::spawn(async move {
            let mut stream = stream;
            let connected = time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&target)).await;
            let mut target = match connected {
                Ok(Ok(target)) => target,
                Ok(Err(error)) => {
                    tracing::warn!(%error, target, service = %name, "published port");
                    return stream.abort();
                }
                Err(_) => {
                    tracing::warn!(target, service = %name, "published port: no answer");
                    return stream.abort();
                }
            };
            // Latency first: what the far side wrote is passed on as it comes.
            drop(target.set_nodelay(true));
            if let Err(error) = io::copy_bidirectional(&mut stream, &mut target).await {
                tracing::debug!(%error, service = %name, "published port");
            }
        });
    }
}
