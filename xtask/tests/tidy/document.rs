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

/// The causes that the doctor has to tell apart, and which test of ginnel provokes each.
const PROVOKED: [(&str, &str, &str); 10] = [
    (
        "no_return_route",
        "netns/return_path.rs",
        "each_way_to_set_up_the_lans_is_recognised_and_served_as_well_as_can_be",
    ),
    (
        "triangle",
        "netns/return_path.rs",
        "each_way_to_set_up_the_lans_is_recognised_and_served_as_well_as_can_be",
    ),
    (
        "mtu_black_hole",
        "netns/doctor.rs",
        "large_packets_that_vanish_are_told",
    ),
    (
        "one_way",
        "netns/doctor.rs",
        "a_tunnel_that_stands_and_through_which_nothing_comes_back_is_told",
    ),
    (
        "clock_skew",
        "network/doctor.rs",
        "a_wrong_clock_is_told_and_the_network_works_with_it",
    ),
    (
        "key_mismatch",
        "network/doctor.rs",
        "a_machine_that_is_not_or_no_more_in_the_network_is_told_so",
    ),
    (
        "udp_unanswered",
        "netns/doctor.rs",
        "udp_that_a_firewall_drops_is_told_before_anything_else",
    ),
    (
        "dns_captured",
        "netns/doctor.rs",
        "dns_that_something_else_on_the_machine_takes_is_told_and_the_walk_goes_on",
    ),
    (
        "route_conflict",
        "netns/routed.rs",
        "a_prefix_that_is_routed_elsewhere_is_named_and_left_alone",
    ),
    (
        "prohibited",
        "network/doctor.rs",
        "what_keeps_a_machine_from_being_reached_is_told_apart",
    ),
];

/// Those that no test provokes.
const NOT_PROVOKED: [&str; 6] = [
    "gateway",
    "agent",
    "no_gateway",
    "endpoint_unknown",
    "resolver_silent",
    "silent",
];

/// The tests of ginnel that run its doctor.
const DOCTORS: [&str; 6] = [
    "netns/doctor.rs",
    "netns/return_path.rs",
    "netns/routed.rs",
    "netns/site.rs",
    "network/approval.rs",
    "network/doctor.rs",
];

#[test]
fn each_cause_of_the_doctor_is_provoked_by_a_test_or_listed() {
    let test = |file: &str| read(&format!("crates/ginnel/tests/{file}"));
    let causes = causes();
    assert!(causes.len() > PROVOKED.len(), "{causes:?}");
    for (cause, file, name) in PROVOKED {
        assert!(causes.iter().any(|it| it == cause), "no cause {cause}");
        let text = test(file);
        assert!(text.contains(&format!("fn {name}(")), "{file}: no {name}");
        assert!(text.contains(&format!("\"{cause}\"")), "{file}: {cause}");
    }
    let tests = DOCTORS.map(test).concat();
    for cause in causes {
        let is_provoked = tests.contains(&format!("\"{cause}\""));
        let is_listed = NOT_PROVOKED.contains(&cause.as_str());
        assert!(is_provoked != is_listed, "{cause}");
    }
}

/// The causes of the doctor's findings, as programs read them.
fn causes() -> Vec<String> {
    let text = read("crates/ginnel/src/doctor/finding.rs");
    let body = text.split_once("enum Cause {\n").expect("the causes").1;
    let body = body.split_once("\n}\n").expect("their end").0;
    let names = body
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','));
    let snake = |name: &str| {
        let mut out = String::new();
        for letter in name.chars() {
            if letter.is_ascii_uppercase() && !out.is_empty() {
                out.push('_');
            }
            out.push(letter.to_ascii_lowercase());
        }
        out
    };
    let is_name = |name: &&str| name.starts_with(|letter: char| letter.is_ascii_uppercase());
    names.filter(is_name).map(snake).collect()
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
