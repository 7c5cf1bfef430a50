//! The socket through which programs of a session reach the person's agent.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
};

use russh::server::Handle;
use tokio::{net::UnixListener, task::JoinHandle};

use super::Login;
use crate::ssh::channels::Channels;

/// A listener for programs of the account; it ends with this value.
pub(super) struct AgentSocket {
    directory: PathBuf,
    path: PathBuf,
    task: JoinHandle<()>,
}

impl AgentSocket {
    /// Listens where only the account can connect.
    pub(super) fn open(login: &Login, handle: Handle, channels: Channels) -> io::Result<Self> {
        let mut name = [0; 10];
        os::random::fill(&mut name);
        let name = data_encoding::BASE32_NOPAD.encode(&name).to_lowercase();
        let directory = std::env::temp_dir().join(format!("ginnel-ssh-{name}"));
        // It must not exist: nobody else can have prepared it.
        DirBuilder::new().mode(0o700).create(&directory)?;
        let path = directory.join("agent");
        let opened = listen(login, &directory, &path);
        let listener = match opened {
            Ok(listener) => listener,
            Err(error) => {
                drop(fs::remove_dir_all(&directory));
                return Err(error);
            }
        };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handle, channels) = (handle.clone(), channels.clone());
                tokio::spawn(async move {
                    channels.lead(stream, handle.channel_open_agent()).await;
                });
            }
        });
        Ok(Self {
            directory,
            path,
            task,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        self.task.abort();
        // The directory is the account's, which may have put something else there.
        drop(fs::remove_file(&self.path));
        drop(fs::remove_dir(&self.directory));
    }
}

fn listen(login: &Login, directory: &Path, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    if login.switch {
        let (uid, gid) = (Some(login.account.uid), Some(login.account.gid));
        // The directory last: until then nobody else can exchange what is in it.
        chown(path, uid, gid)?;
        chown(directory, uid, gid)?;
    }
    Ok(listener)
}
