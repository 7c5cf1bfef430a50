//! `ginnel demo` as a user without privileges: quick, and nothing is left behind.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::world::{Process, note, now, pids_with, wait_for};

/// The user nobody, of whom nothing is expected but that it is not root.
const NOBODY: u32 = 65_534;

/// A copy of the program in a directory that nobody may use.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("own directory");
        let place = Self { directory };
        // The build directory may be closed to others.
        let built = env!("CARGO_BIN_EXE_ginnel");
        fs::hard_link(built, place.program())
            .or_else(|_| fs::copy(built, place.program()).map(drop))
            .expect("copy the program");
        fs::create_dir(place.temporary()).expect("make a directory");
        let open = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place.temporary(), open).expect("own directory");
        place
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("ginnel")
    }

    fn temporary(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    fn start(&self) -> Process {
        let mut command = Command::new(self.program());
        command.arg("demo").env_clear().stdin(Stdio::null());
        command.env("TMPDIR", self.temporary()).current_dir("/");
        if os::process::euid() == 0 {
            command.uid(NOBODY).gid(NOBODY);
        }
        Process::spawn(&mut command, self.directory.path().join("stderr.log"))
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        wait_for("the end of every process", || {
            pids_with(self.directory.path()).is_empty()
        });
        let left = fs::read_dir(self.temporary()).expect("it is there");
        let left: Vec<_> = left.flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let place = Place::new();
    let begin = now();
    let mut demo = place.start();
    let ended = demo.ended();
    note(&format!("the demo took {:?}", now().duration_since(begin)));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in [
        "$ ginnel server",
        "$ ginnel join",
        "$ ginnel resolve web.svc.internal",
        "hello from behind the gateway",
        "$ ginnel node remove shed",
        "502 Bad Gateway",
        "does not exist",
        "Nothing is left.",
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    place.nothing_is_left();
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_either() {
    for (line, signal) in [("$ ginnel server", "INT"), ("$ ginnel proxy", "TERM")] {
        let place = Place::new();
        let mut demo = place.start();
        demo.until(line);
        demo.signal(signal);
        let ended = demo.ended();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("interrupted"), "{ended:?}");
        place.nothing_is_left();
    }
}
