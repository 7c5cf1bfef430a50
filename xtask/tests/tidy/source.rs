//! What may stand in which source file.

use super::{Faults, rust_files, tracked};

/// Crates without IO, clock, randomness, threads and async.
const CORE: &[&str] = &["packet", "wireguard", "netstack", "model", "node"];

/// The one file that reads the clock.
const CLOCK: &str = "crates/os/src/clock.rs";
/// The one file that asks the system for randomness.
const RANDOM: &str = "crates/os/src/random.rs";
/// Where SQL stands.
const STORAGE: &str = "crates/control/src/storage";

const LINE_COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 1200;

#[test]
fn files_open_with_a_sentence_and_have_bounds() {
    let mut faults = Faults::default();
    for (path, text) in rust_files() {
        // A fuzz target and a build script open with attributes of their own kind.
        if !text.starts_with("//! ") && !text.starts_with("#![no_main]\n//! ") {
            faults.add(
                &path,
                1,
                "a file starts with `//!`: one sentence that says what lives here",
            );
        }
        if text.lines().count() > FILE_LINES_MAX {
            faults.add(
                &path,
                FILE_LINES_MAX,
                "too long: is there a second noun inside?",
            );
        }
        for (number, line) in lines(&text) {
            if line.chars().count() > LINE_COLUMNS_MAX {
                faults.add(&path, number, "longer than 100 columns");
            }
        }
    }
    faults.finish();
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("todo", "!"),
        concat!("unimplemented", "!"),
        concat!("#[ign", "ore"),
        concat!("should_", "panic"),
    ];
    let mut faults = Faults::default();
    for (path, text) in rust_files() {
        for (number, line) in lines(&text) {
            for word in words.into_iter().filter(|word| has(line, word)) {
                faults.add(&path, number, &format!("`{word}`"));
            }
        }
    }
    faults.finish();
}

#[test]
fn the_core_computes_and_does_nothing_else() {
    let words = [
        "fs::",
        "thread::",
        "process::",
        "env::",
        "UdpSocket",
        "TcpStream",
        "TcpListener",
        "UnixStream",
        "UnixListener",
        "stdin()",
        "tokio",
        "async fn",
        "async move",
        "async {",
        ".await",
        "tracing",
        "println!",
        "eprintln!",
        "Instant::now",
        "SystemTime::now",
        "getrandom",
        "SystemRandom",
    ];
    let mut faults = Faults::default();
    for (path, text) in rust_files() {
        let is_core = |name: &&&str| path.starts_with(&format!("crates/{name}/src/"));
        if CORE.iter().find(is_core).is_none() || is_test_file(&path) {
            continue;
        }
        for (number, line) in code(production(&text)) {
            for word in words.into_iter().filter(|word| has(line, word)) {
                faults.add(&path, number, &format!("`{word}` in a core crate"));
            }
        }
    }
    faults.finish();
}

#[test]
fn clock_randomness_unsafe_and_sql_have_one_place_each() {
    let rules: [(&str, &[&str], &str); 4] = [
        (
            "the clock is read",
            &["Instant::now", "SystemTime::now", ".elapsed()"],
            CLOCK,
        ),
        (
            "the system gives randomness",
            &[
                "getrandom",
                "aws_lc_rs::rand",
                "ring::rand",
                "rand::",
                "OsRng",
                "SysRng",
                "urandom",
            ],
            RANDOM,
        ),
        ("unsafe code stands", &["unsafe"], "crates/os/"),
        ("SQL stands", SQL, STORAGE),
    ];
    let mut faults = Faults::default();
    for (path, text) in rust_files() {
        if !path.starts_with("crates/") || is_test_file(&path) {
            continue;
        }
        for (number, line) in code(production(&text)) {
            for (what, words, place) in &rules {
                if !path.starts_with(place) && words.iter().any(|word| has(line, word)) {
                    faults.add(&path, number, &format!("{what} in {place} only"));
                }
            }
        }
    }
    faults.finish();
}

#[test]
fn unsafe_code_in_tests_stands_in_os_too() {
    let mut faults = Faults::default();
    for (path, text) in rust_files() {
        if path.starts_with("crates/os/") {
            continue;
        }
        for (number, line) in code(&text) {
            if has(line, concat!("unsafe", " {")) || has(line, concat!("unsafe", " fn")) {
                faults.add(&path, number, "unsafe code stands in crates/os/ only");
            }
        }
    }
    faults.finish();
}

