//! `ginnel ssh-config`: what OpenSSH's client needs to know to reach every node by name.

use std::{os::unix::ffi::OsStrExt as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use model::{name::ZONE, ssh::CaKeys};

use crate::{
    cli::Global,
    enrolment::{SSH_CERTIFICATE, SSH_KEY, SSH_KNOWN_HOSTS, State},
    remedy::{Advise as _, advise},
    terminal,
};

/// Print a stanza for OpenSSH's configuration
///
/// With it, plain `ssh`, `scp`, `rsync` and `git` reach every node of the network by name: through
/// this program, with the certificate of `ginnel cert`, and without ever asking whether a host key
/// is right, because the organisation's authority vouches for each.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
Examples:
  ginnel ssh-config >> ~/.ssh/config
  ginnel cert && ssh root@db.internal";

/// Runs the command.
pub(crate) fn run(_: &Args, global: &Global) -> Result<ExitCode> {
    let state = State::locate(global)?;
    state.enrolment()?;
    let map = state.map()?.context("this node has no map yet")?;
    let authority = map.own_org().and_then(|org| org.ssh.as_ref());
    let authority = authority
        .context("SSH: the map names no authority")
        .remedy("start `ginnel up` once, or ask for a newer server")?;
    keep_known_hosts(&state, &authority.statement.keys)?;
    let program = std::env::current_exe().context("find this program")?;
    terminal::line(stanza(&program, &state)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the hosts' authority where the stanza says; called whenever the keys may have changed.
pub(crate) fn keep_known_hosts(state: &State, keys: &CaKeys) -> Result<()> {
    state.make_directory()?;
    let path = state.path(SSH_KNOWN_HOSTS);
    let lines: String = keys
        .host
        .iter()
        .map(|key| format!("@cert-authority *.{ZONE} {key}\n"))
        .collect();
    os::file::write_private(&path, lines.as_bytes())
        .with_context(|| format!("write `{}`", path.display()))
}

/// Writes the stanza. OpenSSH hands `%h` to a shell, and older versions do so whatever is in it, so
/// that a name which could end the quotes must not match (CVE-2023-51385).
fn stanza(program: &Path, state: &State) -> Result<String> {
    let path = |name| word(&state.path(name));
    Ok(format!(
        "Host *.{ZONE} \"!*'*\"\n    \
             ProxyCommand {program} --state {directory} dial -- '%h' %p\n    \
             IdentityFile {key}\n    \
             CertificateFile {certificate}\n    \
             UserKnownHostsFile {known_hosts}\n    \
             GlobalKnownHostsFile none\n    \
             HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com\n    \
             StrictHostKeyChecking yes\n    \
             CheckHostIP no\n",
        program = shell_word(program)?,
        directory = shell_word(state.directory())?,
        key = path(SSH_KEY)?,
        certificate = path(SSH_CERTIFICATE)?,
        known_hosts = path(SSH_KNOWN_HOSTS)?,
    ))
}

/// Writes a path as an argument of ssh_config(5): quoted, with `%` and `~` as themselves.
fn word(path: &Path) -> Result<String> {
    let text = plain(path)?;
    if text.contains("${") {
        return Err(unwritable(path, "`${` would be replaced by a variable"));
    }
    let mut word = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => word.extend(['\\', letter]),
            '%' => word.push_str("%%"),
            other => word.push(other),
        }
    }
    word.push('"');
    Ok(word)
}

/// Writes a path as a word of the shell that runs a `ProxyCommand`.
fn shell_word(path: &Path) -> Result<String> {
    let text = plain(path)?.replace('%', "%%").replace('\'', "'\\''");
    Ok(format!("'{text}'"))
}

fn plain(path: &Path) -> Result<&str> {
    let text = std::str::from_utf8(path.as_os_str().as_bytes());
    let text = text.map_err(|_| unwritable(path, "it is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(unwritable(path, "it holds control characters"));
    }
    Ok(text)
}

fn unwritable(path: &Path, reason: &str) -> anyhow::Error {
    let shown = path.to_string_lossy();
    let shown = shown.escape_debug();
    advise(
        format_args!("`{shown}` cannot stand in OpenSSH's configuration: {reason}"),
        "use another directory: --state DIR",
    )
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, process::Command};

    use super::*;

    const HOSTILE: &[&str] = &[
        "/home/a b",
        "/home/it's",
        "/home/\"q\"",
        "/home/$(touch pwned)",
        "/home/100%h",
        "/home/back\\slash",
        "/home/#x;y|z&",
        "/home/~root",
    ];

    #[test]
    fn what_cannot_be_quoted_is_refused() {
        for name in [b"/a\nHost *".as_slice(), b"/a\x1b", b"/a\xff", b"/${HOME}"] {
            let path = Path::new(OsStr::from_bytes(name));
            assert!(word(path).is_err(), "{path:?}");
        }
        assert!(shell_word(Path::new(OsStr::from_bytes(b"/a\nb"))).is_err());
    }

    #[test]
    fn a_shell_reads_a_word_back() {
        for name in HOSTILE {
            let word = shell_word(Path::new(name)).expect("it can be quoted");
            let word = word.replace("%%", "%");
            let line = format!("printf %s {word}");
            let output = Command::new("sh").args(["-c", &line]).output();
            let output = output.expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), *name);
        }
    }
}
