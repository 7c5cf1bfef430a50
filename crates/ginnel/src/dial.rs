//! `ginnel dial`: one connection on stdin and stdout.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    agent::{Client, client::Pipe, protocol::Failure},
    cli::Global,
    remedy::Advise as _,
};

/// Connect stdin and stdout to a remote port
///
/// Ends when both sides have ended. Fits OpenSSH's ProxyCommand. The end of stdin ends our
/// direction only, so the answer is still read. A connection that is reset is a failure.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Name or address of the remote machine
    host: String,

    /// Its TCP port
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// Give up after this many seconds without a connection
    #[arg(long, default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u16).range(1..=300))]
    timeout: u16,
}

const EXAMPLES: &str = "\
Examples:
  ginnel dial db 5432
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | ginnel dial web 80
  ssh -o ProxyCommand='ginnel dial %h %p' root@db";

/// Bytes in flight in one direction.
const BUFFER: usize = 64 * 1024;

/// Connects and moves bytes until both directions have ended.
pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let client = Client::of(global)?;
    let timeout = Duration::from_secs(args.timeout.into());
    let pipe = client.dial(&args.host, args.port, timeout).await?;
    let Pipe {
        stream, connection, ..
    } = pipe.map_err(Failure::into_error)?;
    // From here on two threads move bytes; there is nothing else to wait for.
    let stream = stream.into_std().context("take the connection over")?;
    stream
        .set_nonblocking(false)
        .context("take the connection over")?;
    let upstream = stream.try_clone().context("take the connection over")?;
    let upwards = thread::spawn(move || send(&upstream));
    // Unbuffered: half a line is worth as much as a whole one.
    let stdout = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("open stdout")?;
    let received = copy(&mut &stream, &mut File::from(stdout));
    // Nobody waits for the rest of stdin when the other side has broken off.
    if let Some(failure) = client.ending(connection).await {
        return Err(failure.into_error());
    }
    received?;
    let sent = upwards
        .join()
        .map_err(|_| anyhow::anyhow!("the reader of stdin failed"))?;
    sent.context("remote port: the connection was closed while there was more to send")
        .remedy("see the log of the program at the remote port")?;
    Ok(ExitCode::SUCCESS)
}

fn send(stream: &UnixStream) -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let copied = copy(&mut File::from(stdin), &mut &*stream);
    // The other side may be gone already.
    drop(stream.shutdown(Shutdown::Write));
    copied
}

/// Moves bytes as they come. The standard library's copy asks the kernel to (splice(2)), which may
/// wait for more than there is.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
