//! Files and trees on their way from and to a node. A file has its name only once it is whole.

use std::{
    cell::Cell,
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use russh_sftp::{
    client::rawsession::SftpResult,
    protocol::{Data, FileAttributes, OpenFlags, Status, StatusCode},
};
use tokio::task::JoinHandle;

use super::{Files, is, join, missing, not_made, progress::Progress, refused, there};
use crate::terminal;

/// Bytes of one request: what every server takes (draft-ietf-secsh-filexfer-02, 3).
const CHUNK: u32 = 32 * 1024;

/// Requests that wait for their answers: 4 MiB, which is 80 MB/s at a round trip of 50 ms.
const REQUESTS_MAX: usize = 128;

/// Directories within each other; one that leads into itself ends here.
const DEPTH_MAX: usize = 64;

/// Bits of a file's mode that are taken over: not set-user-ID and its kind.
const MODE: u32 = 0o777;

/// Moves files.
pub(in crate::ssh) struct Transfer<'a> {
    files: &'a Files,
    recursive: bool,
    quiet: bool,
    /// A file at the node that is not whole.
    unfinished: Cell<Option<String>>,
}

/// A file that is not whole yet; unless it is kept it is removed with this value.
struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // It may be gone already.
            drop(fs::remove_file(&self.path));
        }
    }
}

impl<'a> Transfer<'a> {
    /// Takes directories with all that is in them if it is recursive, and tells how far it is
    /// unless it is quiet.
    pub(in crate::ssh) fn new(files: &'a Files, recursive: bool, quiet: bool) -> Self {
        Self {
            files,
            recursive,
            quiet,
            unfinished: Cell::new(None),
        }
    }

    /// Copies `from` of the node to the new name `to` of this machine.
    pub(in crate::ssh) async fn download(&self, from: &str, to: &Path) -> Result<()> {
        let found = self.files.attributes(from).await?;
        let found = found.with_context(|| format!("{} does not exist", there(from)))?;
        if !found.is_dir() {
            return self.download_file(from, to, &found).await;
        }
        ensure!(
            self.recursive,
            "{} is a directory; take it by -r",
            there(from)
        );
        let mut open = vec![(from.to_owned(), to.to_owned(), 1)];
        while let Some((from, to, depth)) = open.pop() {
            ensure!(depth <= DEPTH_MAX, "{} is too deep", there(&from));
            if !to.is_dir() {
                fs::create_dir(&to).map_err(|error| not_made_here(error, &to))?;
            }
            for entry in self.files.list(&from).await? {
                let (from, to) = (join(&from, &entry.name), to.join(&entry.name));
                let attributes = entry.attributes;
                if attributes.is_dir() {
                    open.push((from, to, depth + 1));
                    continue;
                }
                // A link to a directory could lead anywhere, also into itself.
                match self.files.attributes(&from).await? {
                    Some(found) if found.is_regular() => {
                        self.download_file(&from, &to, &found).await?;
                    }
                    Some(_) | None => left_out(&there(&from)),
                }
            }
        }
        Ok(())
    }

    /// Copies `from` of this machine to the new name `to` of the node.
    pub(in crate::ssh) async fn upload(&self, from: &Path, to: &str) -> Result<()> {
        let found = fs::metadata(from).with_context(|| here(from))?;
        if !found.is_dir() {
            return self.upload_file(from, to).await;
        }
        ensure!(
            self.recursive,
            "{} is a directory; take it by -r",
            here(from)
        );
        let mut open = vec![(from.to_owned(), to.to_owned(), 1)];
        while let Some((from, to, depth)) = open.pop() {
            ensure!(depth <= DEPTH_MAX, "{} is too deep", here(&from));
            if !self.files.is_directory(&to).await? {
                self.files.make_directory(&to).await?;
            }
            let listed = fs::read_dir(&from).with_context(|| here(&from))?;
            for entry in listed {
                let entry = entry.with_context(|| here(&from))?;
                let path = entry.path();
                let name = entry.file_name();
                let name = name.to_str();
                let name = name.with_context(|| format!("{} is not UTF-8", here(&path)))?;
                let to = join(&to, name);
                let kind = entry.file_type().with_context(|| here(&path))?;
                if kind.is_dir() {
                    open.push((path, to, depth + 1));
                    continue;
                }
                // As above.
                match fs::metadata(&path) {
                    Ok(found) if found.is_file() => self.upload_file(&path, &to).await?,
                    Ok(_) | Err(_) => left_out(&here(&path)),
                }
            }
        }
        Ok(())
    }

