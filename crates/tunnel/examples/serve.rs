//! Serves a page inside a tunnel: `cargo run --example serve -- wg0.conf PORT`.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::{Context as _, bail};
use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use model::config::Config;
use tunnel::{Network, TcpListener};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, port] = arguments.as_slice() else {
        bail!("usage: serve CONFIG PORT");
    };
    let text = std::fs::read(config).with_context(|| format!("read `{config}`"))?;
    let network = Network::open(&Config::parse(&text)?)?;
    let tunnel = network.tunnel().clone();
    tokio::spawn(network.run());

    let addresses = tunnel.with(|node, _| node.addresses());
    let address = *addresses
        .first()
        .context("the configuration has no Address")?;
    let port = port.parse().context("read the port")?;
    let listener = TcpListener::bind(&tunnel, SocketAddr::new(address, port))?;
    loop {
        let stream = TokioIo::new(listener.accept().await?);
        let page = service_fn(|_| async {
            let body = Full::new(Bytes::from_static(b"hello from inside the tunnel\n"));
            Ok::<_, Infallible>(Response::new(body))
        });
        tokio::spawn(http1::Builder::new().serve_connection(stream, page));
    }
}
