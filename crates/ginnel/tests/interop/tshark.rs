//! tshark and `ginnel replay` read what `ginnel tun --key-log` wrote.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{
    pair::Pair,
    world::{Program, SHORT, Space, file_with, find, inner, key_log, lacks, text, wg_line, within},
};

const OURS: Program = Program::GinnelWithKeyLog;

/// A capture of everything on the outer link of a namespace.
struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    fn start(space: &Space) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut dumpcap = space.command("dumpcap");
        dumpcap
            .args(["-q", "-i", &space.link, "-w"])
            .arg(file.path());
        let child = dumpcap.stderr(Stdio::null()).spawn().expect("it runs");
        let capture = Self { child, file };
        // It writes the file's header once it listens.
        within(SHORT, "the capture begins", || capture.length() > 0);
        capture
    }

    fn length(&self) -> u64 {
        fs::metadata(self.file.path()).map_or(0, |file| file.len())
    }

    fn end(&mut self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let interrupt = nix::sys::signal::Signal::SIGINT;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), interrupt).expect("our child");
        self.child.wait().expect("it ends");
    }

    /// Counts the frames that `filter` finds with the keys of a file.
    fn count(&self, keys: Option<&Path>, filter: &str) -> usize {
        let mut tshark = Command::new("tshark");
        tshark.arg("-n").arg("-r").arg(self.file.path());
        if let Some(keys) = keys {
            let option = format!("wg.keylog_file:{}", keys.display());
            tshark.args(["-o", &option]);
        }
        let output = tshark.args(["-Y", filter]).output().expect("tshark runs");
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).lines().count()
    }
}

impl Capture {
    /// Puts the keys of a file into the capture and has it told.
    fn replayed(&self, keys: &Path) -> Vec<serde_json::Value> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let secrets = format!("wg,{}", keys.display());
        let mut editcap = Command::new("editcap");
        editcap.args(["--inject-secrets", &secrets]);
        editcap.arg(self.file.path()).arg(file.path());
        let output = editcap.output().expect("it comes with tshark");
        assert!(output.status.success(), "{}", text(&output));
        let mut replay = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        replay.args(["replay", "--json"]).arg(file.path());
        let output = replay.output().expect("it runs");
        assert!(output.status.success(), "{}", text(&output));
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        let read = |line| serde_json::from_str(line).expect("JSON");
        lines.lines().map(read).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `rekeys` new sessions follow the first, each with its own keys.
fn check(rekeys: usize, preshared: bool) {
    if ["tshark", "dumpcap"]
        .iter()
        .any(|name| find(name).is_none())
    {
        return lacks("INTEROP", "`tshark` is not installed");
    }
    let key = wg_line(&["genpsk"], "");
    let Some(pair) = Pair::new(OURS, OURS, preshared.then_some(&key), false) else {
        return;
    };
    let [space, _] = &pair.world.spaces;
    let mut capture = Capture::start(space);
    for session in 0..=rekeys {
        if session > 0 {
            pair.ours.remove_peer(&pair.theirs);
            pair.ours
                .set_peer(&pair.theirs, 1, preshared.then_some(&key), false);
        }
        assert_eq!(space.ping(inner(1, false), 5), 5);
    }
    let sessions = rekeys + 1;
    // It writes what it has seen a little later.
    within(SHORT, "the last answer is in the file", || {
        capture.count(None, "wg.type == 4 && udp.length == 136") == 10 * sessions
    });
    capture.end();
    for tunnel in [&pair.ours, &pair.theirs] {
        let path = key_log(&tunnel.interface);
        let mode = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        // One echo request and one answer in a frame each, all of them under known keys.
        assert_eq!(capture.count(Some(&path), "wg && icmp"), 10 * sessions);
        let sealed = capture.count(None, "wg.type == 4");
        let opened = capture.count(Some(&path), "wg.type == 4 && (ip || ipv6 || wg.keepalive)");
        assert_eq!(opened, sealed);
        // The response carries the verdict on its handshake.
        assert_eq!(capture.count(Some(&path), "wg.handshake_ok == 1"), sessions);
        // The protocol itself says the same of what another program has captured.
        let told = capture.replayed(&path);
        let count = |start: &str| {
            let verdicts = told.iter().filter_map(|line| line["verdict"].as_str());
            verdicts
                .filter(|verdict| verdict.starts_with(start))
                .count()
        };
        assert_eq!(count("ICMP "), 10 * sessions, "{told:#?}");
        let data = count("ICMP ") + count("keepalive");
        assert_eq!(data, sealed, "{told:#?}");
        let made = told.iter().flat_map(|line| line["changes"].as_array());
        let made = made.flatten().filter_map(|change| change.as_str());
        let made = made.filter(|change| change.starts_with("session "));
        assert_eq!(made.count(), sessions, "{told:#?}");
    }
    assert_eq!(capture.count(None, "wg && icmp"), 0, "nothing without keys");
    let foreign = file_with(&format!(
        "LOCAL_STATIC_PRIVATE_KEY = {}\n",
        pair.ours.private_key
    ));
    let foreign = Path::new(&*foreign);
    assert_eq!(
        capture.count(Some(foreign), "wg && icmp"),
        0,
        "nor with one"
    );
}

#[test]
fn wireshark_reads_a_session_with_the_key_log_of_either_side() {
    check(0, false);
}

#[test]
fn wireshark_reads_every_session_of_a_peer_with_a_preshared_key() {
    check(2, true);
}
