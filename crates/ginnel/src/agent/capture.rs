//! A capture for a command: blocks of a file until it is complete, its time is over or the command
//! has had enough.

use std::{io, time::Duration};

use node::capture::Settings;
use packet::pcap_filter::Filter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time,
};

use super::{
    protocol::{Answer, Capture, Code, Failure},
    server::Agent,
    wire,
};
use crate::enrolled::NodeKey;

/// How long a command waits for the key that replaces the one that it was given.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one capture; an error means that the command has gone away.
///
/// With keys the node's key is replaced at the end, however that comes, before the command sees it.
pub(super) async fn serve(
    agent: &Agent,
    stream: &mut UnixStream,
    wanted: Capture,
) -> io::Result<()> {
    let key = agent.key.as_ref().filter(|_| wanted.keys);
    if let Some(key) = key
        && let Err(failure) = expose(key).await
    {
        return wire::send(stream, &Answer::Failed(failure)).await;
    }
    let begun = settings(agent, &wanted).and_then(|settings| agent.tunnel.capture(settings));
    let written = match begun {
        Ok(capture) => write(stream, capture, &wanted).await,
        Err(failure) => wire::send(stream, &Answer::Failed(failure)).await,
    };
    if let Some(key) = key {
        tokio::spawn(key.clone().replace());
        key.replaced(REPLACE_TIMEOUT).await;
    }
    written?;
    stream.shutdown().await
}

/// Prepares the key's end. One that waits for the server must not be mistaken for the next one.
async fn expose(key: &NodeKey) -> Result<(), Failure> {
    if key.is_exposed() {
        return Err(Failure::new(
            Code::KeyNotReplaced,
            "the key that the last capture gave away is not replaced yet",
            "see whether the server is reached: `ginnel status`; then capture again",
        ));
    }
    key.expose().await.map_err(|error| {
        Failure::new(
            Code::KeyNotReplaced,
            format!("{error:#}"),
            "see that the state directory can be written to",
        )
    })
}

async fn write(
    stream: &mut UnixStream,
    mut capture: tunnel::Capture,
    wanted: &Capture,
) -> io::Result<()> {
    wire::send(stream, &Answer::Capturing).await?;
    let (mut from_command, mut to_command) = stream.split();
    let enough = from_command.read_u8();
    let over = async {
        match wanted.duration_ms {
            Some(duration) => time::sleep(Duration::from_millis(duration)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(enough, over);
    loop {
        // What was begun is written whole: a block cut short would end the file.
        let blocks = tokio::select! {
            blocks = capture.next() => blocks,
            _ = &mut enough => None,
            () = &mut over => None,
        };
        let Some(blocks) = blocks else { break };
        to_command.write_all(blocks).await?;
    }
    to_command.write_all(capture.end()).await
}

fn settings(agent: &Agent, wanted: &Capture) -> Result<Settings, Failure> {
    let filter = wanted.filter.as_deref().map(Filter::parse).transpose();
    let filter = filter.map_err(|error| {
        let message = format!("filter: {error}");
        Failure::new(Code::Misunderstood, message, "see `ginnel capture --help`")
    })?;
    Ok(Settings {
        application: format!("ginnel {}", agent.version),
        inner: wanted.inner,
        outer: wanted.outer,
        filter,
        keys: wanted.keys,
        // The tunnel knows it.
        port: 0,
        packets_max: wanted.packets_max,
        bytes_max: wanted.bytes_max,
    })
}
