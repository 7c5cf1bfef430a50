//! Properties of the repository that no compiler checks.

#[path = "tidy/document.rs"]
mod document;
#[path = "tidy/edge.rs"]
mod edge;
#[path = "tidy/source.rs"]
mod source;

use std::{fs, path::Path, process::Command};

/// Faults are gathered, so that one run shows all of them.
#[derive(Debug, Default)]
struct Faults(String);

impl Faults {
    fn add(&mut self, path: &str, line: usize, what: &str) {
        self.0 += &format!("{path}:{line}: {what}\n");
    }

    #[track_caller]
    fn finish(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

#[test]
fn formatting_is_canonical() {
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let output = Command::new("cargo")
            .args(["fmt", "--all", "--check", "--manifest-path", manifest])
            .current_dir(root())
            .output();
        let output = output.expect("cargo runs");
        assert!(
            output.status.success(),
            "\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

/// The paths that git knows, in order; those of a merge in progress are listed once.
fn tracked() -> Vec<String> {
    let mut command = Command::new("git");
    let output = command
        .args(["ls-files"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8 paths");
    let mut paths: Vec<_> = text.lines().map(str::to_owned).collect();
    paths.dedup();
    paths.retain(|path| root().join(path).is_file());
    assert!(
        paths.len() > 20,
        "the tests run in a clone of the repository"
    );
    paths
}

/// The tracked Rust files with their text.
fn rust_files() -> Vec<(String, String)> {
    let paths = tracked().into_iter().filter(|path| path.ends_with(".rs"));
    paths.map(|path| (path.clone(), read(&path))).collect()
}

#[track_caller]
fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read `{path}`: {error}"))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
