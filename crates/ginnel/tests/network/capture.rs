//! A capture that gives the node's key away, and the key that takes its place.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    outliving::endpoints,
    world::{Process, WAIT_MAX, World, echoes, finish, lacks, serve_echo, wait_for},
};

#[test]
fn everything_under_three_sessions_is_opened_and_the_key_is_another_one_afterwards() {
    let (mut world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "echo.svc", 7000);
    let mut open = TcpStream::connect(local).expect("the forward listens");
    open.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    let mut echo = || {
        open.write_all(b"still").expect("it is open");
        open.read_exact(&mut [0; 5]).expect("it goes on");
    };
    echo();

    let mode = || {
        let device = fs::metadata("/dev/null").expect("a device");
        device.permissions().mode()
    };
    let of_everybody = mode();
    let refused = world.try_run("laptop", &["capture", "--keys", "-w", "/dev/null"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(mode(), of_everybody);
    assert!(refused.stderr.contains("--yes"), "{refused:?}");

    let (before, file) = (public_key(&world), world.path("keys.pcapng"));
    let mut capture = begin(&world, &file);
    assert!(world.run("laptop", &["status"]).contains("with keys"));
    // Only what the capture has keys for is in it: within 5 s of a handshake there is no other.
    wait_for("packets of a session that it knows", || {
        echo();
        fs::metadata(&file).is_ok_and(|file| file.len() > 4_096)
    });
    // The gateway writes down where its nodes are every two seconds at most.
    wait_for("both endpoints on disk", || {
        endpoints(&world, "data/gateway").len() == 2
    });
    for _ in 0..2 {
        // The gateway in it has lost every session when it is back.
        world.server.take().expect("it runs").kill();
        world.restart_server();
        wait_for("a session with it", || echoes(local, b"once more"));
    }
    echo();
    capture.signal("INT");
    let ended = capture.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("has a new key"), "{ended:?}");
    let mode = fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    assert_ne!(public_key(&world), before);
    // What was open goes on under the new key, and so does what comes.
    echo();
    assert!(echoes(local, b"under the new key"));
    let rows = world.run("laptop", &["audit", "list"]);
    assert_eq!(rows.matches("node_key_replaced").count(), 1, "{rows}");
    assert!(!world.path("laptop/private.key.next").exists());

    if lacks("tshark") {
        return;
    }
    let sealed = count(&file, "wg.type == 4");
    assert!(sealed > 10, "{sealed}");
    let opened = count(&file, "wg.type == 4 && (ip || ipv6 || wg.keepalive)");
    assert_eq!(opened, sealed);
    let sessions = count(&file, "wg.handshake_ok == 1 && wg.type == 2");
    assert!(sessions >= 3, "{sessions}");
    let told = finish(Command::new("capinfos").arg(&file));
    assert_eq!(told.code, Some(0), "{told:?}");
}

#[test]
fn a_key_that_was_given_away_is_replaced_by_the_next_process_when_this_one_is_killed() {
    let (world, laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let before = public_key(&world);
    let mut capture = begin(&world, &world.path("keys.pcapng"));
    laptop.kill();
    // The command asks what became of the key, and so starts the next process.
    capture.ended();
    wait_for("another key", || {
        let status = world.json("laptop", &["status"]);
        status["key_exposed"] == false && status["node"]["public_key"] != before.as_str()
    });
    wait_for("the shed, under the new key", || {
        let line = ["ping", "shed", "-c", "1"];
        world.try_run("laptop", &line).code == Some(0)
    });
}

#[test]
fn a_capture_that_is_refused_leaves_the_file_as_it_was() {
    let (world, _laptop) = World::with_laptop();
    let file = world.path("precious.pcapng");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, "yesterday's").expect("own file");
    for asked in [&["--node", "nobody"][..], &["--filter", "tcp port"]] {
        let line = [&["capture", "-w", path], asked].concat();
        let refused = world.try_run("laptop", &line);
        assert_ne!(refused.code, Some(0), "{refused:?}");
        let kept = fs::read_to_string(&file).expect("own file");
        assert_eq!(kept, "yesterday's", "{asked:?}");
    }
    let line = ["capture", "-w", path, "--duration", "100ms"];
    world.run("laptop", &line);
    let now = fs::read(&file).expect("own file");
    assert!(
        now.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]),
        "a section header"
    );
}

