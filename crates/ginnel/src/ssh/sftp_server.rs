//! `ginnel sftp-server`: SFTP version 3 on stdin and stdout, with the rights of whoever runs it
//! (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL).

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, FileTimes, Metadata, OpenOptions, ReadDir},
    io,
    os::unix::fs::{
        DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _,
        PermissionsExt as _,
    },
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    task::{Context, Poll},
    time::{Duration, UNIX_EPOCH},
};

use russh_sftp::{
    protocol::{
        Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
        StatusCode, Version,
    },
    server::{Config, Handler, StatusReply},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, Stdin, Stdout},
    sync::oneshot,
};

/// Serve files on stdin and stdout
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Open files and directories.
const HANDLES_MAX: usize = 256;

/// Bytes of one answer.
const READ_MAX: u32 = 255 * 1024;

/// Bytes of one request: a write of 256 KiB and what stands around it.
const PACKET_MAX: u32 = 256 * 1024 + 1_024;

/// Names in one answer.
const NAMES_MAX: usize = 128;

const POSIX_RENAME: &str = "posix-rename@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";

/// Serves until stdin ends.
pub(crate) async fn run(_: Args) -> anyhow::Result<ExitCode> {
    let (ended, end) = oneshot::channel();
    let stream = Standard {
        stdin: tokio::io::stdin(),
        stdout: tokio::io::stdout(),
        _ended: ended,
    };
    let config = Config {
        max_client_packet_len: PACKET_MAX,
    };
    russh_sftp::server::run_with_config(stream, Files::default(), config).await;
    // It is dropped with the stream.
    drop(end.await);
    Ok(ExitCode::SUCCESS)
}

/// Standard input and output as one stream. Whatever fails is its end.
struct Standard {
    stdin: Stdin,
    stdout: Stdout,
    _ended: oneshot::Sender<()>,
}

impl AsyncRead for Standard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin)
            .poll_read(context, buffer)
            .map(end)
    }
}

impl AsyncWrite for Standard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdout)
            .poll_write(context, bytes)
            .map(end)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_flush(context).map(end)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_shutdown(context).map(end)
    }
}

/// The server goes on after every other error, for ever.
fn end<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

/// What is open.
#[derive(Default)]
struct Files {
    next: u64,
    /// Bounded by `HANDLES_MAX`.
    open: BTreeMap<String, Open>,
}

enum Open {
    File(File),
    Directory(PathBuf, ReadDir),
}

impl Files {
    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, StatusReply> {
        if self.open.len() >= HANDLES_MAX {
            return Err(StatusCode::Failure.with_message("too many files are open"));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<&File, StatusReply> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            Some(Open::Directory(..)) | None => Err(no_handle()),
        }
    }
}

impl Handler for Files {
    type Error = StatusReply;

