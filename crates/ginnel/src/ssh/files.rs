//! Files at a node, by SFTP version 3 (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL).

pub(super) mod progress;
pub(super) mod transfer;

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use russh_sftp::{
    client::{Config, RawSftpSession, error::Error},
    protocol::{FileAttributes, Packet, StatusCode},
};

use super::client::Connection;
use crate::remedy::advise;

/// Names of one directory; one with more is refused rather than copied in part.
const NAMES_MAX: usize = 1_000_000;

/// How long one answer may take: what is on its way before it has to pass a slow line. That the
/// server is there at all is seen to by the connection.
const ANSWER_TIMEOUT_SECONDS: u64 = 300;

/// Bytes of one message: a server may answer with more than was asked for.
const PACKET_MAX: u32 = 256 * 1024 + 1_024;

const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// The files of an account at a node.
pub(super) struct Files {
    sftp: Arc<RawSftpSession>,
    /// Whether a file can take the place of another at once.
    replaces: bool,
}

/// One name of a directory.
pub(super) struct Entry {
    pub(super) name: String,
    /// As the server writes it for people, without control characters.
    pub(super) line: String,
    pub(super) attributes: FileAttributes,
}

impl Files {
    /// Opens the files of the account that `connection` has logged in as.
    pub(super) async fn open(connection: &Connection) -> Result<Self> {
        let stream = connection.subsystem("sftp").await?;
        let config = Config {
            max_packet_len: PACKET_MAX,
            request_timeout_secs: ANSWER_TIMEOUT_SECONDS,
            ..Config::default()
        };
        let sftp = RawSftpSession::new_with_config(stream, config);
        let version = sftp.init().await.context("SFTP: no answer")?;
        Ok(Self {
            sftp: Arc::new(sftp),
            replaces: version.extensions.contains_key(POSIX_RENAME),
        })
    }

    /// Returns what `path` is, following links; `None` if it is not there.
    pub(super) async fn attributes(&self, path: &str) -> Result<Option<FileAttributes>> {
        match self.sftp.stat(path).await {
            Ok(found) => Ok(Some(found.attrs)),
            Err(error) if is(&error, StatusCode::NoSuchFile) => Ok(None),
            Err(error) => Err(refused(error)).with_context(|| there(path)),
        }
    }

    /// Whether `path` is a directory.
    pub(super) async fn is_directory(&self, path: &str) -> Result<bool> {
        let found = self.attributes(path).await?;
        Ok(found.is_some_and(|attributes| attributes.is_dir()))
    }

    /// Returns `path` without links and dots.
    pub(super) async fn real(&self, path: &str) -> Result<String> {
        let answer = self.sftp.realpath(path).await;
        let answer = answer.map_err(refused).with_context(|| there(path))?;
        let first = answer.files.into_iter().next();
        Ok(first.with_context(|| there(path))?.filename)
    }

    /// Lists a directory by name, without itself and its parent.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let opened = self.sftp.opendir(path).await.map_err(refused);
        let handle = opened.with_context(|| there(path))?.handle;
        let mut entries = Vec::new();
        loop {
            let names = match self.sftp.readdir(handle.as_str()).await {
                Ok(names) => names.files,
                Err(error) if is(&error, StatusCode::Eof) => break,
                Err(error) => return Err(refused(error)).with_context(|| there(path)),
            };
            // Some servers say so instead of "end of file".
            if names.is_empty() {
                break;
            }
            for file in names {
                if file.filename == "." || file.filename == ".." {
                    continue;
                }
                ensure!(entries.len() < NAMES_MAX, "{}: too many names", there(path));
                entries.push(Entry {
                    name: component(&file.filename)?.to_owned(),
                    line: file.longname.escape_debug().to_string(),
                    attributes: file.attrs,
                });
            }
        }
        let closed = self.sftp.close(handle).await.map_err(refused);
        closed.with_context(|| there(path))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Makes a directory.
    pub(super) async fn make_directory(&self, path: &str) -> Result<()> {
        match self.sftp.mkdir(path, FileAttributes::empty()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(not_made(error, path)),
        }
    }

    /// Removes an empty directory.
    pub(super) async fn remove_directory(&self, path: &str) -> Result<()> {
        let removed = self.sftp.rmdir(path).await.map_err(refused);
        removed.with_context(|| there(path))?;
        Ok(())
    }

    /// Removes a file.
    pub(super) async fn remove(&self, path: &str) -> Result<()> {
        let removed = self.sftp.remove(path).await.map_err(refused);
        removed.with_context(|| there(path))?;
        Ok(())
    }

