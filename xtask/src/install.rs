//! Installs the foreign programs that the tests talk to.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::step;

/// Debian packages, and what needs each.
const PACKAGES: &[&str] = &[
    // Peers of the tunnel, and `wg` and `wg-quick` that drive ours.
    "wireguard-tools",
    "wireguard-go",
    // Topologies: namespaces, links, filters, traffic, and what went over the wire.
    "iproute2",
    "iputils-ping",
    "iperf3",
    "nftables",
    "procps",
    "tcpdump",
    "tshark",
    "util-linux",
    // Clients and servers that go through the tunnel.
    "age",
    "ansible-core",
    "ca-certificates",
    "chromium",
    "chromium-driver",
    "curl",
    "dnsutils",
    "faketime",
    "git",
    "nginx-light",
    "nodejs",
    "npm",
    "openssh-client",
    "openssh-server",
    "postgresql",
    "prometheus",
    "python3",
    "python3-paramiko",
    "python3-venv",
    "rsync",
    "socat",
    "ssh-audit",
    "strace",
    "vim",
    "xauth",
    "xclip",
    "xvfb",
    // Counts instructions.
    "valgrind",
];

/// A peer that only crates.io has.
const BORINGTUN: &str = "0.7.1";
/// The identity provider of the tests, which npm has.
const OIDC_PROVIDER: &str = "9.13.3";
/// What asks every route of the API, which PyPI has.
const SCHEMATHESIS: &str = "4.32.5";
/// The version whose configuration `deny.toml` is.
const CARGO_DENY: &str = "0.20.2";

/// Installs what is missing, or says what to install when that takes root.
pub(crate) fn tests() -> Result<()> {
    let missing: Vec<_> = PACKAGES
        .iter()
        .copied()
        .filter(|name| !is_installed(name) && !is_node_own(name))
        .collect();
    if missing.is_empty() {
        return built();
    }
    if !is_root() || !is_in_path("apt-get") {
        let names = missing.join(" ");
        step::note(&format!("not installed, so some tests skip: {names}"));
        return Ok(());
    }
    step::note(&format!("installing {}", missing.join(" ")));
    apt_get(&["update", "-q"])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(missing);
    apt_get(&arguments)?;
    built()
}

/// Installs what Debian does not have.
fn built() -> Result<()> {
    program("boringtun-cli", BORINGTUN)?;
    module("oidc-provider", OIDC_PROVIDER)?;
    python_program("schemathesis", SCHEMATHESIS)
}

/// Installs cargo-deny.
pub(crate) fn cargo_deny() -> Result<()> {
    program("cargo-deny", CARGO_DENY)
}

/// Returns `PATH` with the programs that were built here in front.
pub(crate) fn path() -> String {
    let own = cache().join("bin");
    let path = env::var("PATH").unwrap_or_default();
    format!("{}:{path}", own.display())
}

/// Tells whether `program` can be run.
pub(crate) fn is_in_path(program: &str) -> bool {
    path()
        .split(':')
        .any(|directory| Path::new(directory).join(program).is_file())
}

/// Builds a program from crates.io once; the cache outlives the clone.
fn program(name: &str, version: &str) -> Result<()> {
    if is_in_path(name) {
        return Ok(());
    }
    let cache = cache();
    step::note(&format!(
        "building {name} {version} into {}",
        cache.display()
    ));
    let mut command = step::cargo(&["install", name, "--version", version, "--locked", "--quiet"]);
    command.arg("--root").arg(cache);
    step::must(command).with_context(|| format!("install {name}"))
}

/// Returns where modules of npm are.
pub(crate) fn modules() -> PathBuf {
    cache().join("npm/node_modules")
}

/// Installs a module of npm once, as [`program`] does.
fn module(name: &str, version: &str) -> Result<()> {
    if modules().join(name).is_dir() {
        return Ok(());
    }
    let folder = cache().join("npm");
    std::fs::create_dir_all(&folder).context("make a directory for npm")?;
    step::note(&format!(
        "installing {name} {version} into {}",
        folder.display()
    ));
    let mut command = Command::new("npm");
    command
        .args(["install", "--no-audit", "--no-fund", "--silent", "--prefix"])
        .arg(&folder)
        .arg(format!("{name}@{version}"))
        .stdout(Stdio::null());
    step::must(command).with_context(|| format!("install {name}"))
}

/// Installs a program of PyPI once, as [`program`] does. Its environment is its own, and of it only
/// the program comes into `PATH`.
fn python_program(name: &str, version: &str) -> Result<()> {
    if is_in_path(name) {
        return Ok(());
    }
    let environment = cache().join(name);
    step::note(&format!(
        "installing {name} {version} into {}",
        environment.display()
    ));
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "venv", "--clear"]).arg(&environment);
    step::must(command).context("make an environment for Python")?;
    let mut command = Command::new(environment.join("bin/pip"));
    command
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("{name}=={version}"));
    step::must(command).with_context(|| format!("install {name}"))?;
    let programs = cache().join("bin");
    std::fs::create_dir_all(&programs).context("make a directory for programs")?;
    let (from, to) = (environment.join("bin").join(name), programs.join(name));
    std::os::unix::fs::symlink(&from, &to).with_context(|| format!("link `{}`", to.display()))
}

fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let outside = base.or_else(home).map(|base| base.join("ginnel-ci"));
    let writable = outside.filter(|path| std::fs::create_dir_all(path).is_ok());
    writable.unwrap_or_else(|| crate::root().join("target/programs"))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null());
    step::must(command)
}

/// Some builds of Node.js bring npm along, and conflict with Debian's package of it.
fn is_node_own(package: &str) -> bool {
    package == "npm" && is_in_path(package)
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout == b"0\n")
}