    fn unimplemented(&self) -> Self::Error {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _: u32, _: HashMap<String, String>) -> Result<Version, Self::Error> {
        let mut version = Version::new();
        for extension in [POSIX_RENAME, HARDLINK, FSYNC] {
            version.extensions.insert(extension.into(), "1".into());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        name: String,
        flags: OpenFlags,
        attributes: FileAttributes,
    ) -> Result<Handle, Self::Error> {
        let mut options = OpenOptions::from(flags);
        if let Some(mode) = attributes.permissions {
            options.mode(mode & 0o7777);
        }
        let file = options.open(name).map_err(status)?;
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Self::Error> {
        self.open.remove(&handle).ok_or_else(no_handle)?;
        done(id, Ok(()))
    }

    async fn read(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        length: u32,
    ) -> Result<Data, Self::Error> {
        let file = self.file(&handle)?;
        let length = usize::try_from(length.min(READ_MAX)).expect("fits 32 bits");
        let mut data = vec![0; length];
        let read = file.read_at(&mut data, offset).map_err(status)?;
        if read == 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(read);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, Self::Error> {
        done(id, self.file(&handle)?.write_all_at(&data, offset))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        attributes(id, fs::symlink_metadata(path))
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Self::Error> {
        attributes(id, fs::metadata(path))
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Self::Error> {
        attributes(id, self.file(&handle)?.metadata())
    }

    async fn setstat(
        &mut self,
        id: u32,
        path: String,
        wanted: FileAttributes,
    ) -> Result<Status, Self::Error> {
        done(id, change(Path::new(&path), &wanted))
    }

    async fn fsetstat(
        &mut self,
        id: u32,
        handle: String,
        wanted: FileAttributes,
    ) -> Result<Status, Self::Error> {
        let file = self.file(&handle)?;
        let changed = wanted.size.map_or(Ok(()), |size| file.set_len(size));
        done(id, changed.and_then(|()| change_file(file, &wanted)))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Self::Error> {
        let entries = fs::read_dir(&path).map_err(status)?;
        self.keep(id, Open::Directory(path.into(), entries))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Self::Error> {
        let Some(Open::Directory(path, entries)) = self.open.get_mut(&handle) else {
            return Err(no_handle());
        };
        let mut files = Vec::new();
        for entry in entries.take(NAMES_MAX) {
            let name = entry.map_err(status)?.file_name();
            // It may have been removed just now.
            if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                files.push(Entry::new(name.to_string_lossy(), attributes_of(&metadata)));
            }
        }
        if files.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        done(id, fs::remove_file(path))
    }

    async fn mkdir(
        &mut self,
        id: u32,
        path: String,
        wanted: FileAttributes,
    ) -> Result<Status, Self::Error> {
        let mode = wanted.permissions.map_or(0o777, |mode| mode & 0o7777);
        done(id, fs::DirBuilder::new().mode(mode).create(path))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Self::Error> {
        done(id, fs::remove_dir(path))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        let path = if path.is_empty() { "." } else { path.as_str() };
        let real = fs::canonicalize(path).or_else(|error| {
            // The last part may be what is about to be made.
            let path = Path::new(path);
            let (parent, name) = path.parent().zip(path.file_name()).ok_or(error)?;
            let here = Path::new(".");
            let parent = if parent.as_os_str().is_empty() {
                here
            } else {
                parent
            };
            Ok(fs::canonicalize(parent)?.join(name))
        });
        named(id, real)
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Self::Error> {
        named(id, fs::read_link(path))
    }

    // OpenSSH sends the target first, against the draft (PROTOCOL, 4.1).
    async fn symlink(
        &mut self,
        id: u32,
        target: String,
        link: String,
    ) -> Result<Status, Self::Error> {
        done(id, std::os::unix::fs::symlink(target, link))
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Self::Error> {
        if fs::symlink_metadata(&to).is_ok() {
            return Err(StatusCode::Failure.with_message("the new name exists"));
        }
        done(id, fs::rename(from, to))
    }

    async fn extended(
        &mut self,
        id: u32,
        request: String,
        data: Vec<u8>,
    ) -> Result<Packet, Self::Error> {
        let mut words = &data[..];
        let done = match request.as_str() {
            POSIX_RENAME => {
                let (from, to) = (word(&mut words)?, word(&mut words)?);
                done(id, fs::rename(from, to))
            }
            HARDLINK => {
                let (from, to) = (word(&mut words)?, word(&mut words)?);
                done(id, fs::hard_link(from, to))
            }
            FSYNC => done(id, self.file(&word(&mut words)?)?.sync_all()),
            _ => Err(StatusCode::OpUnsupported.into()),
        };
        done.map(Packet::Status)
    }
}

/// Takes a string with its length in front.
fn word(bytes: &mut &[u8]) -> Result<String, StatusReply> {
    let bad = || StatusReply::new(StatusCode::BadMessage);
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| bad())?;
    let (text, rest) = rest.split_at_checked(length).ok_or_else(bad)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| bad())
}

fn change(path: &Path, wanted: &FileAttributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        std::os::unix::fs::chown(path, wanted.uid, wanted.gid)?;
    }
    if wanted.atime.is_some() || wanted.mtime.is_some() {
        // Its owner may do so whether the file may be written or not.
        File::open(path)?.set_times(times(wanted))?;
    }
    match wanted.permissions {
        Some(mode) => fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)),
        None => Ok(()),
    }
}

fn change_file(file: &File, wanted: &FileAttributes) -> io::Result<()> {
    if wanted.uid.is_some() || wanted.gid.is_some() {
        std::os::unix::fs::fchown(file, wanted.uid, wanted.gid)?;
    }
    if wanted.atime.is_some() || wanted.mtime.is_some() {
        file.set_times(times(wanted))?;
    }
    match wanted.permissions {
        Some(mode) => file.set_permissions(fs::Permissions::from_mode(mode & 0o7777)),
        None => Ok(()),
    }
}

fn times(wanted: &FileAttributes) -> FileTimes {
    let time = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
    let mut times = FileTimes::new();
    if let Some(seconds) = wanted.atime {
        times = times.set_accessed(time(seconds));
    }
    if let Some(seconds) = wanted.mtime {
        times = times.set_modified(time(seconds));
    }
    times
}

fn attributes(id: u32, metadata: io::Result<Metadata>) -> Result<Attrs, StatusReply> {
    let attrs = attributes_of(&metadata.map_err(status)?);
    Ok(Attrs { id, attrs })
}

fn attributes_of(metadata: &Metadata) -> FileAttributes {
    // Version 3 counts to 2106.
    let seconds = |time: i64| u32::try_from(time).unwrap_or(0);
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: Some(seconds(metadata.atime())),
        mtime: Some(seconds(metadata.mtime())),
        user: None,
        group: None,
    }
}

fn named(id: u32, path: io::Result<PathBuf>) -> Result<Name, StatusReply> {
    let path = path.map_err(status)?;
    let files = vec![Entry::dummy(path.to_string_lossy())];
    Ok(Name { id, files })
}

fn done(id: u32, result: io::Result<()>) -> Result<Status, StatusReply> {
    result.map_err(status)?;
    Ok(Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    })
}

fn no_handle() -> StatusReply {
    StatusCode::Failure.with_message("no such handle")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that `map_err` takes"
)]
fn status(error: io::Error) -> StatusReply {
    let code = if error.kind() == io::ErrorKind::NotFound {
        StatusCode::NoSuchFile
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        StatusCode::PermissionDenied
    } else {
        StatusCode::Failure
    };
    code.with_message(error.to_string())
}
