//! Ports of this machine that lead to the far end (`-L`).

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use russh::client::Handle;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

use super::Events;
use crate::{local_port, remedy::Advise as _};

/// The wait after a failed accept: out of descriptors, some will be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port of this machine, and where it leads to from the far end.
pub(in crate::ssh) struct Listener {
    listener: TcpListener,
    host: String,
    port: u16,
}

impl Listener {
    /// Listens at `local`; port zero lets the system choose.
    pub(in crate::ssh) fn bind(local: SocketAddr, host: String, port: u16) -> Result<Self> {
        let listener = local_port::listen(local)
            .with_context(|| format!("local port: listen at {local}"))
            .remedy("choose another address or port")?;
        Ok(Self {
            listener,
            host,
            port,
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
                    self.lead(&handle, stream, from, &mut open).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn lead(
        &self,
        handle: &Handle<Events>,
        mut stream: TcpStream,
        from: SocketAddr,
        open: &mut JoinSet<()>,
    ) {
        let (host, port) = (self.host.as_str(), u32::from(self.port));
        let (own, own_port) = (from.ip().to_string(), u32::from(from.port()));
        let opened = handle.channel_open_direct_tcpip(host, port, own, own_port);
        match opened.await {
            Ok(channel) => {
                drop(open.spawn(async move {
                    let mut far = channel.into_stream();
                    if copy_bidirectional(&mut stream, &mut far).await.is_err() {
                        drop(stream.set_zero_linger());
                    }
                }));
            }
            Err(error) => {
                tracing::warn!("{host} port {port}: {error}");
                // The client learns it by a reset.
                drop(stream.set_zero_linger());
            }
        }
    }
}
