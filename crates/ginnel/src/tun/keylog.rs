//! The file that `ginnel tun --key-log` writes for Wireshark.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use wireguard::KeyLog;

use crate::remedy::Advise as _;

/// Appends what the device tells; ends at the first failure, which is told once.
pub(crate) struct Writer {
    file: Option<File>,
    path: PathBuf,
    /// At most `BYTES_MAX` by this process, then nothing more is written.
    written: usize,
}

impl Writer {
    /// Opens the file, made new or as it is, for its owner alone.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let opened = options.append(true).create(true).mode(0o600).open(path);
        let file = opened
            .and_then(|file| {
                // The mode above counts only for a file that is new.
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                Ok(file)
            })
            .with_context(|| format!("open key log `{}`", path.display()))
            .remedy("name a file that this user may write")?;
        tracing::warn!(
            "{} gets the private key and the keys of every session",
            path.display()
        );
        Ok(Self {
            file: Some(file),
            path: path.to_owned(),
            written: 0,
        })
    }

    /// Appends the keys of one handshake.
    pub(crate) fn append(&mut self, log: &KeyLog) {
        let Some(file) = &mut self.file else { return };
        let text = log.expose();
        let path = self.path.display();
        if self.written + text.len() > BYTES_MAX {
            tracing::warn!("key log `{path}` is full and ends here");
            self.file = None;
        } else if let Err(error) = file.write_all(text.as_bytes()) {
            tracing::warn!("key log `{path}` ends here: {error}");
            self.file = None;
        } else {
            self.written += text.len();
        }
    }
}

/// A quarter of a million handshakes: a forgotten log does not fill the disk.
const BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_could_read_is_closed_to_them_and_keeps_what_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        fs::write(&path, "before\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(Writer::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\n");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(Writer::open(directory.path()).is_err());
    }
}
