//! `ginnel ssh`, `cp` and `sftp` at the SSH server of another node: who is let in, how a command
//! ends, what is forwarded, and what becomes of files.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::world::{
    Ended, Process, WAIT_MAX, World, echoes, files_below, finish, note, now, pids_with, serve,
    serve_echo, signal, wait_for,
};

/// A laptop, and a machine that serves SSH; `None` where no certificate names the account of this
/// process.
pub(crate) fn world() -> Option<(World, Process, Process)> {
    if !is_root() {
        return None;
    }
    let (world, laptop) = World::with_laptop();
    world.join("shed");
    let shed = world.up_with("shed", &["--ssh"]);
    wait_for_login(&world);
    Some((world, laptop, shed))
}

fn is_root() -> bool {
    let own = finish(Command::new("id").arg("-un")).stdout;
    let is_root = own.trim() == "root";
    if !is_root {
        note("skipped: the first administrator may log in as `root` and `admin` only");
    }
    is_root
}

/// The server's certificate is asked for after its node is ready.
fn wait_for_login(world: &World) {
    wait_for("an SSH server", || {
        log_in(world, "root@shed", "true").code == Some(0)
    });
}

pub(crate) fn log_in(world: &World, target: &str, command: &str) -> Ended {
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

/// Each request at the control plane is a connection of its own. A name costs nothing, because the
/// map has it.
#[test]
fn a_login_costs_a_certificate_and_its_agent_a_handshake_and_the_map() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let requests = Arc::new(AtomicUsize::new(0));
    let server = world.url.trim_start_matches("https://").parse();
    let relay = serve_relay(server.expect("an address"), Arc::clone(&requests));
    let url = format!("https://{relay}");
    let line = ["login", &url, "--token", &world.admin, "--name", "laptop"];
    world.run("laptop", &line);
    world.join("shed");
    let _shed = world.up_with("shed", &["--ssh"]);
    wait_for_login(&world);
    let agent = || pids_with(&world.path("laptop"));
    for pid in agent() {
        signal(pid, "TERM");
    }
    wait_for("the end of the agent", || agent().is_empty());

    let (begun, before) = (now(), requests.load(Ordering::Relaxed));
    let made = || requests.load(Ordering::Relaxed) - before;
    assert_eq!(log_in(&world, "root@shed", "true").code, Some(0));
    // The certificate, the map, and the question for the next map, which waits.
    wait_for("the agent to follow the map", || made() >= 3);
    assert_eq!(log_in(&world, "root@shed", "true").code, Some(0));
    assert_eq!(made(), 4, "a certificate more");
    let metrics = world.run("laptop", &["metrics"]);
    let handshakes = metrics
        .lines()
        .find_map(|line| line.strip_prefix("ginnel_handshakes_completed_total "));
    // REKEY_AFTER_TIME (whitepaper, 6.1), which only a very slow machine reaches.
    let due = 1 + (now() - begun).as_secs() / 120;
    let handshakes: u64 = handshakes.and_then(|n| n.parse().ok()).expect("a count");
    assert!((1..=due).contains(&handshakes), "{handshakes}");
}

/// Leads to `server` and counts the connections.
fn serve_relay(server: SocketAddr, count: Arc<AtomicUsize>) -> SocketAddr {
    serve(move |near| {
        count.fetch_add(1, Ordering::Relaxed);
        let Ok(far) = TcpStream::connect(server) else {
            return;
        };
        let copy = |from: &TcpStream, to: &TcpStream| {
            let ends = from
                .try_clone()
                .and_then(|from| Ok((from, to.try_clone()?)));
            let (mut from, mut to) = ends.expect("a second handle");
            thread::spawn(move || {
                // Either side may go away at any time.
                drop(std::io::copy(&mut from, &mut to));
                drop(to.shutdown(Shutdown::Write));
            });
        };
        copy(&near, &far);
        copy(&far, &near);
    })
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

#[test]
fn a_port_of_the_node_leads_to_one_that_this_machine_reaches() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let echo = serve_echo();
    let spec = format!("0:127.0.0.1:{}", echo.port());
    let line = ["ssh", "-N", "-R", &spec, "root@shed"];
    let forward = world.spawn(&mut world.ginnel("laptop", &line));
    let sign = format!(" of shed leads to 127.0.0.1 port {}", echo.port());
    wait_for("a port", || forward.stderr().contains(&sign));
    let said = forward.stderr();
    let port = said.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    let there = (Ipv4Addr::LOCALHOST, port.expect("a port")).into();
    assert!(echoes(there, b"back by ssh"));
    let taken = serve_echo().port();
    let spec = format!("{taken}:127.0.0.1:{}", echo.port());
    let refused = world.try_run("laptop", &["ssh", "-N", "-R", &spec, "root@shed"]);
    assert_eq!(refused.code, Some(255), "{refused:?}");
    assert!(refused.stderr.contains("does not listen"), "{refused:?}");
    drop(forward);
    wait_for("the end of the port", || !echoes(there, b"x"));
}

