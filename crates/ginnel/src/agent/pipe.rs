//! Bytes between a command and a connection inside the tunnel, each direction closed by itself.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{
        UnixStream,
        unix::{ReadHalf, WriteHalf},
    },
    sync::Notify,
    time,
};

use tunnel::TcpStream;

/// Bytes in flight in one direction of one pipe.
const BUFFER: usize = 64 * 1024;

/// How often it is looked whether a silent command still lives.
const LOOK: Duration = Duration::from_millis(500);

/// Which end of a pipe failed.
#[derive(Debug)]
pub(super) enum Broken {
    /// The command's.
    Command(io::Error),
    /// The connection inside the tunnel.
    Remote(io::Error),
}

/// Moves bytes until both directions have ended, one has failed or the command has gone away.
pub(super) async fn join(client: &mut UnixStream, remote: &TcpStream) -> Result<(), Broken> {
    let (from_client, to_client) = client.split();
    let half_closed = Notify::new();
    let up = async {
        upwards(&from_client, remote).await?;
        half_closed.notify_one();
        Ok(())
    };
    let gone = async {
        // Before that, the read itself tells.
        half_closed.notified().await;
        gone(&from_client).await;
    };
    tokio::select! {
        ended = async { tokio::try_join!(up, downwards(remote, to_client)) } => ended.map(|_| ()),
        () = gone => Ok(()),
    }
}

/// Waits until the other side has closed the connection altogether, not only its direction.
pub(super) async fn gone(client: &ReadHalf<'_>) {
    loop {
        match client.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => time::sleep(LOOK).await,
            Ok(_) | Err(_) => return,
        }
    }
}

async fn upwards(client: &ReadHalf<'_>, remote: &TcpStream) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        client.readable().await.map_err(Broken::Command)?;
        match client.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let sent = remote.send_all(&buffer[..length]).await;
                sent.map_err(Broken::Remote)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::Command(error)),
        }
    }
    remote.finish();
    Ok(())
}

async fn downwards(remote: &TcpStream, mut client: WriteHalf<'_>) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = remote.recv(&mut buffer).await.map_err(Broken::Remote)?;
        if length == 0 {
            return client.shutdown().await.map_err(Broken::Command);
        }
        let written = write_all(&client, &buffer[..length]).await;
        written.map_err(Broken::Command)?;
    }
}

async fn write_all(client: &WriteHalf<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        client.writable().await?;
        match client.try_write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
