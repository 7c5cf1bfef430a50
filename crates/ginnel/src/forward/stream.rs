//! TCP and Unix connections of a forward.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};

use super::spec::Spec;
use crate::{agent::Client, terminal};

/// Connections of one forward at a time; at the bound further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 4_096;

/// How long the remote port may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A failed accept, out of descriptors for example, is repeated after this time.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn serve_tcp(listener: TcpListener, client: &Client, spec: &Arc<Spec>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = place(&places).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                // It only costs latency if it fails.
                drop(stream.set_nodelay(true));
                let (client, spec) = (client.clone(), Arc::clone(spec));
                tokio::spawn(async move {
                    let mut stream = stream;
                    if !lead(&mut stream, &client, &spec).await {
                        // The program here sees a refusal or a reset, not an end.
                        drop(stream.set_zero_linger());
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                time::sleep(PAUSE).await;
            }
        }
    }
}

pub(super) async fn serve_unix(listener: UnixListener, client: &Client, spec: &Arc<Spec>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = place(&places).await;
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let (client, spec) = (client.clone(), Arc::clone(spec));
                tokio::spawn(async move {
                    lead(&mut stream, &client, &spec).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                time::sleep(PAUSE).await;
            }
        }
    }
}

async fn place(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(places)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed")
}

/// Leads one connection to the remote port; false when that could not be reached or broke off.
async fn lead<S>(stream: &mut S, client: &Client, spec: &Spec) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let pipe = match client.dial(&spec.host, spec.port, TIMEOUT).await {
        Ok(Ok(pipe)) => pipe,
        Ok(Err(failure)) => {
            terminal::note(format_args!(
                "{}: {failure}\n  {}",
                spec.local, failure.remedy
            ));
            return false;
        }
        Err(error) => {
            terminal::note(format_args!("{}: {error:#}", spec.local));
            return false;
        }
    };
    pipe.join(client, stream).await.is_ok()
}
