//! Where this user's state and run-time files live.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    cli::Global,
    remedy::{Advise as _, advise},
};

/// Returns the directory of the node's state; it may not exist yet.
pub(crate) fn directory(global: &Global) -> anyhow::Result<PathBuf> {
    if let Some(state) = &global.state {
        return Ok(state.clone());
    }
    if os::process::euid() == 0 {
        return Ok("/var/lib/ginnel".into());
    }
    if let Some(base) = directory_in_environment("XDG_STATE_HOME") {
        return Ok(base.join("ginnel"));
    }
    if let Some(home) = directory_in_environment("HOME") {
        return Ok(home.join(".local/state/ginnel"));
    }
    Err(advise(
        "find the state directory: neither XDG_STATE_HOME nor HOME is set",
        "name it: --state DIR or GINNEL_STATE=DIR",
    ))
}

/// Returns the directory for sockets, made if needed, for this user alone.
pub(crate) fn run_directory(global: &Global) -> anyhow::Result<PathBuf> {
    let directory = match directory_in_environment("XDG_RUNTIME_DIR") {
        Some(base) if global.state.is_none() => base.join("ginnel"),
        Some(_) | None => directory(global)?.join("run"),
    };
    make_private(&directory)
        .with_context(|| format!("make `{}`", directory.display()))
        .remedy("name a directory that you may write to: --state DIR or XDG_RUNTIME_DIR=DIR")?;
    Ok(directory)
}

/// Makes a directory with mode 0700 that nobody else can have prepared.
fn make_private(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != os::process::euid() {
        return Err(io::Error::other("it belongs to another user or is a link").into());
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Relative paths are ignored, as the XDG specification asks.
fn directory_in_environment(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name)?);
    path.is_absolute().then_some(path)
}
