//! `ginnel ssh` at the SSH server of another node: who is let in, and how a command ends.

use std::process::Command;

use crate::world::{Ended, Process, World, echoes, finish, note, serve_echo, wait_for};

/// A machine that serves SSH; `None` where no certificate names the account of this process.
fn world() -> Option<(World, Process, Process)> {
    let own = finish(Command::new("id").arg("-un")).stdout;
    if own.trim() != "root" {
        note("skipped: the first administrator may log in as `root` and `admin` only");
        return None;
    }
    let (world, laptop) = World::with_laptop();
    world.join("shed");
    let (shed, _) = world.start("shed", &["up", "--user", "--ssh"], "is ready");
    // Its certificate is asked for after it is ready.
    wait_for("an SSH server", || {
        log_in(&world, "root@shed", "true").code == Some(0)
    });
    Some((world, laptop, shed))
}

fn log_in(world: &World, target: &str, command: &str) -> Ended {
    world.try_run("laptop", &["ssh", target, command])
}

#[test]
fn a_command_runs_at_a_node_and_its_outputs_and_status_come_back() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let ended = log_in(&world, "root@shed", "echo out; echo err >&2; exit 7");
    let expected = (Some(7), "out\n", "err\n");
    let Ended {
        code,
        stdout,
        stderr,
    } = &ended;
    assert_eq!((*code, stdout.as_str(), stderr.as_str()), expected);
    for name in ["shed.internal", "shed.default.internal"] {
        let ended = log_in(&world, name, "printf %s \"$SSH_CONNECTION\"");
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
        assert!(ended.stdout.ends_with(" 22"), "{ended:?}");
    }
}

#[test]
fn a_terminal_is_there_when_it_is_asked_for() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    for (flag, terminal) in [("-t", true), ("-T", false)] {
        let ended = world.try_run("laptop", &["ssh", flag, "root@shed", "test -t 1; echo $?"]);
        assert_eq!(ended.code, Some(0), "{flag}: {ended:?}");
        assert_eq!(ended.stdout.trim() == "0", terminal, "{flag}: {ended:?}");
    }
}

#[test]
fn a_port_of_this_machine_leads_to_one_that_the_node_reaches() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let local = free.local_addr().expect("it is bound");
    drop(free);
    let spec = format!("{local}:127.0.0.1:{}", serve_echo().port());
    let line = ["ssh", "-N", "-L", &spec, "root@shed"];
    let _forward = world.spawn(&mut world.ginnel("laptop", &line));
    wait_for("an echo", || echoes(local, b"by ssh"));
}

#[test]
fn a_login_that_is_refused_is_told_from_a_command_that_failed() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    for (target, sentence) in [
        ("nobody@shed", "your role permits the principals"),
        ("admin@shed", "does not let us in as `admin`"),
        ("root@nowhere", "does not exist"),
    ] {
        let ended = log_in(&world, target, "true");
        assert_eq!(ended.code, Some(255), "{target}: {ended:?}");
        assert!(ended.stderr.contains(sentence), "{target}: {ended:?}");
    }
}

#[test]
fn a_host_without_a_certificate_of_the_organisation_is_not_believed() {
    let Some((world, _laptop, shed)) = world() else {
        return;
    };
    drop(shed);
    for name in ["user_ca", "other_ca", "host"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let made = finish(keygen.arg(world.path(name)));
        assert_eq!(made.code, Some(0), "{made:?}");
    }
    let mut sign = Command::new("ssh-keygen");
    sign.args(["-q", "-h", "-I", "shed", "-n", "shed,shed.internal", "-s"]);
    sign.arg(world.path("other_ca"));
    let made = finish(sign.arg(world.path("host.pub")));
    assert_eq!(made.code, Some(0), "{made:?}");
    let path = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    let line = [
        "ssh-server",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--user-ca",
        &path("user_ca.pub"),
        "--host-key",
        &path("host"),
    ];
    let certificate = path("host-cert.pub");
    let certified = [&line[..], &["--host-certificate", &certificate]].concat();
    for (line, port, sentence) in [
        (&line[..], 2201_u16, "it shows a key without a certificate"),
        (&certified, 2202, "it was signed by another CA"),
    ] {
        let (_server, said) = world.start("elsewhere", line, "ssh at");
        let target = said.trim_start_matches("ssh at ").parse();
        let service = format!("ssh{port}");
        world.publish("shed", &service, port, target.expect("an address"));
        let _shed = world.up("shed");
        let port = port.to_string();
        let ended = world.try_run("laptop", &["ssh", "-p", &port, "root@shed", "true"]);
        assert_eq!(ended.code, Some(255), "{ended:?}");
        assert!(ended.stderr.contains(sentence), "{ended:?}");
    }
}
