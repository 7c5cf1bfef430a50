//! What the documents promise.

use std::process::Command;

use super::{Faults, read, root, rust_files};

#[test]
fn the_documents_exist() {
    for path in [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        ".ci/run",
    ] {
        assert!(!read(path).is_empty(), "{path}");
    }
}

#[test]
fn the_changelog_has_an_unreleased_section_first() {
    let text = read("CHANGELOG.md");
    let first = text.lines().find(|line| line.starts_with("## "));
    assert_eq!(first, Some("## [Unreleased]"));
}

#[test]
fn commands_in_the_documents_exist() {
    let tasks = words_of_help();
    let commands = commands_of_ginnel();
    let mut faults = Faults::default();
    for path in ["README.md", "CONTRIBUTING.md"] {
        let text = read(path);
        let mut in_block = false;
        for (index, line) in text.lines().enumerate() {
            in_block ^= line.starts_with("```");
            let line = line.trim_start().trim_start_matches("$ ");
            let words: Vec<_> = line.split_whitespace().collect();
            let (known, word) = match words.as_slice() {
                ["cargo", "xtask", task, ..] => (&tasks, *task),
                ["cargo", "run", "--release", "--", command, ..] | ["ginnel", command, ..] => {
                    (&commands, *command)
                }
                _ => continue,
            };
            let is_word = word
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '-');
            if in_block && is_word && !word.starts_with('-') && !known.iter().any(|it| it == word) {
                faults.add(path, index + 1, &format!("there is no command `{word}`"));
            }
        }
    }
    faults.finish();
}

#[test]
fn ci_runs_what_the_contributor_runs() {
    assert!(read(".ci/run").contains("cargo xtask test"));
    assert!(read("README.md").contains("cargo xtask test"));
    assert!(read("CONTRIBUTING.md").contains("cargo xtask test"));
}

/// The first words of the indented lines of `cargo xtask help`.
fn words_of_help() -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = command
        .arg("help")
        .current_dir(root())
        .output()
        .expect("xtask runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8 help");
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    lines
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// The subcommands of the binary: the variants of its `Subcommand` enums in kebab case.
///
/// They are read from the source, so that this test need not build the binary.
fn commands_of_ginnel() -> Vec<String> {
    let mut commands = Vec::new();
    for (path, text) in rust_files() {
        if !path.starts_with("crates/ginnel/src/") || !text.contains("Subcommand") {
            continue;
        }
        for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
            let variant: String = line
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            let rest = &line[variant.len()..];
            let is_variant = variant.starts_with(|letter: char| letter.is_ascii_uppercase())
                && (rest.starts_with(',') || rest.starts_with('(') || rest.starts_with(" {"));
            if is_variant {
                commands.push(kebab(&variant));
            }
        }
    }
    commands
}

fn kebab(variant: &str) -> String {
    let mut text = String::new();
    for letter in variant.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[test]
fn a_variant_becomes_a_command() {
    assert_eq!(kebab("Demo"), "demo");
    assert_eq!(kebab("KeyLog"), "key-log");
}