    async fn download_file(&self, from: &str, to: &Path, found: &FileAttributes) -> Result<()> {
        // A slash says that it is a directory.
        if to.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(missing(&here(to)));
        }
        let mut partial = Partial {
            path: beside(to)?,
            kept: false,
        };
        let mode = found.permissions.map_or(0o666, |mode| mode & MODE);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode | 0o200)
            .open(&partial.path);
        let file = file.map_err(|error| not_made_here(error, to))?;
        let size = found.size.unwrap_or_default();
        let mut progress = Progress::begin(&to.display().to_string(), size, self.quiet);
        let opened = self
            .files
            .sftp
            .open(from, OpenFlags::READ, FileAttributes::empty());
        let opened = opened.await.map_err(refused);
        let handle = opened.with_context(|| there(from))?.handle;
        let received = self.receive((from, &handle), (to, &file), size, &mut progress);
        let received = received.await;
        // What it has is here already.
        drop(self.files.sftp.close(handle).await);
        received?;
        file.sync_all().with_context(|| here(to))?;
        fs::rename(&partial.path, to).with_context(|| here(to))?;
        partial.kept = true;
        progress.end();
        Ok(())
    }

    /// Asks for many pieces at once and writes them in order.
    async fn receive(
        &self,
        (from, handle): (&str, &str),
        (to, mut file): (&Path, &File),
        size: u64,
        progress: &mut Progress,
    ) -> Result<()> {
        // A piece and where it begins.
        let mut pending: VecDeque<(u64, JoinHandle<SftpResult<Data>>)> = VecDeque::new();
        // The next to be asked for, and the next to be written.
        let (mut asked, mut written) = (0_u64, 0_u64);
        loop {
            // Beyond the size it had one piece at a time: a file that grew, or has no size.
            while pending.len() < REQUESTS_MAX && (asked < size || pending.is_empty()) {
                let (sftp, handle) = (Arc::clone(&self.files.sftp), handle.to_owned());
                let piece = async move { sftp.read(handle, asked, CHUNK).await };
                pending.push_back((asked, tokio::spawn(piece)));
                asked += u64::from(CHUNK);
            }
            let Some((offset, piece)) = pending.pop_front() else {
                return Ok(());
            };
            let piece = match piece.await.context("a task has failed")? {
                Ok(piece) => piece.data,
                Err(error) if is(&error, StatusCode::Eof) => {
                    let is_whole = written >= size;
                    ensure!(is_whole, "{} became shorter meanwhile", there(from));
                    return Ok(());
                }
                Err(error) => return Err(refused(error)).with_context(|| there(from)),
            };
            ensure!(
                offset == written && !piece.is_empty() && piece.len() <= CHUNK as usize,
                "{}: the server sent what was not asked for",
                there(from)
            );
            file.write_all(&piece).with_context(|| here(to))?;
            progress.moved(piece.len());
            written += piece.len() as u64;
            if piece.len() < CHUNK as usize {
                // What comes behind a short piece would leave a hole.
                pending.clear();
                asked = written;
            }
        }
    }

    async fn upload_file(&self, from: &Path, to: &str) -> Result<()> {
        if to.ends_with('/') {
            return Err(missing(&there(to)));
        }
        let file = File::open(from).with_context(|| here(from))?;
        let found = file.metadata().with_context(|| here(from))?;
        let partial = beside_there(to);
        let attributes = FileAttributes {
            permissions: Some(found.permissions().mode() & MODE),
            ..FileAttributes::empty()
        };
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        // From the request on: an interruption may come before its answer.
        self.unfinished.set(Some(partial.clone()));
        let opened = self.files.sftp.open(partial.as_str(), flags, attributes);
        let handle = match opened.await {
            Ok(opened) => opened.handle,
            Err(error) => return Err(not_made(error, to)),
        };
        let mut progress = Progress::begin(&from.display().to_string(), found.len(), self.quiet);
        let sent = self.send((from, &file), (to, &handle), &mut progress);
        let sent = sent.await;
        // The handle goes also where the bytes did not arrive.
        let closed = self.files.sftp.close(handle.as_str()).await;
        sent?;
        closed.map_err(refused).with_context(|| there(to))?;
        let replaced = self.files.replace(&partial, to).await;
        replaced.map_err(refused).with_context(|| there(to))?;
        self.unfinished.set(None);
        progress.end();
        Ok(())
    }

    /// Removes at the node what is not whole, after a failure or an interruption.
    pub(in crate::ssh) async fn abandon(&self) {
        if let Some(partial) = self.unfinished.take() {
            // The connection may be gone; the name says what it is.
            drop(self.files.sftp.remove(partial).await);
        }
    }

    /// Sends many pieces before the first answer.
    async fn send(
        &self,
        (from, file): (&Path, &File),
        (to, handle): (&str, &str),
        progress: &mut Progress,
    ) -> Result<()> {
        let mut pending: VecDeque<(usize, JoinHandle<SftpResult<Status>>)> = VecDeque::new();
        let mut offset = 0;
        loop {
            let mut piece = Vec::with_capacity(CHUNK as usize);
            let read = file.take(CHUNK.into()).read_to_end(&mut piece);
            read.with_context(|| here(from))?;
            let is_end = piece.is_empty();
            while pending.len() >= REQUESTS_MAX || (is_end && !pending.is_empty()) {
                let Some((length, answer)) = pending.pop_front() else {
                    break;
                };
                let answer = answer.await.context("a task has failed")?;
                answer.map_err(refused).with_context(|| there(to))?;
                progress.moved(length);
            }
            if is_end {
                return Ok(());
            }
            let (sftp, handle) = (Arc::clone(&self.files.sftp), handle.to_owned());
            let length = piece.len();
            let sending = async move { sftp.write(handle, offset, piece).await };
            pending.push_back((length, tokio::spawn(sending)));
            offset += length as u64;
        }
    }
}

