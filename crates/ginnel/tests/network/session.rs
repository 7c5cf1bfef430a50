//! Sessions that an organisation wants recorded: the record, who may read it, and that nothing runs
//! without it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{
    ssh::{log_in, world},
    world::{World, finish, wait_for},
};

fn record(world: &World, which: &str) {
    world.run("laptop", &["ssh-ca", "record", which]);
    // The node learns it by its map.
    wait_for("the node to record", || {
        let before = sessions(world).len();
        let line = ["ssh", "-t", "root@shed", "true"];
        assert_eq!(world.try_run("laptop", &line).code, Some(0));
        sessions(world).len() > before
    });
}

fn sessions(world: &World) -> Vec<serde_json::Value> {
    let list = world.json("laptop", &["session", "list"]);
    list.as_array().expect("a list").clone()
}

/// The newest session, once its record is whole.
fn newest(world: &World) -> serde_json::Value {
    wait_for("the end of the record", || {
        sessions(world)
            .last()
            .is_some_and(|last| last["ended"].is_number())
    });
    sessions(world).pop().expect("a session")
}

fn play(world: &World, session: &serde_json::Value, flags: &[&str]) -> String {
    let id = session["id"].to_string();
    world.run("laptop", &[&["session", "play", &id], flags].concat())
}

#[test]
fn a_session_with_a_terminal_is_recorded_and_played_and_a_command_is_not() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    record(&world, "pty");
    let mut shell = world.ginnel("laptop", &["ssh", "-t", "root@shed"]);
    let shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = shell.spawn().expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(b"echo $((6*7))-\xe2\x82\xac\nexit 3\n")
        .expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(shown.contains("42-€"), "{shown}");
    let session = newest(&world);
    assert_eq!(
        play(&world, &session, &[]),
        shown,
        "what was seen, no more and no less"
    );
    assert_eq!(
        (&session["account"], &session["user_name"]),
        (&"root".into(), &"admin".into())
    );
    assert_eq!(
        (&session["node_name"], &session["status"]),
        (&"shed".into(), &3.into())
    );
    let cast = play(&world, &session, &["--raw"]);
    let header: serde_json::Value =
        serde_json::from_str(cast.lines().next().expect("a header")).expect("JSON");
    assert_eq!(header["version"], 2);
    // What was typed is shown by the terminal's echo only: a password would not be.
    assert!(!cast.contains("\"i\""), "{cast}");
    let before = sessions(&world).len();
    assert_eq!(log_in(&world, "root@shed", "echo unseen").code, Some(0));
    assert_eq!(sessions(&world).len(), before);
    let audit = world.run("laptop", &["audit", "list"]);
    for action in [
        "ssh_session_begun",
        "ssh_session_read",
        "ssh_recording_changed",
    ] {
        assert!(audit.contains(action), "{audit}");
    }
    let id = session["id"].to_string();
    world.run("laptop", &["session", "remove", &id]);
    let gone = world.try_run("laptop", &["session", "play", &id]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(
        world
            .run("laptop", &["audit", "list"])
            .contains("ssh_session_removed")
    );
}

#[test]
fn a_command_is_recorded_where_all_is_and_files_only_by_name() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    record(&world, "all");
    let ended = log_in(&world, "root@shed", "echo out; echo err >&2; exit 7");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(7), "out\n"));
    let session = newest(&world);
    assert_eq!(session["command"], "echo out; echo err >&2; exit 7");
    assert_eq!(
        (&session["status"], &session["terminal"]),
        (&7.into(), &false.into())
    );
    let played = play(&world, &session, &[]);
    assert!(
        played.contains("out\r\n") && played.contains("err\r\n"),
        "{played}"
    );
    std::fs::write(world.path("secret"), "a file's content").expect("a file");
    let from = world.path("secret").to_str().expect("UTF-8").to_owned();
    world.run("laptop", &["cp", &from, &format!("root@shed:{from}.copy")]);
    let session = newest(&world);
    assert_eq!(session["command"], "sftp");
    assert_eq!(play(&world, &session, &[]), "");
    // More than one piece, and more than waits at a time.
    let line = [
        "ssh",
        "root@shed",
        "head -c 3000000 /dev/zero | tr '\\0' 'a'",
    ];
    let ended = world.try_run("laptop", &line);
    assert_eq!((ended.code, ended.stdout.len()), (Some(0), 3_000_000));
    let played = play(&world, &newest(&world), &[]);
    assert!(played == "a".repeat(3_000_000), "{} bytes", played.len());
}

#[test]
fn without_its_record_no_session_begins_and_one_that_runs_ends() {
    let Some((mut world, _laptop, _shed)) = world() else {
        return;
    };
    record(&world, "pty");
    // A certificate from before the server goes away, for OpenSSH.
    let path = world.path("mine").to_str().expect("UTF-8").to_owned();
    world.run("laptop", &["cert", "--out", &path, "--principal", "root"]);
    let _edge = world.gateway("edge");
    let ssh = |world: &World, flags: &[&str]| {
        let dial = format!(
            "ProxyCommand={} --state {} dial shed 22",
            env!("CARGO_BIN_EXE_ginnel"),
            world.path("laptop").display()
        );
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "/dev/null",
            "-o",
            "BatchMode=yes",
            "-i",
            &path,
            "-o",
            &dial,
        ]);
        ssh.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        ssh.args(["-o", "IdentitiesOnly=yes"])
            .args(flags)
            .env_remove("SSH_AUTH_SOCK");
        ssh.stdin(Stdio::null());
        ssh
    };
    wait_for("the gateway apart", || {
        finish(&mut ssh(&world, &["-T", "root@shed", "true"])).code == Some(0)
    });
    let line = "while true; do date; sleep 0.2; done";
    let mut runs = world.spawn(&mut ssh(&world, &["-tt", "root@shed", line]));
    runs.until(":");
    let server = world.server.take().expect("a server");
    server.kill();
    let sentence = "this session has to be recorded and cannot be now";
    let ended = finish(&mut ssh(&world, &["-tt", "root@shed", "echo ran"]));
    assert_eq!(ended.code, Some(255), "{ended:?}");
    let said = [ended.stdout, ended.stderr].concat();
    assert!(said.contains(sentence) && !said.contains("ran"), "{said}");
    // Without a terminal it need not be recorded, and the data plane goes on without the server.
    let ended = finish(&mut ssh(&world, &["-T", "root@shed", "echo ran"]));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "ran\n"));
    // It is tried again for 30 seconds, in which its output waits.
    wait_for_long("the end of the session", || {
        runs.stderr()
            .contains("this session has to be recorded, and ends")
    });
}

/// Waits longer than the network ring does otherwise.
fn wait_for_long(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = crate::world::now();
    while !condition() {
        let waited = crate::world::now().duration_since(begin);
        assert!(waited.as_secs() < 90, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
