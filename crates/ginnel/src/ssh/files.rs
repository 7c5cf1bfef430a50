//! Files at a node, by SFTP version 3 (draft-ietf-secsh-filexfer-02, OpenSSH PROTOCOL).

pub(super) mod progress;
pub(super) mod transfer;

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use russh_sftp::{
    client::{Config, RawSftpSession, error::Error},
    protocol::{FileAttributes, Packet, StatusCode},
};

use super::client::Connection;

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
            Err(error) => Err(error).with_context(|| there(path)),
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
        let answer = answer.with_context(|| there(path))?;
        let first = answer.files.into_iter().next();
        Ok(first.with_context(|| there(path))?.filename)
    }

    /// Lists a directory by name, without itself and its parent.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let handle = self.sftp.opendir(path).await;
        let handle = handle.with_context(|| there(path))?.handle;
        let mut entries = Vec::new();
        loop {
            let names = match self.sftp.readdir(handle.as_str()).await {
                Ok(names) => names.files,
                Err(error) if is(&error, StatusCode::Eof) => break,
                Err(error) => return Err(error).with_context(|| there(path)),
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
        self.sftp.close(handle).await.with_context(|| there(path))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Makes a directory.
    pub(super) async fn make_directory(&self, path: &str) -> Result<()> {
        let made = self.sftp.mkdir(path, FileAttributes::empty()).await;
        made.with_context(|| there(path))?;
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) async fn remove_directory(&self, path: &str) -> Result<()> {
        self.sftp.rmdir(path).await.with_context(|| there(path))?;
        Ok(())
    }

    /// Removes a file.
    pub(super) async fn remove(&self, path: &str) -> Result<()> {
        self.sftp.remove(path).await.with_context(|| there(path))?;
        Ok(())
    }

    /// Renames a file, which takes the place of one that has that name.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<()> {
        if !self.replaces {
            // Version 3 renames to a free name only.
            match self.sftp.remove(to).await {
                Ok(_) => {}
                Err(error) if is(&error, StatusCode::NoSuchFile) => {}
                Err(error) => return Err(error).with_context(|| there(to)),
            }
            let renamed = self.sftp.rename(from, to).await;
            renamed.with_context(|| there(to))?;
            return Ok(());
        }
        let mut names = Vec::new();
        for name in [from, to] {
            let length = u32::try_from(name.len()).context("the name is too long")?;
            names.extend(length.to_be_bytes());
            names.extend(name.bytes());
        }
        let answer = self.sftp.extended(POSIX_RENAME, names).await;
        let Packet::Status(status) = answer.with_context(|| there(to))? else {
            bail!("{}: the server's answer is none", there(to));
        };
        if status.status_code != StatusCode::Ok {
            return Err(Error::Status(status)).with_context(|| there(to));
        }
        Ok(())
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
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("b", "a"), "b/a");
    }
}
