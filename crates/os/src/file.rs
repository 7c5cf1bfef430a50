//! Files that hold secrets or must never be half-written, and locks between processes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// Replaces the file at `path` by one with `contents` that only its owner can read.
///
/// After a crash at any point the file holds either the old or the new contents whole. A symbolic
/// link at `path` is replaced, not followed.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = directory_of(path);
    let temporary = temporary_beside(path);
    let written = write_new(&temporary, contents).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The file may not exist; the first error is the one that counts.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// A file that only its owner can read and that gets its name once it is whole; one that is dropped
/// before leaves nothing behind.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Unfinished {
    /// Begins a file that shall be at `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        let temporary = temporary_beside(path);
        Ok(Self {
            file: create_new(&temporary)?,
            temporary,
            path: path.to_owned(),
        })
    }

    /// Makes the file durable and puts it in the place of what was at its path.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        File::open(directory_of(&self.path))?.sync_all()
    }
}

impl io::Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Once finished it has another name.
        fs::remove_file(&self.temporary).ok();
    }
}

/// Makes `path` and its parents; what it makes only its owner may enter.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// An exclusive lock that ends with the value, or with the process however it ends.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

/// Why a lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process has it; its id, if it has written it already.
    #[error("held by process {}", .pid.map_or("unknown".to_owned(), |pid| pid.to_string()))]
    Held {
        /// The holder.
        pid: Option<u32>,
    },
    /// The lock file cannot be made or read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock at `path` and writes our process id into it, or fails at once.
    ///
    /// The file stays when the lock ends: removing it would let two processes each hold a lock of
    /// the same name.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                let mut lock = Self { file };
                lock.write_pid()?;
                Ok(lock)
            }
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { pid: pid_in(file) })
            }
            Err((_, errno)) => Err(LockError::Io(errno.into())),
        }
    }

    fn write_pid(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(&*self.file, "{}", std::process::id())
    }
}

fn pid_in(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn create_new(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = create_new(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let chance = u64::from_ne_bytes(crate::random::bytes());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{chance:016x}.tmp"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_private_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "old and readable").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_has_no_name_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup");
        let mut file = Unfinished::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut file = Unfinished::create(&path).unwrap();
        file.write_all(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_private(&path, b"x").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        let LockError::Held { pid } = Lock::acquire(&path).unwrap_err() else {
            panic!("not held");
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(held);
        Lock::acquire(&path).unwrap();
    }
}
