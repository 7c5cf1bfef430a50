//! The life of the local agent: shared, idle, replaced, and never leaking.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::Duration,
};

use crate::world::{World, exchange, fed, finished, open, world};

const ECHO: &str = "TCP-LISTEN:7000,fork,reuseaddr,backlog=1024";

fn socket(world: &World) -> Option<PathBuf> {
    let entries = fs::read_dir(world.run().join("ginnel")).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| {
        path.extension()
            .is_some_and(|extension| extension == "sock")
    })
}

#[test]
fn one_agent_serves_every_command_and_exits_when_idle() {
    let Some(mut world) = world() else { return };
    world.serve(["socat", ECHO, "EXEC:cat"], 7000);
    assert_eq!(world.status()["running"], false);
    let idle = |mut command: std::process::Command| {
        command.env("GINNEL_AGENT_IDLE", "1");
        command
    };
    let (mut first, mut from_first) = open(&mut idle(world.ginnel(["dial", "10.88.0.1", "7000"])));
    let (mut second, mut from_second) =
        open(&mut idle(world.ginnel(["dial", "10.88.0.1", "7000"])));
    assert_eq!(exchange(&mut second, &mut from_second, b"two"), b"two");
    assert_eq!(exchange(&mut first, &mut from_first, b"one"), b"one");
    let status = world.status();
    assert_eq!(status["running"], true);
    assert_eq!(status["node"]["peers"][0]["tunnel"], "up");
    // The socket is for its owner alone.
    let path = socket(&world).expect("there is one");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // A command that is killed leaves nothing behind.
    second.kill().expect("it lives");
    second.wait().expect("it ends");
    world.wait_for("one connection", |world| world.status()["connections"] == 1);
    drop(first.stdin.take());
    assert!(first.wait().expect("it ends").success());
    thread::sleep(Duration::from_millis(500));
    world.wait_for("the agent's end", |world| socket(world).is_none());
    assert_eq!(world.status()["running"], false);
}

#[test]
fn two_agents_of_one_profile_never_run() {
    let Some(mut world) = world() else { return };
    world.serve(["socat", ECHO, "EXEC:cat"], 7000);
    let (mut dial, mut stdout) = open(&mut world.ginnel(["dial", "10.88.0.1", "7000"]));
    assert_eq!(exchange(&mut dial, &mut stdout, b"x"), b"x");
    let output = world.ginnel(["agent"]).output().expect("start");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        stderr.contains("local agent: one of this profile runs"),
        "{stderr}"
    );
    assert_eq!(exchange(&mut dial, &mut stdout, b"y"), b"y");
    drop(dial.stdin.take());
    assert!(dial.wait().expect("it ends").success());
}

#[test]
fn an_upgrade_waits_for_open_connections_and_kills_none() {
    let Some(mut world) = world() else { return };
    world.serve(["socat", ECHO, "EXEC:cat"], 7000);
    let old = world.ginnel(["agent", "--as-version", "0.0.1"]);
    world.start(old, 1);
    let mut busy = old_dial(&world);
    assert_eq!(back(&mut busy, b"before"), b"before");
    // While it is busy it serves the newer command too.
    let output = fed(&mut world.ginnel(["dial", "10.88.0.1", "7000"]), b"busy");
    assert_eq!(
        output.stdout,
        b"busy",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(world.status()["version"], "0.0.1");
    assert_eq!(world.status()["draining"], true);
    assert_eq!(back(&mut busy, b"after"), b"after");
    drop(busy);
    world.wait_for("the old agent's end", |world| {
        world.status()["running"] == false
    });
    let output = fed(&mut world.ginnel(["dial", "10.88.0.1", "7000"]), b"idle");
    assert_eq!(
        output.stdout,
        b"idle",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(world.status()["version"], env!("CARGO_PKG_VERSION"));
}

/// Dials as a command of version 0.0.1 would.
fn old_dial(world: &World) -> UnixStream {
    // The digest that the agent takes of its configuration: FNV-1a.
    let text = fs::read(&world.config).expect("read");
    let digest = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let request = serde_json::json!({
        "protocol": 1, "version": "0.0.1", "fingerprint": format!("{digest:016x}"),
        "request": { "dial": { "host": "10.88.0.1", "port": 7000, "timeout_ms": 9_000 } },
    });
    let request = request.to_string();
    let mut stream = UnixStream::connect(socket(world).expect("there is one")).expect("connect");
    let length = u32::try_from(request.len()).expect("short").to_be_bytes();
    stream
        .write_all(&[&length, request.as_bytes()].concat())
        .expect("write");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("read");
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short")];
    stream.read_exact(&mut answer).expect("read");
    assert!(
        answer.starts_with(br#"{"connected""#),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stream
}

fn back(stream: &mut UnixStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).expect("write");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("read");
    back
}

#[test]
fn an_edited_configuration_is_not_mixed_with_the_older_one() {
    let Some(mut world) = world() else { return };
    world.serve(["socat", ECHO, "EXEC:cat"], 7000);
    let (mut dial, mut stdout) = open(&mut world.ginnel(["dial", "10.88.0.1", "7000"]));
    assert_eq!(exchange(&mut dial, &mut stdout, b"x"), b"x");
    let text = fs::read_to_string(&world.config).expect("read");
    world.write_config(&format!("{text}PersistentKeepalive = 25\n"));
    let output = fed(&mut world.ginnel(["dial", "10.88.0.1", "7000"]), b"");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("was edited"), "{stderr}");
    assert_eq!(exchange(&mut dial, &mut stdout, b"y"), b"y");
    drop(dial.stdin.take());
    assert!(dial.wait().expect("it ends").success());
    let output = fed(&mut world.ginnel(["dial", "10.88.0.1", "7000"]), b"new");
    assert_eq!(
        output.stdout,
        b"new",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn two_thousand_connections_leave_no_descriptor_behind() {
    let Some(mut world) = world() else { return };
    world.serve(["socat", ECHO, "EXEC:cat"], 7000);
    let web = "
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(self.request.recv(100))
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
Server(('10.88.0.1', 7004), Echo).serve_forever()
";
    world.serve_python(web, 7004);
    let forward = world.ginnel(["forward", "7104:10.88.0.1:7004"]);
    world.start(forward, 1);
    let script = "
import socket
for n in range(500):
    s = socket.create_connection(('127.0.0.1', 7104)); s.sendall(b'x'); assert s.recv(9) == b'x'
    s.close()
";
    let run = |world: &World| finished(&mut world.beside(["python3", "-c", script]));
    run(&world);
    let pid = world.status()["pid"].to_string();
    let descriptors = || {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("it runs")
            .count()
    };
    world.wait_for("no connection", |world| world.status()["connections"] == 0);
    let before = descriptors();
    for _ in 0..3 {
        run(&world);
    }
    world.wait_for("no connection", |world| world.status()["connections"] == 0);
    // One for the status request that may still be closing.
    assert!(
        descriptors() <= before + 1,
        "{} after {before}",
        descriptors()
    );
    assert_eq!(world.status()["pid"].to_string(), pid);
}