#[test]
fn a_socks_port_reaches_what_the_node_reaches() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let line = ["ssh", "-N", "-D", "0", "root@shed"];
    let proxy = world.spawn(&mut world.ginnel("laptop", &line));
    wait_for("a port", || proxy.stderr().contains(" leads to shed"));
    let said = proxy.stderr();
    let local = said.split_whitespace().next().expect("an address");
    let echo = serve_echo().port();
    for (port, status) in [(echo, 0), (unused_port(), 4)] {
        let mut stream = TcpStream::connect(local).expect("it listens");
        stream.set_read_timeout(Some(WAIT_MAX)).expect("a socket");
        let mut request = vec![5, 1, 0, 5, 1, 0, 3, 9];
        request.extend(b"localhost");
        request.extend(port.to_be_bytes());
        // What comes with the request, before its answer, must not be lost.
        request.extend(b"by ");
        stream.write_all(&request).expect("it reads");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!((&answer[..3], answer[3]), (&[5, 0, 5][..], status));
        if status == 0 {
            stream.write_all(b"socks").expect("it reads");
            stream.shutdown(Shutdown::Write).expect("a socket");
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("it answers");
            assert_eq!(back, b"by socks");
        }
    }
}

#[test]
fn the_agent_is_there_when_it_is_forwarded_and_only_then() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let socket = world.path("agent.socket");
    let _agent = world.spawn(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    wait_for("an agent", || socket.exists());
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "a key of mine", "-f"]);
    assert_eq!(finish(keygen.arg(world.path("mine"))).code, Some(0));
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(world.path("mine"));
    assert_eq!(finish(add.env("SSH_AUTH_SOCK", &socket)).code, Some(0));
    let mut with = world.ginnel("laptop", &["ssh", "-A", "root@shed", "ssh-add -l"]);
    let ended = finish(with.env("SSH_AUTH_SOCK", &socket));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("a key of mine"), "{ended:?}");
    let line = ["ssh", "root@shed", "echo -n \"$SSH_AUTH_SOCK\""];
    let ended = finish(world.ginnel("laptop", &line).env("SSH_AUTH_SOCK", &socket));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    let mut without = world.ginnel("laptop", &["ssh", "-A", "root@shed", "true"]);
    let ended = finish(without.env_remove("SSH_AUTH_SOCK"));
    assert_eq!(ended.code, Some(255), "{ended:?}");
    assert!(ended.stderr.contains("no agent to forward"), "{ended:?}");
}

