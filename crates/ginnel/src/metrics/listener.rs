//! `--metrics ADDR:PORT`: the same over HTTP, for Prometheus to ask.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
};
use tokio::net::TcpListener;

use super::Snapshot;
use crate::{
    local_http::{self, plain, set},
    remedy::Advise as _,
    terminal,
};

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

impl Address {
    /// Listens for a process without an event loop, if that is wanted.
    pub(crate) fn bind(&self) -> anyhow::Result<Option<std::net::TcpListener>> {
        let Some(address) = self.metrics else {
            return Ok(None);
        };
        let listener = std::net::TcpListener::bind(address);
        let listener = listener
            .with_context(|| format!("metrics: listen at {address}"))
            .remedy("choose a free port of this machine with --metrics")?;
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }

    /// Returns the flag again, for another process that is started with it.
    pub(crate) fn flag(&self) -> Option<String> {
        self.metrics.map(|address| format!("--metrics={address}"))
    }
}

impl Listener {
    /// Takes what [`Address::bind`] returned into the event loop.
    pub(crate) fn from_std(listener: std::net::TcpListener) -> std::io::Result<Self> {
        TcpListener::from_std(listener).map(Self)
    }

    /// Says on stdout where it listens.
    pub(crate) fn announce(&self, json: bool) -> std::io::Result<()> {
        announce(self.0.local_addr()?, json)
    }
}

/// Says on stdout where metrics are served.
pub(crate) fn announce(address: SocketAddr, json: bool) -> std::io::Result<()> {
    let url = format!("http://{address}/metrics");
    if json {
        terminal::json(&serde_json::json!({ "metrics": url }))
    } else {
        terminal::line(format_args!("metrics at {url}"))
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
    let answer = move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &snapshot);
        std::future::ready(response)
    };
    local_http::serve(listener, answer).await
}

fn answer(method: &Method, path: &str, snapshot: impl Fn() -> Snapshot) -> Response<Full<Bytes>> {
    const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
    match (path, method) {
        ("/metrics", &Method::GET | &Method::HEAD) => {
            let mut response = plain(StatusCode::OK, snapshot().text());
            set(&mut response, CONTENT_TYPE, FORMAT);
            response
        }
        ("/metrics", _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
            set(&mut response, ALLOW, "GET, HEAD");
            response
        }
        (_, _) => plain(StatusCode::NOT_FOUND, "see /metrics\n"),
    }
}
