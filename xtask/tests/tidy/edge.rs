//! Who may depend on whom, and on what from outside.

use std::collections::{BTreeMap, BTreeSet};

use super::{Faults, read, root};

/// Adding an edge is a change of architecture: edit ARCHITECTURE.md too.
const EDGES: &[(&str, &[&str])] = &[
    ("packet", &[]),
    ("wireguard", &["packet"]),
    ("netstack", &["packet"]),
    ("model", &[]),
    ("node", &["model", "netstack", "packet", "wireguard"]),
    ("os", &["packet"]),
    ("control", &["model"]),
    (
        "ginnel",
        &[
            "control",
            "model",
            "netstack",
            "node",
            "os",
            "packet",
            "tunnel",
            "wireguard",
        ],
    ),
    (
        "tunnel",
        &["model", "netstack", "node", "os", "packet", "wireguard"],
    ),
    ("sim", &["model", "netstack", "node", "packet", "wireguard"]),
];

#[test]
fn dependencies_point_inward() {
    let edges: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut faults = Faults::default();
    for name in crates() {
        let path = format!("crates/{name}/Cargo.toml");
        let Some(allowed) = edges.get(name.as_str()) else {
            faults.add(&path, 1, "a crate that `EDGES` does not know");
            continue;
        };
        for (line, dependency) in dependencies(&read(&path)) {
            let own = edges.contains_key(dependency.as_str());
            if own && !allowed.contains(&dependency.as_str()) {
                faults.add(&path, line, &format!("must not depend on `{dependency}`"));
            }
        }
    }
    faults.finish();
}

#[test]
fn every_dependency_has_its_reason_in_the_architecture() {
    let declared = section(&read("Cargo.toml"), "[workspace.dependencies]");
    let own: BTreeSet<_> = EDGES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let declared: BTreeSet<_> = declared.into_iter().map(|(_, name)| name).collect();
    let foreign: BTreeSet<_> = declared.difference(&own).cloned().collect();
    let architecture = read("ARCHITECTURE.md");
    let table = architecture
        .split("## Dependencies")
        .nth(1)
        .expect("a section `Dependencies`");
    let rows = table.lines().take_while(|line| !line.starts_with("## "));
    let reasoned: BTreeSet<_> = rows
        .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    assert_eq!(
        foreign.difference(&reasoned).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "in Cargo.toml, but without a line in ARCHITECTURE.md"
    );
    assert_eq!(
        reasoned.difference(&foreign).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "in ARCHITECTURE.md, but no dependency"
    );
}

#[test]
fn every_dependency_is_used_by_a_crate() {
    let mut used = BTreeSet::new();
    for manifest in manifests() {
        used.extend(
            dependencies(&read(&manifest))
                .into_iter()
                .map(|(_, name)| name),
        );
    }
    let mut faults = Faults::default();
    for (line, name) in section(&read("Cargo.toml"), "[workspace.dependencies]") {
        if !used.contains(&name) {
            faults.add("Cargo.toml", line, &format!("no crate depends on `{name}`"));
        }
    }
    faults.finish();
}

#[test]
fn versions_are_written_once() {
    let mut faults = Faults::default();
    for path in manifests() {
        let text = read(&path);
        for (line, name) in dependencies(&text) {
            let line_text = text.lines().nth(line - 1).expect("the line was just read");
            if !line_text.contains("workspace = true") {
                faults.add(
                    &path,
                    line,
                    &format!("`{name}` is not taken from the workspace"),
                );
            }
        }
    }
    faults.finish();
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for path in manifests() {
        assert!(read(&path).contains("[lints]\nworkspace = true"), "{path}");
    }
}

fn manifests() -> Vec<String> {
    let crates = crates()
        .into_iter()
        .map(|name| format!("crates/{name}/Cargo.toml"));
    crates.chain(["xtask/Cargo.toml".to_owned()]).collect()
}

fn crates() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("crates")).expect("crates/ exists");
    let names = entries.map(|entry| entry.expect("crates/ is readable").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.into_string().expect("UTF-8 names"))
        .collect();
    names.retain(|name| {
        root()
            .join("crates")
            .join(name)
            .join("Cargo.toml")
            .is_file()
    });
    names.sort();
    names
}

/// The line and name of each dependency of a manifest, of all kinds: `X.workspace = true`,
/// `X = { path = ".." }`, `X = "1"`, and `X = { package = "Y" }` under its real name `Y`.
fn dependencies(manifest: &str) -> Vec<(usize, String)> {
    [
        "[dependencies]",
        "[dev-dependencies]",
        "[build-dependencies]",
    ]
    .into_iter()
    .flat_map(|heading| section(manifest, heading))
    .collect()
}

fn section(manifest: &str, heading: &str) -> Vec<(usize, String)> {
    let lines = manifest
        .lines()
        .enumerate()
        .skip_while(|(_, line)| line.trim() != heading)
        .skip(1);
    let body = lines.take_while(|(_, line)| !line.starts_with('['));
    body.filter_map(|(index, line)| Some((index + 1, name(line)?)))
        .collect()
}

fn name(line: &str) -> Option<String> {
    let (name, value) = line.split_once('=')?;
    if name.trim_start().starts_with('#') {
        return None;
    }
    let renamed = value
        .split("package = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let name = name.split('.').next().expect("split yields one item");
    Some(renamed.unwrap_or(name).trim().to_owned())
}

#[test]
fn both_forms_of_a_dependency_are_read() {
    let manifest = [
        "[package]",
        "name = \"a\"",
        "[dependencies]",
        "b.workspace = true",
        "# c = \"1\"",
        "d = { path = \"../d\" }",
        "[dev-dependencies]",
        "e = { package = \"f\" }",
        "[lints]",
        "g = true",
    ]
    .join("\n");
    let expected = [
        (4, "b".to_owned()),
        (6, "d".to_owned()),
        (8, "f".to_owned()),
    ];
    assert_eq!(dependencies(&manifest), expected);
}
