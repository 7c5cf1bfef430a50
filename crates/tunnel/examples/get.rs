//! Fetches a page of a server inside a tunnel: `cargo run --example get -- wg0.conf HOST PORT /`.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use model::config::Config;
use tunnel::{Failure, Network};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, host, port, path] = arguments.as_slice() else {
        bail!("usage: get CONFIG HOST PORT PATH");
    };
    let text = std::fs::read(config).with_context(|| format!("read `{config}`"))?;
    let network = Network::open(&Config::parse(&text)?)?;
    let tunnel = network.tunnel().clone();
    tokio::spawn(network.run());

    let port = port.parse().context("read the port")?;
    let dialled = tunnel.dial(host, port, Duration::from_secs(10)).await;
    let stream = TokioIo::new(dialled.map_err(Failure::into_error)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("Host", host)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    println!("{}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    println!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