#[test]
fn files_and_trees_are_copied_both_ways_and_half_a_file_has_no_name() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let path = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    let there = |name: &str| format!("root@shed:{}", path(name));
    // More than all pieces that are on their way at once, and not a whole number of them.
    let data: Vec<u8> = (0..9_000_001_u32).map(|n| (n % 251) as u8).collect();
    std::fs::create_dir_all(world.path("tree/a/b")).expect("a directory");
    std::fs::create_dir(world.path("far")).expect("a directory");
    std::fs::write(world.path("tree/a/large"), &data).expect("a file");
    std::fs::write(world.path("tree/a/b/empty"), b"").expect("a file");
    std::os::unix::fs::symlink(".", world.path("tree/a/round")).expect("a link");
    let mode = |name: &str, mode: Option<u32>| {
        if let Some(mode) = mode {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(world.path(name), mode).expect("a file");
        }
        let found = std::fs::metadata(world.path(name)).expect("a file");
        found.permissions().mode() & 0o777
    };
    mode("tree/a/large", Some(0o750));
    world.run("laptop", &["cp", "-r", &path("tree"), &there("far")]);
    world.run("laptop", &["cp", "-r", &there("far/tree"), &path("back")]);
    for name in ["far/tree", "back"] {
        let large = format!("{name}/a/large");
        assert!(
            std::fs::read(world.path(&large)).expect("a file") == data,
            "{name}"
        );
        assert_eq!(mode(&large, None), 0o750, "{name}");
        assert!(world.path(&format!("{name}/a/b/empty")).exists(), "{name}");
        // A link to a directory is left out.
        assert!(!world.path(&format!("{name}/a/round")).exists(), "{name}");
    }
    // It takes the place of what was there.
    std::fs::write(world.path("small"), b"small").expect("a file");
    world.run(
        "laptop",
        &["cp", &path("small"), &there("far/tree/a/large")],
    );
    let now = std::fs::read(world.path("far/tree/a/large")).expect("a file");
    assert_eq!(now, b"small");
    for (line, sentence) in [
        (["cp", &there("far"), &path("x")], "by -r"),
        (["cp", &there("nothing"), &path("x")], "does not exist"),
    ] {
        let ended = world.try_run("laptop", &line);
        assert_eq!(ended.code, Some(1), "{line:?}: {ended:?}");
        assert!(ended.stderr.contains(sentence), "{line:?}: {ended:?}");
    }
    let partial = files_below(&world.path("far")).into_iter();
    let partial = partial.chain(files_below(&world.path("back")));
    let partial: Vec<_> = partial.filter(|path| path.extension().is_some()).collect();
    assert_eq!(partial, Vec::<std::path::PathBuf>::new());
}

/// A refusal names the path and what is wrong with it; `%` is the directory of the test.
#[test]
fn a_copy_that_cannot_be_says_what_is_missing_and_leaves_nothing() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let directory = world.path("");
    let directory = directory.to_str().expect("UTF-8").trim_end_matches('/');
    let place = |text: &str| text.replace('%', directory);
    let odd = "-odd\nname";
    for name in ["far/taken", "near/taken"] {
        std::fs::create_dir_all(world.path(name)).expect("a directory");
    }
    for name in ["taken", "file", odd] {
        std::fs::write(world.path(name), b"text").expect("a file");
    }
    let there = "the directory `%/none` at the node does not exist";
    let here = "the directory `%/none` does not exist";
    for (from, to, sentence) in [
        ("%/file", "root@shed:%/none/x", there),
        ("%/file", "root@shed:%/none/", "the directory `%/none/` at"),
        ("%/far", "root@shed:%/none/x", there),
        ("root@shed:%/file", "%/none/x", here),
        ("root@shed:%/file", "%/none/", "the directory `%/none/` "),
        ("root@shed:%/far", "%/none/x", here),
        ("%/none", "root@shed:%/far", "`%/none`: No such file"),
        ("%/no\n", "root@shed:%/far", "`%/no\\n`: No such file"),
        ("root@shed:%/none", "%/near", "`%/none` at the node does"),
        ("%/taken", "root@shed:%/far", "`%/far/taken` at the node: "),
        ("%/near", "root@shed:%/file", "`%/file` at the node: "),
        ("root@shed:%/taken", "%/near", "`%/near/taken`: Is a dir"),
    ] {
        let ended = world.try_run("laptop", &["cp", "-r", &place(from), &place(to)]);
        assert_eq!(ended.code, Some(1), "{from} {to}: {ended:?}");
        let is_told = ended.stderr.contains(&place(sentence));
        assert!(is_told, "{from} {to}: {ended:?}");
    }
    for name in ["far", "near"] {
        let left = files_below(&world.path(name));
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{name}");
    }
    // No name is too odd to be copied.
    for (from, to) in [("%/", "root@shed:%/far"), ("root@shed:%/far/", "%/near")] {
        let from = place(from) + odd;
        world.run("laptop", &["cp", &from, &place(to)]);
    }
    let back = std::fs::read(world.path("near").join(odd)).expect("a file");
    assert_eq!(back, b"text");
}

