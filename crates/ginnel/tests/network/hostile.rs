//! Hostile text as an argument of every command that takes text: whatever is said about it, on
//! stdout, on stderr and in the log, does nothing to a terminal, and JSON stays JSON.

use std::{fs, process::Command};

use model::name::is_deceptive;

use crate::world::{Ended, World, finish};

/// Ends lines, sets the title, clears the screen, turns the order of letters around, and would be a
/// command in a shell.
const TEXT: &str = "x\r\n\u{1b}]0;title\u{7}\u{9b}2J\u{7f}\u{202e}\u{2028}\u{61c}\"'$(id)\\";

/// Where the text stands in a line.
const HERE: &str = "@";

const LINES: &[&[&str]] = &[
    &["@"],
    &["status", "--@"],
    &["completions", "@"],
    &["ping", "@", "-c", "1"],
    &["resolve", "@"],
    &["resolve", "@.internal", "TXT"],
    &["whois", "@"],
    &["trace", "@"],
    &["doctor", "@"],
    &["doctor", "laptop", "@"],
    &["dial", "@", "22"],
    &["forward", "@"],
    &["proxy", "--socks5", "@"],
    &["capture", "--filter", "@", "-w", "/dev/null"],
    &["capture", "--filter", "host @", "-w", "/dev/null"],
    &["capture", "--node", "@", "-w", "/dev/null"],
    &["capture", "--tun", "@", "-w", "/dev/null"],
    &["capture", "-w", "/@/@"],
    &["replay", "/@"],
    &["peer", "show", "@"],
    &["peer", "add", "@"],
    &["peer", "export", "@"],
    &["node", "show", "@"],
    &["node", "set", "laptop", "--tag", "@"],
    &["node", "approve", "@"],
    &["node", "expire", "@", "--in", "@"],
    &["user", "add", "@"],
    &["user", "add", "bob", "--role", "@"],
    &["org", "add", "@"],
    &["token", "add", "--ttl", "@"],
    &["service", "add", "@", "--port", "1"],
    &["service", "add", "web", "--port", "1", "--target", "@"],
    &[
        "site",
        "add",
        "@",
        "--node",
        "laptop",
        "--prefix",
        "10.0.0.0/8",
    ],
    &["site", "add", "paris", "--node", "@", "--prefix", "@"],
    &["site", "set", "@", "--node", "@"],
    &["policy", "add", "--from", "@", "--to", "@"],
    &[
        "policy",
        "add",
        "--from",
        "role:admin",
        "--to",
        "tag:a",
        "--comment",
        "@",
    ],
    &["policy", "explain", "@", "@"],
    &["policy", "test", "/@"],
    &["audit", "list", "--who", "@"],
    &["audit", "list", "--since", "@"],
    &["oidc", "set", "--issuer", "@", "--client-id", "@"],
    &["session", "show", "@"],
    &["ssh", "@", "true"],
    &["ssh", "@@laptop", "true"],
    &["ssh", "-L", "@", "laptop"],
    &["cp", "@", "laptop:@"],
    &["cp", "laptop:@", "/@/@"],
    &["cert", "--ttl", "@"],
    &["status", "--interface", "@"],
    &["join", "@", "--token", "@"],
    &["join", "https://127.0.0.1:1", "--token", "@"],
    &["backup", "/@/@", "--data", "/@"],
    &["restore", "/@", "--data", "/@"],
    &["server", "--data", "/dev/null/@"],
    &["server", "copy", "--from", "@", "--to", "@"],
    &["--config", "/@", "ping", "x"],
    &["--state", "/dev/null/@", "ssh-config"],
    &["--state", "/dev/null/@", "up", "--user"],
];

#[test]
fn no_command_shows_a_hostile_argument_as_it_is() {
    let (world, _laptop) = World::with_laptop();
    for line in LINES {
        let line: Vec<_> = line.iter().map(|word| word.replace(HERE, TEXT)).collect();
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        for flags in [&["-vv"][..], &["-vv", "--log-json", "--json"]] {
            let ended = world.try_run("laptop", &[flags, &line[..]].concat());
            does_nothing(&line, &ended);
        }
    }
}

#[test]
fn paths_of_a_hostile_state_directory_are_quoted_or_refused() {
    let world = World::new();
    let hostile = [
        "a b",
        "it's",
        "$(touch pwned)",
        "\u{1b}[2J",
        "\u{202e}x",
        "a\nb",
    ];
    for (number, name) in hostile.iter().enumerate() {
        let state = world.path(name);
        let name = format!("node{number}");
        let token = match number {
            0 => world.admin.clone(),
            _ => world.run("a b", &["token", "add"]).trim().to_owned(),
        };
        let command = if number == 0 { "login" } else { "join" };
        let state = state.to_str().expect("UTF-8");
        let line = [command, &world.url, "--token", &token, "--name", &name];
        world.run(state, &line);
        // Also relative to where the command runs, because OpenSSH runs elsewhere.
        let mut relative = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        relative.current_dir(world.path("")).arg("--state");
        let told = finish(relative.arg(hostile[number]).arg("ssh-config"));
        does_nothing(&["ssh-config"], &told);
        if hostile[number].chars().any(is_deceptive) {
            assert!(told.stderr.contains("cannot stand in"), "{told:?}");
            continue;
        }
        assert_eq!(told.code, Some(0), "{told:?}");
        let config = world.path(&format!("{name}.config"));
        fs::write(&config, &told.stdout).expect("our directory");
        let mut ssh = Command::new("ssh");
        let shown = finish(ssh.arg("-G").arg("-F").arg(&config).arg("a.internal"));
        let key = format!("identityfile {}", world.path(hostile[number]).display());
        assert!(shown.stdout.contains(&key), "{shown:?}");
    }
}

#[track_caller]
fn does_nothing(line: &[&str], ended: &Ended) {
    for text in [&ended.stdout, &ended.stderr] {
        for shown in text.lines() {
            assert!(!shown.contains(is_deceptive), "{line:?}: {shown:?}");
            // The end of a line in the text would begin another one.
            let escaped = ["\\u{1b}]0;", "\\u001b]0;"];
            let broken = escaped.iter().any(|begin| shown.starts_with(begin));
            assert!(!broken, "{line:?}: {text}");
        }
    }
}