#[test]
fn modules_are_named_after_what_they_hold() {
    let words = [
        "common", "shared", "util", "utils", "type", "types", "helper", "helpers", "misc",
    ];
    let mut faults = Faults::default();
    for path in tracked() {
        let stems = path
            .split('/')
            .map(|part| part.split('.').next().unwrap_or(part));
        for stem in stems.filter(|stem| words.contains(stem)) {
            faults.add(&path, 1, &format!("`{stem}` says nothing: name the noun"));
        }
        if path.ends_with("/mod.rs") {
            faults.add(&path, 1, "`foo.rs` stands beside `foo/`, never `mod.rs`");
        }
    }
    for (path, text) in rust_files() {
        for (number, line) in code(&text) {
            let module = line
                .split("mod ")
                .nth(1)
                .and_then(|rest| rest.split([' ', ';']).next());
            if let Some(module) = module.filter(|module| words.contains(module)) {
                faults.add(
                    &path,
                    number,
                    &format!("`{module}` says nothing: name the noun"),
                );
            }
        }
    }
    faults.finish();
}

#[test]
fn nothing_names_the_machine_that_it_was_written_on() {
    let places = [
        concat!("/wo", "rk/"),
        concat!("/fa", "rm/"),
        concat!("/tmp/bash_", "jobs"),
    ];
    let hosts = [
        concat!("static.", "crates.io"),
        concat!("index.", "crates.io"),
        concat!("pypi.", "org"),
        concat!("files.python", "hosted"),
        concat!("registry.", "npmjs"),
        concat!("deb.", "debian.org"),
    ];
    let mut faults = Faults::default();
    for path in tracked()
        .into_iter()
        .filter(|path| !path.ends_with(".lock"))
    {
        let Ok(text) = std::fs::read_to_string(super::root().join(&path)) else {
            continue;
        };
        for (number, line) in lines(&text) {
            let place = places.into_iter().find(|place| starts_a_path(line, place));
            let host = hosts.into_iter().find(|host| line.contains(host));
            if let Some(word) = place.or(host) {
                faults.add(&path, number, &format!("`{word}`"));
            }
        }
    }
    faults.finish();
}

const SQL: &[&str] = &[
    "\"SELECT ",
    "INSERT INTO ",
    "DELETE FROM ",
    "CREATE TABLE ",
    "CREATE INDEX ",
    "ALTER TABLE ",
    "\"UPDATE ",
    "sqlx::query",
];

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

/// Lines that are not comments, without the comment at their end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines =
        lines(text).map(|(number, line)| (number, line.split(" // ").next().unwrap_or(line)));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The part of a file before its tests, which stand at the end.
fn production(text: &str) -> &str {
    let end = [
        "#[cfg(test)]\nmod tests {",
        "#[cfg(test)]\npub(crate) mod tests {",
    ];
    let end = end.iter().filter_map(|start| text.find(start)).min();
    &text[..end.unwrap_or(text.len())]
}

fn is_test_file(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    parts
        .iter()
        .any(|part| ["tests", "benches", "examples", "tests.rs"].contains(part))
        || path.starts_with("crates/sim/")
}

/// Tells whether `word` stands in `line` and is not the end of a longer word.
fn has(line: &str, word: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let inner = word.starts_with(is_word);
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        let joined_before = inner && line[..at].ends_with(is_word);
        let joined_after = word.ends_with(is_word) && after.starts_with(is_word);
        !joined_before && !joined_after
    })
}

/// Tells whether `place` begins an absolute path in `line`.
fn starts_a_path(line: &str, place: &str) -> bool {
    let inside = |character: char| character.is_alphanumeric() || "._-".contains(character);
    line.match_indices(place)
        .any(|(at, _)| !line[..at].ends_with(inside))
}

#[test]
fn words_are_found_whole() {
    assert!(has("let x = fs::read();", "fs::"));
    assert!(!has("let x = offs::read();", "fs::"));
    assert!(has("unsafe impl", "unsafe"));
    assert!(!has("#![deny(unsafe_code)]", "unsafe"));
    assert!(has("future.await", ".await"));
}

#[test]
fn tests_at_the_end_of_a_file_are_cut_off() {
    assert_eq!(production("a\n#[cfg(test)]\nmod tests {\nb\n}\n"), "a\n");
    assert_eq!(
        production("a\n#[cfg(test)]\nmod tests;\n"),
        "a\n#[cfg(test)]\nmod tests;\n"
    );
}
