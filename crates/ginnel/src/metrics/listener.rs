//! `--metrics ADDR:PORT`: the same over HTTP, for Prometheus to ask.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

use super::Snapshot;
use crate::{remedy::Advise as _, terminal};

/// Where metrics are served.
#[derive(Debug, clap::Args)]
pub(crate) struct Address {
    /// Serve metrics for Prometheus at http://ADDR:PORT/metrics, to whoever can connect: names and
    /// public keys of peers are among them
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
}

/// Takes requests for metrics.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

/// Connections at once; more wait in the queue of the listener.
const CONNECTIONS_MAX: usize = 16;

/// How long a connection lasts: Prometheus keeps its own from one scrape to the next, and begins a
/// new one when that is gone.
const CONNECTION_MAX: Duration = Duration::from_secs(300);

/// How long a request may take to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// A pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

impl Address {
    /// Listens, if that is wanted.
    pub(crate) async fn listen(&self) -> anyhow::Result<Option<Listener>> {
        let Some(address) = self.metrics else {
            return Ok(None);
        };
        let listener = TcpListener::bind(address).await;
        let listener = listener
            .with_context(|| format!("metrics: listen at {address}"))
            .remedy("choose a free port of this machine with --metrics")?;
        Ok(Some(Listener(listener)))
    }
}

impl Listener {
    /// Says on stdout where it listens.
    pub(crate) fn announce(&self, json: bool) -> std::io::Result<()> {
        let url = format!("http://{}/metrics", self.0.local_addr()?);
        if json {
            terminal::json(&serde_json::json!({ "metrics": url }))
        } else {
            terminal::line(format_args!("metrics at {url}"))
        }
    }
}

/// Answers with fresh snapshots until it is dropped; without a listener it waits.
pub(crate) async fn serve<F>(listener: Option<Listener>, snapshot: F) -> Infallible
where
    F: Fn() -> Snapshot + Send + Sync + 'static,
{
    let Some(Listener(listener)) = listener else {
        return std::future::pending().await;
    };
    let snapshot = Arc::new(snapshot);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let snapshot = Arc::clone(&snapshot);
                tokio::spawn(async move {
                    let served = answer_all(stream, &*snapshot);
                    if time::timeout(CONNECTION_MAX, served).await.is_err() {
                        tracing::debug!("metrics: a connection was open for too long");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: accept a connection");
                time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer_all<F: Fn() -> Snapshot>(stream: TcpStream, snapshot: &F) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), snapshot);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "metrics");
    }
}

fn answer(method: &Method, path: &str, snapshot: impl Fn() -> Snapshot) -> Response<Full<Bytes>> {
    const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
    let plain = |status, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        set(&mut response, CONTENT_TYPE, FORMAT);
        response
    };
    match (path, method) {
        ("/metrics", &Method::GET | &Method::HEAD) => plain(StatusCode::OK, snapshot().text()),
        ("/metrics", _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
            set(&mut response, ALLOW, "GET, HEAD");
            response
        }
        (_, _) => plain(StatusCode::NOT_FOUND, "see /metrics\n".to_owned()),
    }
}

fn set(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &'static str) {
    let value = HeaderValue::from_static(value);
    response.headers_mut().insert(name, value);
}
