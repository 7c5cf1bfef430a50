//! `ginnel ssh-config`: what OpenSSH's client needs to know to reach every node by name.

use std::{os::unix::ffi::OsStrExt as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use model::{
    name::{ZONE, is_deceptive},
    ssh::CaKeys,
};

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
    // OpenSSH runs anywhere.
    let state = State::locate(global)?.absolute()?;
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
    if text.chars().any(is_deceptive) {
        return Err(unwritable(
            path,
            "it holds control characters, or marks that change the order of letters",
        ));
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
    use std::{
        ffi::OsStr,
        fs,
        os::unix::fs::PermissionsExt as _,
        process::{Command, Output, Stdio},
    };

    use super::*;

    /// Names of directories.
    const HOSTILE: &[&str] = &[
        "a b",
        "it's",
        "\"q\"",
        "$(touch pwned)",
        "`touch pwned`",
        "100%h %% %",
        "back\\slash\\\\",
        "#x;y|z&",
        "~root",
        "-rf",
        "-oProxyCommand=x",
        "é漢😀",
        "[a]*?!",
        "a=b, c",
        "xn--bcher-kva",
        "' \" ' \\\"",
    ];

    #[test]
    fn what_cannot_be_quoted_is_refused() {
        for name in [
            b"/a\nHost *".as_slice(),
            b"/a\x1b",
            b"/a\xff",
            b"/${HOME}",
            "/a\u{202e}b".as_bytes(),
            "/a\u{9b}2J".as_bytes(),
        ] {
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
            let line = format!("printf '<%s>' {word}");
            let output = Command::new("sh").args(["-c", &line]).output();
            let output = output.expect("sh runs");
            assert_eq!(text(&output.stdout), format!("<{name}>"));
        }
    }

    #[test]
    fn openssh_reads_every_path_back_and_runs_the_program_with_each_word_as_it_is() {
        if Command::new("ssh").arg("-V").output().is_err() {
            assert!(std::env::var("INTEROP").is_err(), "required, but no ssh");
            eprintln!("SKIPPED: no ssh");
            return;
        }
        for name in HOSTILE.iter().copied().chain([&*"a".repeat(255)]) {
            let place = Place::new(name);
            let shown = place.ssh(&["-G", "db.internal"]);
            assert!(shown.status.success(), "{name}: {}", text(&shown.stderr));
            let shown = text(&shown.stdout);
            for (key, file, percent) in [
                // What OpenSSH still replaces when it opens the file.
                ("identityfile", SSH_KEY, "%%"),
                ("certificatefile", SSH_CERTIFICATE, "%%"),
                ("userknownhostsfile", SSH_KNOWN_HOSTS, "%"),
            ] {
                let path = place.state.join(file).display().to_string();
                let expected = format!("{key} {}", path.replace('%', percent));
                assert!(shown.lines().any(|line| line == expected), "{shown}");
            }
            place.ssh(&["db.internal"]);
            assert_eq!(place.words(), place.dialled("db.internal"), "{name}");
        }
    }

    #[test]
    fn a_hostile_host_is_one_word_or_nothing_runs() {
        if Command::new("ssh").arg("-V").output().is_err() {
            return;
        }
        let long = format!("{}.internal", "a".repeat(255));
        for host in [
            "$(touch pwned).internal",
            "`touch pwned`.internal",
            "a';touch pwned;'.internal",
            "a\";touch pwned;\".internal",
            "a\ntouch pwned\n.internal",
            "a%h%%.internal",
            "a b.internal",
            "\u{1b}[2J\u{202e}.internal",
            "xn--80ak6aa92e.internal",
            &long,
        ] {
            let place = Place::new("state");
            place.ssh(&["--", host]);
            let words = place.words();
            assert!(
                words.is_empty() || words == place.dialled(host),
                "{words:?}"
            );
            let made = fs::read_dir(place.directory.path()).expect("it is there");
            assert_eq!(made.count(), 2 + usize::from(!words.is_empty()), "{host:?}");
        }
    }

    /// A state directory of some name, a program there that writes its words down, and the stanza.
    struct Place {
        directory: tempfile::TempDir,
        state: std::path::PathBuf,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let directory = tempfile::tempdir().expect("a new directory");
            let path = directory.path().canonicalize().expect("it is there");
            let state = path.join(name);
            fs::create_dir(&state).expect("a new directory");
            let program = state.join("it's $(a) program");
            let words = directory.path().join("words");
            let script = format!("#!/bin/sh\nprintf '%s\\0' \"$@\" > {}\n", words.display());
            fs::write(&program, script).expect("a new file");
            let mode = fs::Permissions::from_mode(0o700);
            fs::set_permissions(&program, mode).expect("our file");
            let stanza = stanza(&program, &State::at(&state)).expect("it can be quoted");
            fs::write(directory.path().join("config"), stanza).expect("a new file");
            Self { directory, state }
        }

        fn ssh(&self, line: &[&str]) -> Output {
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", "config"]).args(line).stdin(Stdio::null());
            ssh.env("SHELL", "/bin/sh")
                .current_dir(self.directory.path());
            ssh.output().expect("ssh runs")
        }

        /// What the program was given; nothing if it did not run.
        fn words(&self) -> Vec<String> {
            let written = fs::read(self.directory.path().join("words")).unwrap_or_default();
            let words = written.split_inclusive(|byte| *byte == 0);
            words.map(|word| text(&word[..word.len() - 1])).collect()
        }

        fn dialled(&self, host: &str) -> Vec<String> {
            let state = self.state.display().to_string();
            let host = host.to_lowercase();
            ["--state", &state, "dial", "--", &host, "22"]
                .map(str::to_owned)
                .into()
        }
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }
}