    /// Renames a file, which takes the place of one that has that name.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let renamed = self.replace(from, to).await.map_err(refused);
        renamed.with_context(|| format!("rename {} to `{}`", there(from), to.escape_debug()))
    }

    /// The same, for whoever says what it is about.
    async fn replace(&self, from: &str, to: &str) -> Result<(), Error> {
        if !self.replaces {
            // Version 3 renames to a free name only.
            match self.sftp.remove(to).await {
                Ok(_) => {}
                Err(error) if is(&error, StatusCode::NoSuchFile) => {}
                Err(error) => return Err(error),
            }
            self.sftp.rename(from, to).await?;
            return Ok(());
        }
        let mut names = Vec::new();
        for name in [from, to] {
            let length = u32::try_from(name.len());
            let length = length.map_err(|_| Error::Limited("the name is too long".to_owned()))?;
            names.extend(length.to_be_bytes());
            names.extend(name.bytes());
        }
        let answer = self.sftp.extended(POSIX_RENAME, names).await?;
        let Packet::Status(status) = answer else {
            return Err(Error::UnexpectedPacket);
        };
        match status.status_code == StatusCode::Ok {
            true => Ok(()),
            false => Err(status.into()),
        }
    }
}

/// Returns `name` if it is one name within a directory. A server that sends another one wants to
/// write where nobody asked for it (CVE-2019-6111).
fn component(name: &str) -> Result<&str> {
    let is_one = !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
    ensure!(
        is_one,
        "SFTP: the server lists the name `{}`, which is none within a directory",
        name.escape_debug()
    );
    Ok(name)
}

fn is(error: &Error, code: StatusCode) -> bool {
    matches!(error, Error::Status(status) if status.status_code == code)
}

/// What a server answered instead of what it was asked for; its code and its words often say the
/// same, and both are its own.
fn refused(error: Error) -> anyhow::Error {
    let Error::Status(status) = &error else {
        return error.into();
    };
    if is(&error, StatusCode::NoSuchFile) {
        return anyhow!("no such file or directory");
    }
    if is(&error, StatusCode::PermissionDenied) {
        return anyhow!("permission denied");
    }
    let code = status.status_code.to_string();
    let words = status.error_message.escape_debug().to_string();
    if words.is_empty() || words == code {
        return anyhow!("the server refuses, and does not say why ({code})");
    }
    anyhow!("{words}")
}

/// Says why `path` could not be made: what is missing is the directory that it would be in.
fn not_made(error: Error, path: &str) -> anyhow::Error {
    match is(&error, StatusCode::NoSuchFile) {
        true => missing(&there(parent(path))),
        false => refused(error).context(there(path)),
    }
}

/// Says that a directory is missing in which something was to be made.
fn missing(directory: &str) -> anyhow::Error {
    advise(
        format!("the directory {directory} does not exist"),
        "make it first, or name another place",
    )
}

/// Returns the directory of `path`.
fn parent(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => ".",
    }
}

/// What an error is about.
fn there(path: &str) -> String {
    format!("`{}` at the node", path.escape_debug())
}

/// Appends `name` to the directory `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    match path {
        "" | "." => name.to_owned(),
        path if path.ends_with('/') => format!("{path}{name}"),
        path => format!("{path}/{name}"),
    }
}

/// Returns the last name of `path`; `None` for a root, `.` and `..`.
pub(super) fn last_name(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next()?;
    component(last).ok()
}

#[cfg(test)]
mod tests {
    use russh_sftp::protocol::Status;

    use super::*;

    #[test]
    fn a_server_names_files_of_the_directory_only() {
        for name in ["a", "a b", "...", "-rf", "\u{1b}[2J", "ä"] {
            assert!(component(name).is_ok(), "{name:?}");
        }
        for name in ["", ".", "..", "/etc/passwd", "../a", "a/b", "a\0"] {
            assert!(component(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_path_has_a_last_name_unless_it_is_a_place_of_its_own() {
        for (path, name) in [
            ("a", Some("a")),
            ("/a/b/", Some("b")),
            ("/", None),
            ("", None),
            ("..", None),
            ("a/.", None),
        ] {
            assert_eq!(last_name(path), name, "{path}");
        }
        for (path, directory) in [("a", "."), ("/a", "/"), ("a/b", "a"), ("/a/b/", "/a")] {
            assert_eq!(parent(path), directory, "{path}");
        }
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("b", "a"), "b/a");
    }

    #[test]
    fn a_refusal_says_once_what_it_is_and_nothing_to_the_terminal() {
        let status = |status_code, message: &str| {
            Error::Status(Status {
                id: 1,
                status_code,
                error_message: message.to_owned(),
                language_tag: String::new(),
            })
        };
        for (code, message, said) in [
            (
                StatusCode::NoSuchFile,
                "No such file",
                "no such file or directory",
            ),
            (StatusCode::PermissionDenied, "Denied", "permission denied"),
            (
                StatusCode::Failure,
                "Failure",
                "the server refuses, and does not say why (Failure)",
            ),
            (StatusCode::Failure, "full\u{1b}[2J", "full\\u{1b}[2J"),
        ] {
            assert_eq!(refused(status(code, message)).to_string(), said);
        }
        let error = not_made(status(StatusCode::NoSuchFile, ""), "a/b/c");
        assert!(
            error
                .to_string()
                .contains("the directory `a/b` at the node")
        );
    }
}
