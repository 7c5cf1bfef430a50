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

/// Serves one capture; an error means that the command has gone away.
pub(super) async fn serve(
    agent: &Agent,
    stream: &mut UnixStream,
    wanted: Capture,
) -> io::Result<()> {
    let begun = settings(agent, &wanted).and_then(|settings| agent.tunnel.capture(settings));
    let mut capture = match begun {
        Ok(capture) => capture,
        Err(failure) => return wire::send(stream, &Answer::Failed(failure)).await,
    };
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
    to_command.write_all(capture.end()).await?;
    to_command.shutdown().await
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
