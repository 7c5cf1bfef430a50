//! Checks licences, banned crates and sources of every dependency with cargo-deny.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{install, step};

/// Runs the checks, and fetches first what they need if asked: cargo-deny, and the sources of all
/// dependencies, also of those that this platform never builds.
pub(crate) fn run(install: bool) -> Result<()> {
    if install {
        install::cargo_deny()?;
        step::must(step::cargo(&["fetch", "--locked", "--quiet"]))?;
    }
    ensure!(
        install::is_in_path("cargo-deny"),
        "cargo-deny is not installed; build it with `cargo xtask deny --install`"
    );
    step::must(command())
}

/// The command alone; the database of advisories is not asked, so that it works offline.
pub(crate) fn command() -> Command {
    let checks = [
        "deny",
        "--locked",
        "--offline",
        "check",
        "bans",
        "licenses",
        "sources",
    ];
    let mut command = step::cargo(&checks);
    command
        .arg("--hide-inclusion-graph")
        .env("PATH", install::path());
    command
}
