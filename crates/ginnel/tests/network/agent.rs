//! The agent of an enrolled node: started on demand, shared, idle, and replaced by a newer one.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
};

use crate::world::{World, files_below, finish, serve_echo, wait_for};

#[test]
fn a_command_starts_the_agent_which_others_share_and_which_ends_when_idle() {
    let world = World::new();
    world.login("laptop");
    assert_eq!(world.json("laptop", &["status"])["running"], false);
    let mut command = world.ginnel("laptop", &["resolve", "laptop"]);
    command.env("GINNEL_AGENT_IDLE", "1");
    assert_eq!(finish(&mut command).code, Some(0));
    let status = world.json("laptop", &["status"]);
    assert_eq!(
        (&status["running"], &status["node"]["name"]),
        (&true.into(), &"laptop".into())
    );
    world.run("laptop", &["ping", "laptop", "-c", "1"]);
    assert_eq!(world.json("laptop", &["status"])["pid"], status["pid"]);
    // Asking for the status would be work.
    let socket = socket(&world, "laptop").expect("it listens");
    wait_for("the end of an idle agent", || !socket.exists());
    assert_eq!(world.json("laptop", &["status"])["running"], false);
}

#[test]
fn a_state_directory_is_named_as_it_is_seen_from_here() {
    let world = World::new();
    world.login("laptop");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ginnel"));
    command.args(["--state", "laptop", "resolve", "laptop"]);
    command.current_dir(world.path("laptop").parent().expect("it has one"));
    let resolved = finish(&mut command);
    assert_eq!(resolved.code, Some(0), "{}", resolved.stderr);
    assert_eq!(world.json("laptop", &["status"])["running"], true);
}

#[test]
fn an_upgrade_lets_open_connections_of_the_old_agent_end_by_themselves() {
    let world = World::new();
    world.login("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let old = ["agent", "--as-version", "0.0.1"];
    let (mut old, _) = world.start("laptop", &old, "ready");
    let mut open = dial_as_version(&world, "0.0.1", 7000);
    let mut exchange = || {
        let mut back = [0; 4];
        open.write_all(b"open").expect("it is open");
        open.read_exact(&mut back).expect("it goes on");
    };
    exchange();
    // A newer command meets the older agent, which is busy and goes on serving both.
    world.run("laptop", &["resolve", "shed"]);
    let status = world.json("laptop", &["status"]);
    assert_eq!(
        (&status["version"], &status["draining"]),
        (&"0.0.1".into(), &true.into())
    );
    exchange();
    // What goes on is told in detail when somebody asks for that.
    assert_eq!(status["tcp"], serde_json::Value::Null);
    let told = world.json("laptop", &["status", "--connections"]);
    let connection = &told["tcp"][0];
    assert_eq!(connection["state"], "ESTABLISHED");
    assert_eq!(connection["acknowledged_bytes"], 8);
    assert_eq!(connection["received_bytes"], 8);
    assert!(connection["smoothed_rtt_us"].is_u64(), "{connection}");
    drop(open);
    assert_eq!(old.ended().code, Some(0));
    world.run("laptop", &["resolve", "shed"]);
    let status = world.json("laptop", &["status"]);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}

/// Opens a connection to `shed` through the agent of `laptop`, as a program of that version does
/// (agent/protocol.rs), once the agent serves the port.
fn dial_as_version(world: &World, version: &str, port: u16) -> UnixStream {
    let dial = serde_json::json!({ "host": "shed", "port": port, "timeout_ms": 20_000 });
    let envelope = serde_json::json!({
        "protocol": 1, "version": version, "fingerprint": "", "request": { "dial": dial },
    });
    let envelope = envelope.to_string();
    let length = u32::try_from(envelope.len()).expect("it is short");
    let message = [&length.to_be_bytes(), envelope.as_bytes()].concat();
    let path = socket(world, "laptop").expect("it listens");
    let mut opened = None;
    wait_for("a connection", || {
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.write_all(&message).expect("it reads");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("it answers");
        let length = usize::try_from(u32::from_be_bytes(length)).expect("it is short");
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).expect("it answers");
        let connected = String::from_utf8_lossy(&answer).contains("\"connected\"");
        opened = connected.then_some(stream);
        connected
    });
    opened.expect("it was waited for")
}

/// Returns the path of the socket of the agent of `who`.
fn socket(world: &World, who: &str) -> Option<PathBuf> {
    let files = files_below(&world.path(who));
    files
        .into_iter()
        .find(|path| path.extension().is_some_and(|kind| kind == "sock"))
}
