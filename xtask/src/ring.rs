//! The rings of tests, from one value in virtual time to foreign programs in namespaces.

use std::{collections::BTreeSet, fs, num::NonZero, path::Path, process::Command, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    deny, install,
    postgres::Cluster,
    root,
    step::{self, Steps},
};

/// A ring, in the order in which the rings run: what is cheap and likely to fail comes first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ring {
    Format,
    Clippy,
    Tidy,
    Unit,
    Flood,
    Fuzz,
    Control,
    Postgres,
    Cli,
    Netns,
    Interop,
    Soak,
}

impl Ring {
    const ALL: [Self; 12] = [
        Self::Format,
        Self::Clippy,
        Self::Tidy,
        Self::Unit,
        Self::Flood,
        Self::Fuzz,
        Self::Control,
        Self::Postgres,
        Self::Cli,
        Self::Netns,
        Self::Interop,
        Self::Soak,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Format => "fmt",
            Self::Clippy => "clippy",
            Self::Tidy => "tidy",
            Self::Unit => "unit",
            Self::Flood => "flood",
            Self::Fuzz => "fuzz",
            Self::Control => "control",
            Self::Postgres => "postgres",
            Self::Cli => "cli",
            Self::Netns => "netns",
            Self::Interop => "interop",
            Self::Soak => "soak",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::Format => "formatting is canonical",
            Self::Clippy => "no warning of rustc or clippy",
            Self::Tidy => "rules of the repository that no compiler checks",
            Self::Unit => "values, pairs of state machines, simulated worlds",
            Self::Flood => "20 million malformed packets change nothing but counters",
            Self::Fuzz => "the fuzz corpus replays",
            Self::Control => "requests against the real router and store",
            Self::Postgres => "the same requests with PostgreSQL below",
            Self::Cli => "the binary as a person meets it",
            Self::Netns => "real kernel, TUN and namespaces; needs root",
            Self::Soak => "TCP against the kernel over a bad link, SOAK seconds; needs root",
            Self::Interop => "wireguard-go, boringtun, wg, OpenSSH, dig, tshark, psql, curl",
        }
    }

    /// Returns what to run; `None` when the repository has no such test.
    fn command(self, targets: &[Target]) -> Option<Command> {
        match self {
            Self::Format => Some(step::cargo(&["fmt", "--all", "--check"])),
            Self::Clippy => {
                let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--"];
                let mut command = step::cargo(&lints);
                command.args(["-D", "warnings"]);
                Some(command)
            }
            Self::Fuzz => root().join("fuzz/Cargo.toml").exists().then(|| {
                let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
                let mut command = step::cargo(&["test", "--no-default-features"]);
                command.args(manifest).args(["--target-dir", "target/fuzz"]);
                command
            }),
            Self::Soak => {
                let seconds = std::env::var("SOAK").unwrap_or_else(|_| "60".to_owned());
                // In the profile of the tests, where the stack is optimised too: no second build.
                let mut command = cargo_test();
                command.args(["--bench", "tcp", "--", "--soak", &seconds]);
                Some(command)
            }
            Self::Unit => {
                let mut command = cargo_test();
                command.args(["--lib", "--bins", "--examples"]);
                add(&mut command, self, targets);
                Some(command)
            }
            Self::Postgres => {
                let mut command = cargo_test();
                add(&mut command, Self::Control, targets).then_some(command)
            }
            Self::Tidy | Self::Flood | Self::Control | Self::Cli | Self::Netns | Self::Interop => {
                let mut command = cargo_test();
                add(&mut command, self, targets).then_some(command)
            }
        }
    }

    /// Whether its tests wait for processes and deadlines more than they compute.
    fn waits(self) -> bool {
        match self {
            Self::Control | Self::Postgres | Self::Cli | Self::Netns | Self::Interop => true,
            Self::Format
            | Self::Clippy
            | Self::Tidy
            | Self::Unit
            | Self::Flood
            | Self::Fuzz
            | Self::Soak => false,
        }
    }

    /// Tells which ring an integration test belongs to.
    fn of(target: &Target) -> Self {
        match (target.package.as_str(), target.name.as_str()) {
            ("xtask", _) => Self::Tidy,
            ("control", _) => Self::Control,
            ("sim", "flood") => Self::Flood,
            ("ginnel", "netns") => Self::Netns,
            ("ginnel", "interop") => Self::Interop,
            ("ginnel", _) => Self::Cli,
            _ => Self::Unit,
        }
    }
}

/// Runs the named rings, or all.
pub(crate) fn test(names: &[&str], install: bool) -> Result<()> {
    let rings = rings(names)?;
    if install && rings.iter().any(|ring| needs_programs(*ring)) {
        install::tests()?;
    }
    run(&rings, false)
}

