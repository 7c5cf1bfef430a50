//! Runs coverage-guided fuzzing, one target after another.

use anyhow::{Context, Result, bail, ensure};

use crate::{install, root, step};

/// How long each target runs unless told otherwise.
const SECONDS: u32 = 60;

/// Runs the named targets, or all; what they find stays in `fuzz/corpus` and `fuzz/artifacts`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    ensure!(
        install::is_in_path("cargo-fuzz"),
        "cargo-fuzz is not installed; build it with `cargo install cargo-fuzz --locked`"
    );
    let (names, seconds) = parse(arguments)?;
    let all = targets()?;
    for name in &names {
        ensure!(
            all.iter().any(|target| target == name),
            "`{name}` is not one of {all:?}"
        );
    }
    for target in all
        .iter()
        .filter(|target| names.is_empty() || names.contains(&target.as_str()))
    {
        step::note(&format!("\n== fuzz {target} for {seconds} s"));
        let mut command = step::cargo(&["fuzz", "run", target]);
        // The pinned toolchain of the workspace is stable; libFuzzer needs nightly.
        command
            .env("RUSTUP_TOOLCHAIN", "nightly")
            .env("PATH", install::path());
        command.args(["--", "-print_final_stats=1", "-max_len=4096"]);
        command.arg(format!("-max_total_time={seconds}"));
        step::must(command)?;
    }
    Ok(())
}

fn parse<'a>(arguments: &[&'a str]) -> Result<(Vec<&'a str>, u32)> {
    let mut names = Vec::new();
    let mut seconds = SECONDS;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--seconds" => {
                let value = rest.next().context("`--seconds` takes a number")?;
                seconds = value.parse().with_context(|| format!("parse `{value}`"))?;
            }
            flag if flag.starts_with('-') => bail!("unexpected argument `{flag}`"),
            name => names.push(name),
        }
    }
    Ok((names, seconds))
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).context("list the fuzz targets")? {
        let path = entry.context("list the fuzz targets")?.path();
        names.extend(
            path.file_stem()
                .and_then(|name| name.to_str())
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}