/// A file that may not become longer stands for a disk that is full.
#[test]
fn a_copy_for_which_there_is_no_room_says_where_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (world, _laptop) = World::with_laptop();
    world.join("shed");
    let mut node = world.ginnel("shed", &["up", "--user", "--ssh"]);
    let mut node = world.spawn(&mut short_of_room(&mut node));
    node.until("is ready");
    wait_for_login(&world);
    let path = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    let there = |name: &str| format!("root@shed:{}", path(name));
    for name in ["far", "near"] {
        std::fs::create_dir(world.path(name)).expect("a directory");
    }
    std::fs::write(world.path("large"), vec![7; 9 << 20]).expect("a file");
    for (from, to, sentence) in [
        (
            path("large"),
            there("far"),
            format!("`{}` at the node: ", path("far/large")),
        ),
        (
            there("large"),
            path("near"),
            format!("`{}`: ", path("near/large")),
        ),
    ] {
        let mut copy = world.ginnel("laptop", &["cp", &from, &to]);
        let ended = finish(&mut short_of_room(&mut copy));
        assert_eq!(ended.code, Some(1), "{from}: {ended:?}");
        let sentence = format!("{sentence}File too large");
        assert!(ended.stderr.contains(&sentence), "{from}: {ended:?}");
    }
    for name in ["far", "near"] {
        let left = files_below(&world.path(name));
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "{name}");
    }
}

/// The command, whose files end at some MiB (at 4 or 8, as the shell counts).
fn short_of_room(command: &mut Command) -> Command {
    let script = "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(command.get_program());
    shell.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let path = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    std::fs::create_dir(world.path("far")).expect("a directory");
    // It takes no room, and longer than the test waits for it to begin.
    let large = std::fs::File::create(world.path("large")).expect("a file");
    large.set_len(1 << 40).expect("a hole");
    let has = |name: &str| {
        std::fs::read_dir(world.path(name))
            .expect("a directory")
            .count()
    };
    std::fs::create_dir(world.path("near")).expect("a directory");
    for (from, to, at) in [
        (path("large"), format!("root@shed:{}/x", path("far")), "far"),
        (
            format!("root@shed:{}", path("large")),
            path("near/x"),
            "near",
        ),
    ] {
        let mut copy = world.spawn(&mut world.ginnel("laptop", &["cp", &from, &to]));
        wait_for("a beginning", || has(at) == 1);
        assert!(!world.path(at).join("x").exists());
        copy.signal("INT");
        let ended = copy.ended();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        wait_for("nothing to be left", || has(at) == 0);
    }
}

#[test]
fn a_batch_of_sftp_does_what_it_says_and_ends_where_it_fails() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let far = world.path("far");
    std::fs::create_dir(&far).expect("a directory");
    std::fs::write(world.path("one file"), b"one").expect("a file");
    let batch = |text: &str| {
        std::fs::write(world.path("batch"), text).expect("a file");
        let path = world.path("batch").to_str().expect("UTF-8").to_owned();
        world.try_run("laptop", &["sftp", "-b", &path, "root@shed"])
    };
    let (near, far) = (
        world.path("").display().to_string(),
        far.display().to_string(),
    );
    let ended = batch(&format!(
        "# all of it\nlcd {near}\ncd {far}\npwd\nmkdir d\nput 'one file' d\nrename d/\"one file\" \
         two\nget two back\nls\n-rm nothing\nrmdir d\nls\nexit\nrm two\n"
    ));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, format!("{far}\nd/\ntwo\ntwo\n"));
    assert!(ended.stderr.contains("`nothing`") || ended.stderr.contains("/nothing`"));
    let back = std::fs::read(world.path("back")).expect("a file");
    assert_eq!(back, b"one");
    for (text, sentence) in [
        ("rm nothing\nmkdir made\n", "no such file"),
        ("mkdir a/b\nmkdir made\n", "the directory `"),
        ("rename nothing else\nmkdir made\n", "rename `"),
        ("frobnicate\n", "is no command"),
        ("ls 'a\n", "has no end"),
    ] {
        let ended = batch(&format!("cd {far}\n{text}"));
        assert_eq!(ended.code, Some(1), "{text}: {ended:?}");
        assert!(ended.stderr.contains(sentence), "{text}: {ended:?}");
    }
    assert!(
        !world.path("far/made").exists(),
        "the first failure ends it"
    );
}

fn unused_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