/// Runs all rings where nothing may be skipped, and cargo-deny.
pub(crate) fn ci() -> Result<()> {
    install::tests()?;
    install::cargo_deny()?;
    run(&Ring::ALL, true)
}

/// Returns one line for each ring.
pub(crate) fn help() -> String {
    let line = |ring: &Ring| format!("  {:<10}{}\n", ring.name(), ring.purpose());
    Ring::ALL.iter().map(line).collect()
}

fn run(rings: &[Ring], all: bool) -> Result<()> {
    let targets = targets()?;
    let mut steps = Steps::default();
    if all {
        steps.run("deny", deny::command())?;
    }
    for ring in rings {
        match ring.command(&targets) {
            Some(mut command) => {
                let needed = *ring == Ring::Postgres;
                let cluster = if needed { Cluster::start()? } else { None };
                match &cluster {
                    Some(cluster) => {
                        command.env("CONTROL_POSTGRES", cluster.url());
                    }
                    None if needed => {
                        skip(ring.name(), "PostgreSQL")?;
                        continue;
                    }
                    None => {}
                }
                if ring.waits() && std::env::var_os("RUST_TEST_THREADS").is_none() {
                    let cores = thread::available_parallelism().map_or(1, NonZero::get);
                    command.env("RUST_TEST_THREADS", (2 * cores).to_string());
                }
                command.env("PATH", install::path());
                command.env("NODE_PATH", install::modules());
                if all {
                    command.env("NETNS", "required").env("INTEROP", "required");
                    command.env("SEEDS", "10000");
                }
                steps.run(ring.name(), command)?;
            }
            None => step::note(&format!("== {}: no such test yet", ring.name())),
        }
    }
    steps.finish()
}

/// Says what is not installed, unless nothing may be skipped.
fn skip(ring: &str, what: &str) -> Result<()> {
    let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
    ensure!(!required, "{ring} needs {what}, which is not installed");
    step::note(&format!("== {ring}: SKIPPED, no {what}"));
    Ok(())
}

fn rings(names: &[&str]) -> Result<Vec<Ring>> {
    if names.is_empty() {
        return Ok(Ring::ALL.to_vec());
    }
    let find = |name: &&str| match Ring::ALL.into_iter().find(|ring| ring.name() == *name) {
        Some(ring) => Ok(ring),
        None => bail!("`{name}` is not a ring; the rings are\n{}", help()),
    };
    names.iter().map(find).collect()
}

fn needs_programs(ring: Ring) -> bool {
    match ring {
        Ring::Control | Ring::Postgres | Ring::Cli | Ring::Netns | Ring::Interop | Ring::Soak => {
            true
        }
        Ring::Format | Ring::Clippy | Ring::Tidy | Ring::Unit | Ring::Flood | Ring::Fuzz => false,
    }
}

/// The whole workspace is always selected, so that every ring has the same features of the
/// dependencies and nothing is built twice.
fn cargo_test() -> Command {
    step::cargo(&["test", "--workspace", "--locked", "--no-fail-fast"])
}

/// Adds the targets of `ring` to `command` and tells whether there are any.
fn add(command: &mut Command, ring: Ring, targets: &[Target]) -> bool {
    let own = targets.iter().filter(|target| Ring::of(target) == ring);
    let names: BTreeSet<_> = own.map(|target| target.name.as_str()).collect();
    for name in &names {
        command.args(["--test", *name]);
    }
    !names.is_empty()
}

/// An integration test: a file `tests/NAME.rs` or a directory `tests/NAME/main.rs`.
#[derive(Debug)]
struct Target {
    package: String,
    name: String,
}

fn targets() -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let mut packages = entries(&root().join("crates"))?;
    packages.push(root().join("xtask"));
    for package in packages {
        let tests = package.join("tests");
        if !tests.is_dir() {
            continue;
        }
        for path in entries(&tests)? {
            let is_target = path.extension().is_some_and(|extension| extension == "rs")
                || path.join("main.rs").is_file();
            let name = path.file_stem().and_then(|name| name.to_str());
            let package = package.file_name().and_then(|name| name.to_str());
            if let (true, Some(name), Some(package)) = (is_target, name, package) {
                targets.push(Target {
                    package: package.to_owned(),
                    name: name.to_owned(),
                });
            }
        }
    }
    Ok(targets)
}

fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let context = || format!("list `{}`", directory.display());
    let entries = fs::read_dir(directory).with_context(context)?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths
        .map_err(|error: std::io::Error| error)
        .with_context(context)?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ring_is_found_by_its_name() {
        for ring in Ring::ALL {
            assert_eq!(rings(&[ring.name()]).unwrap(), [ring]);
        }
        assert!(rings(&["unti"]).is_err());
    }

    #[test]
    fn the_tidy_test_is_found() {
        let targets = targets().unwrap();
        assert!(targets.iter().any(|target| Ring::of(target) == Ring::Tidy));
    }
}
