//! The listener: TCP, TLS and HTTP/1.1 with a bound on every step.

use std::{future::Future, io, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{Server, ca, expiry};

/// Open connections, one for each node that waits for its map; further ones wait in the listener's
/// backlog.
const CONNECTIONS_MAX: usize = 16_384;

/// How long a client may take for the TLS handshake, and between requests for the next header.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// How long open requests may take to end after the server was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after `accept` failed, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may be silent before its client is asked whether it is still there.
const PROBE_AFTER: Duration = Duration::from_secs(5);

/// How often it is asked.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a client may answer nothing, or take nothing of what it was sent, until it is gone: one
/// that lost its power or its network says no word, and what is done for it ends (RFC 5482).
const GONE_AFTER: Duration = Duration::from_secs(20);

/// Serves until `shutdown`, then drains.
pub(crate) async fn serve(
    server: &Server,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(configuration(server)?));
    let router = server.router();
    let (stop, stopped) = watch::channel(false);
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut upkeep = JoinSet::new();
    upkeep.spawn(keep_up(server.clone()));
    upkeep.spawn(server.clone().keep_confirming());
    upkeep.spawn(expiry::keep_ending(server.clone()));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let permit = tokio::select! {
            () = &mut shutdown => break,
            permit = open.clone().acquire_owned() => permit.context("count connections")?,
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                let stopped = stopped.clone();
                connections.spawn(async move {
                    connection(acceptor, router, stream, stopped).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    server.stop_waiting();
    stop.send_replace(true);
    let drained = timeout(DRAIN_TIMEOUT, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::debug!(open = connections.len(), "connections were cut");
    }
    connections.shutdown().await;
    Ok(())
}

fn configuration(server: &Server) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut configuration = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_no_client_auth()
        .with_cert_resolver(server.certificates());
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(configuration)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_INTERVAL);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(GONE_AFTER))
}

async fn connection(
    acceptor: TlsAcceptor,
    router: Router,
    stream: TcpStream,
    mut stopped: watch::Receiver<bool>,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection ended at once");
        return;
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            return;
        }
    };
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut http = std::pin::pin!(http);
    let ended = tokio::select! {
        ended = &mut http => ended,
        _ = async { stopped.wait_for(|stopped| *stopped).await.is_ok() } => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Renews the certificate and deletes what is past, once a day.
async fn keep_up(server: Server) {
    loop {
        sleep(ca::RENEWAL_INTERVAL).await;
        if let Err(error) = server.renew_certificate() {
            tracing::warn!(
                error = format!("{error:#}"),
                "the certificate was not renewed"
            );
        }
        if let Err(error) = server.delete_past().await {
            tracing::warn!(error = format!("{error:#}"), "old rows were not deleted");
        }
    }
}