#[test]
fn the_tunnel_is_among_the_interfaces_of_tshark() {
    if lacks("tshark") {
        return;
    }
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let directory = world.path("extcap");
    fs::create_dir(&directory).expect("a new directory");
    symlink(env!("CARGO_BIN_EXE_ginnel"), directory.join("ginnel")).expect("a new link");
    let listed = finish(&mut tshark(&world, &directory, "-D"));
    for name in ["ginnel-inner", "ginnel-outer"] {
        assert!(listed.stdout.contains(name), "{listed:?}");
    }
    // Probes of the path MTU are longer.
    let mut tshark = tshark(
        &world,
        &directory,
        "-l -n -N n -i ginnel-inner -f 'icmp6 and less 200' -c 4 \
         -T fields -E separator=, -e icmpv6.type -e ipv6.src_host -e ipv6.dst_host",
    );
    let mut tshark = world.spawn(&mut tshark);
    let mut packets = Vec::new();
    wait_for("four packets", || {
        world.try_run("laptop", &["ping", "shed", "-c", "1"]);
        packets.extend(tshark.lines_so_far());
        packets.len() >= 4
    });
    assert_eq!(tshark.ended().code, Some(0));
    let request = "128,laptop.default.internal,shed.default.internal";
    let reply = "129,shed.default.internal,laptop.default.internal";
    let mut seen = [request, reply].into_iter();
    assert!(
        seen.all(|line| packets.iter().any(|packet| packet == line)),
        "{packets:?}"
    );
}

#[test]
fn nodes_have_their_names_in_a_capture_also_those_that_came_meanwhile() {
    if lacks("tshark") {
        return;
    }
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let file = world.path("names.pcapng");
    let line = ["capture", "-w", file.to_str().expect("UTF-8")];
    let mut capture = world.spawn(&mut world.ginnel("laptop", &line));
    let named = |name: &str| {
        let filter = format!("ipv6.dst_host == \"{name}.default.internal\"");
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-N", "n", "-Y", &filter, "-r"]);
        // A file that is written still may end within a block.
        let ended = finish(tshark.arg(&file).stdin(Stdio::null()));
        ended.stdout.lines().count() > 0
    };
    wait_for("a packet to the shed", || {
        world.try_run("laptop", &["ping", "shed", "-c", "1"]);
        named("shed")
    });
    let _barn = world.machine("barn", "other", 7000, serve_echo());
    wait_for("a packet to the newcomer", || {
        world.try_run("laptop", &["ping", "barn", "-c", "1"]);
        named("barn")
    });
    capture.signal("INT");
    let ended = capture.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(named("laptop"));
    let told = finish(Command::new("capinfos").arg(&file));
    assert_eq!(told.code, Some(0), "{told:?}");
}

/// tshark with one directory of foreign interfaces; root's tshark knows only the system's.
fn tshark(world: &World, directory: &Path, line: &str) -> Command {
    let script = format!(
        "if [ $(id -u) = 0 ]; then \
         mount --bind \"$WIRESHARK_EXTCAP_DIR\" \
         \"$(tshark -G folders | sed -n 's/^Extcap path:[[:space:]]*//p')\"; fi && \
         exec tshark {line}"
    );
    let mut command = match os::process::euid() {
        0 => {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &script]);
            command
        }
        1.. => {
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            command
        }
    };
    command
        .env("WIRESHARK_EXTCAP_DIR", directory)
        .env("GINNEL_STATE", world.path("laptop"))
        .stdin(Stdio::null());
    command
}

/// Starts a capture with keys at `laptop` and waits for its first packet.
fn begin(world: &World, file: &Path) -> Process {
    let path = file.to_str().expect("UTF-8");
    let line = ["capture", "--keys", "--yes", "-w", path];
    let capture = world.spawn(&mut world.ginnel("laptop", &line));
    wait_for("the capture", || {
        fs::metadata(file).is_ok_and(|file| file.len() > 0)
    });
    capture
}

fn public_key(world: &World) -> String {
    let status = world.json("laptop", &["status"]);
    let key = status["node"]["public_key"].as_str();
    key.expect("it has a key").to_owned()
}

/// Counts the frames that a filter finds with the keys in the file.
fn count(file: &Path, filter: &str) -> usize {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-Y", filter, "-r"]).arg(file);
    let ended = finish(tshark.stdin(Stdio::null()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().count()
}
