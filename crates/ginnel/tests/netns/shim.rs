//! A library in C that stands before the C library of a process.

use std::process::Command;

use super::world::{find, lacks, text};

/// The built library, which goes with this value.
pub(super) struct Shim(tempfile::TempDir);

impl Shim {
    /// Builds it; `None`, said loudly, without a compiler.
    pub(super) fn build(source: &str) -> Option<Self> {
        if find("cc").is_none() {
            lacks("NETNS", "`cc` is not installed");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("shim.c");
        std::fs::write(&file, source).expect("ours");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]);
        let output = cc.arg(directory.path().join("shim.so")).arg(&file);
        let output = output.arg("-ldl").output().expect("cc runs");
        assert!(output.status.success(), "{}", text(&output));
        Some(Self(directory))
    }

    /// Lets the process of `command` have it.
    pub(super) fn put_before(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.0.path().join("shim.so"));
    }
}
