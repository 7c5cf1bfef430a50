//! Unix sockets that only their owner reaches.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, fchmod},
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// Who is on the other end of a Unix socket, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// The process; zero if it is not visible from here.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Tells who is on the other end of `socket` (SO_PEERCRED).
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(socket, PeerCredentials)?;
    Ok(Peer {
        pid: credentials.pid(),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

/// Why there is no listener.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("another process listens on it")]
    InUse,
    /// Something that is not a socket has the path.
    #[error("the path is taken by something else than a socket")]
    NotASocket,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Removes the socket's file when dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    file: Identity,
}

/// Tells a file from others at the same path: numbers of inodes are used again.
#[derive(Debug, Eq, PartialEq)]
struct Identity {
    device: u64,
    inode: u64,
    born: Option<SystemTime>,
}

/// Listens at `path`, mode 0600 from its first moment; the listener does not block.
///
/// A socket that nobody listens on any more is replaced, a live one never: whoever listens this
/// way in the same directory at the same time waits for us.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let _turn = Flock::lock(File::open(directory)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io::Error::from(errno))?;
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A Unix socket's file takes its mode from the unbound socket (unix(7), `unix_bind`).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(io::Error::from)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::adopt(path)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((std::os::fd::OwnedFd::from(socket).into(), file))
}

impl SocketFile {
    /// Takes over the removal of the socket file at `path`.
    pub fn adopt(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Identity::of(path)?,
        })
    }

    /// Leaves the file to another process, which adopts it.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Tells whether the file is still there and still ours, as far as we may look.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match Identity::of(&self.path) {
            Ok(file) => file == self.file,
            // The directory was ours before privileges were dropped.
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            born: metadata.created().ok(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // At worst a stale socket stays, which the next listener replaces.
            fs::remove_file(&self.path).ok();
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // Nonblocking, because connect(2) to a living listener whose backlog is full would wait.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(fs::remove_file(path)?)
        }
        // Its owner removed it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog (EAGAIN) or a missing right are signs of life too.
        Ok(()) | Err(_) => Err(ListenError::InUse),
    }
}

/// Connections that wait to be accepted; further ones wait in connect(2).
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_listener_is_private_and_knows_its_peer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let peer = peer(&server).unwrap();
        assert_eq!(peer.uid, crate::process::euid());
        assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (listener, file) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(ListenError::InUse)));
        drop(listener);
        let (_listener, newer) = listen(&path).unwrap();
        drop(file);
        assert!(newer.is_ours(), "the former owner must not remove it");
    }

    #[test]
    fn a_listener_whose_backlog_is_full_is_alive_and_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        // With a backlog of zero one connection waits, and the next would block.
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path), Err(ListenError::InUse)));
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(ListenError::NotASocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
