//! `ginnel capture --tun NAME`: what passes the interface that `ginnel tun NAME` serves.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::time;

use super::Output;
use crate::{
    remedy::{Advise as _, advise},
    terminal,
    tun::{self, Errno, Wanted},
};

/// Captures until Ctrl-C, a bound, or the time is over.
pub(super) async fn run(
    name: &str,
    wanted: &Wanted,
    duration: Option<Duration>,
    output: Output,
) -> Result<()> {
    let stream = begin(name, wanted)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let over = async {
        match duration {
            Some(duration) => time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    super::receive(stream, output.begin()?, over).await?;
    if wanted.keys {
        terminal::note(format_args!(
            "replace the private key of {name}, and its public key at the peers: `wg set {name} \
             private-key FILE`"
        ));
    }
    Ok(())
}

/// Asks the process of the interface.
fn begin(name: &str, wanted: &Wanted) -> Result<UnixStream> {
    let mut stream = tun::connect(name)?;
    let asked = stream.write_all(wanted.emit().as_bytes());
    asked.context("UAPI: ask")?;
    let answer = answer(&mut stream)
        .with_context(|| format!("UAPI: ask the process of `{name}`"))
        .remedy("another program than this version of ginnel serves it")?;
    match answer {
        Errno::NONE => Ok(stream),
        Errno::BUSY => Err(advise(
            format_args!("a capture of {name} runs already"),
            "wait until it ends, or end it",
        )),
        Errno(number) => Err(advise(
            format_args!("the process of {name} refused the capture: error {number}"),
            "see its log: it runs with -f in the foreground",
        )),
    }
}

/// Reads `errno=NUMBER` and the empty line, and nothing of the file behind it.
fn answer(stream: &mut UnixStream) -> io::Result<Errno> {
    let mut text = String::new();
    while !text.ends_with("\n\n") && text.len() < ANSWER_MAX {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.push(char::from(byte[0]));
    }
    let number = text.trim_end().strip_prefix("errno=");
    let number = number.and_then(|number| number.parse().ok());
    number
        .map(Errno)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Longer than any answer.
const ANSWER_MAX: usize = 64;
