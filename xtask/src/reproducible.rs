//! Builds the release binary in two places and compares the results byte by byte.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{root, step};

/// Clones what is committed into two directories of different names, builds each, compares.
pub(crate) fn run() -> Result<()> {
    let base = root().join("target/reproducible");
    let binaries = [base.join("one"), base.join("the-other-place")].map(|place| build(&place));
    let [one, other] = binaries;
    let (one, other) = (one?, other?);
    ensure!(one == other, "the two builds of `ginnel` differ");
    step::say(&format!(
        "both builds of `ginnel` are the same {} bytes\n",
        one.len()
    ));
    Ok(())
}

fn build(place: &Path) -> Result<Vec<u8>> {
    let context = || format!("prepare `{}`", place.display());
    if place.exists() {
        fs::remove_dir_all(place).with_context(context)?;
    }
    let mut clone = Command::new("git");
    clone
        .args(["clone", "--quiet", "--no-hardlinks"])
        .arg(root())
        .arg(place);
    step::must(clone)?;
    let place = place.canonicalize().with_context(context)?;
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    // Paths of the builder would otherwise stand in panic messages and line tables. C code of
    // dependencies takes its paths from `CFLAGS`.
    let here = format!("{}=/ginnel", place.display());
    let cargo = format!("{}=/cargo", home.context("find the home of cargo")?);
    let flags = [&here, &cargo].map(|remap| format!("--remap-path-prefix={remap}"));
    let c_flags = [&here, &cargo].map(|remap| format!("-ffile-prefix-map={remap}"));
    let mut command = Command::new("cargo");
    command
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--package",
            "ginnel",
        ])
        .args(["--target-dir", "target"])
        .current_dir(&place)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS", c_flags.join(" "))
        .env("SOURCE_DATE_EPOCH", "0");
    let start = step::now();
    step::must(command)?;
    step::note(&format!(
        "built in `{}` in {:.0?}",
        place.display(),
        step::now() - start
    ));
    let binary = place.join("target/release/ginnel");
    fs::read(&binary).with_context(|| format!("read `{}`", binary.display()))
}