/// Says what is no file and no directory.
fn left_out(what: &str) {
    terminal::note(format_args!(
        "ginnel: {what} is left out: it is no file and no directory"
    ));
}

/// What an error is about.
fn here(path: &Path) -> String {
    format!("`{}`", path.to_string_lossy().escape_debug())
}

/// Says why `path` could not be made: what is missing is the directory that it would be in.
fn not_made_here(error: io::Error, path: &Path) -> anyhow::Error {
    match error.kind() == io::ErrorKind::NotFound {
        true => missing(&here(path.parent().unwrap_or(path))),
        false => anyhow::Error::from(error).context(here(path)),
    }
}

/// A name in the same directory for what is not whole yet.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} names no file", here(path)))?;
    Ok(path.with_file_name(partial_name(name)))
}

fn beside_there(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{}", partial_name(name)),
        None => partial_name(path),
    }
}

/// A hidden name that nobody else has, not longer than a file system takes.
fn partial_name(name: &str) -> String {
    let mut random = [0; 5];
    os::random::fill(&mut random);
    let random = data_encoding::BASE32_NOPAD.encode(&random).to_lowercase();
    let mut length = name.len().min(200);
    while !name.is_char_boundary(length) {
        length -= 1;
    }
    format!(".{}.{random}.partial", &name[..length])
}

/// Where `name` comes to be when it is copied to `to`: within it, if that is a directory.
pub(in crate::ssh) fn within(to: &Path, name: &str) -> Result<PathBuf> {
    match fs::metadata(to) {
        Ok(found) if found.is_dir() => Ok(to.join(name)),
        Ok(_) => Ok(to.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(to.to_owned()),
        Err(error) => Err(error).with_context(|| here(to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_lies_hidden_in_the_same_directory() {
        let path = beside(Path::new("/tmp/a")).unwrap();
        assert_eq!(path.parent(), Some(Path::new("/tmp")));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        assert!(
            name.starts_with(".a.") && name.ends_with(".partial"),
            "{name}"
        );
        assert!(beside_there("b/c").starts_with("b/.c."));
        assert!(beside_there("/c").starts_with("/.c."));
        assert!(beside_there("c").starts_with(".c."));
        assert!(beside(Path::new("/")).is_err());
        assert!(partial_name(&"ä".repeat(127)).len() <= 255);
    }
}
