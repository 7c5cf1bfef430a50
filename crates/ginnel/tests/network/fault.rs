//! What goes wrong for people: each time a sentence that names the hop, a remedy and the exit code.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use crate::world::{
    Ended, WAIT_MAX, World, echoes, finish, free_udp, serve, serve_echo, wait_for, word,
};

/// A failed command says `sentence` and then `remedy`, and nothing else on stderr.
#[track_caller]
fn check(ended: &Ended, sentence: &str, remedy: &str) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    let said = lines[0].strip_prefix("ginnel: ");
    assert!(
        said.is_some_and(|said| said.contains(sentence)),
        "{ended:?}"
    );
    let advised = lines[1].strip_prefix("  ");
    assert!(
        advised.is_some_and(|said| said.contains(remedy)),
        "{ended:?}"
    );
    assert_eq!(ended.stdout, "");
}

#[track_caller]
fn try_join(world: &World, url: &str, token: &str, name: &str) -> Ended {
    let line = ["join", url, "--token", token, "--name", name];
    world.try_run(&format!("state-of-{name}"), &line)
}

#[test]
fn a_token_that_is_no_token() {
    let world = World::new();
    let remedy = "copy the whole token, from `ginnel-` to its last letter";
    let damaged = &world.admin[..world.admin.len() - 7];
    for garbage in ["", "garbage", "ginnel-join-", damaged] {
        let ended = try_join(&world, &world.url, garbage, "a");
        check(&ended, "sign-in: read the token: ", remedy);
        assert!(!ended.stderr.contains(damaged), "a secret on stderr");
    }
}

#[test]
fn a_token_of_the_wrong_kind() {
    let (world, _laptop) = World::with_laptop();
    let ended = try_join(&world, &world.url, &world.admin, "a");
    check(
        &ended,
        "sign-in: ",
        "`ginnel token add`, which prints a join token",
    );
    let join = world.token(&[]);
    let ended = world.try_run("b", &["login", &world.url, "--token", &join, "--name", "b"]);
    check(&ended, "sign-in: ", "a machine uses `join`");
    let line = [
        "gateway",
        &world.url,
        "--token",
        &join,
        "--endpoint",
        "127.0.0.1:1",
    ];
    check(
        &world.try_run("c", &line),
        "sign-in: ",
        "`ginnel token add --kind gateway`",
    );
}

#[test]
fn a_token_that_expired_was_used_up_or_was_revoked() {
    let (world, _laptop) = World::with_laptop();
    let remedy = "ask an administrator for a new one: `ginnel token add`";
    let used = world.token(&[]);
    world.join_with("shed", "shed", &used);
    let ended = try_join(&world, &world.url, &used, "a");
    check(
        &ended,
        "sign-in: the token has been used as often as it may",
        remedy,
    );
    let revoked = world.token(&[]);
    let tokens = world.json("laptop", &["token", "list"]);
    let newest = tokens.as_array().and_then(|tokens| tokens.last());
    let id = newest.expect("it is listed")["id"].to_string();
    let shown = world.json("laptop", &["token", "show", &id]);
    assert_eq!(shown["uses_max"], 1);
    world.run("laptop", &["token", "remove", &id]);
    let ended = try_join(&world, &world.url, &revoked, "b");
    check(&ended, "sign-in: the token was revoked", remedy);
    let short = world.token(&["--ttl", "1s", "--uses", "1000"]);
    let mut number = 0;
    let mut ended = None;
    wait_for("the end of the token", || {
        number += 1;
        let tried = try_join(&world, &world.url, &short, &format!("c{number}"));
        ended = (tried.code != Some(0)).then_some(tried);
        ended.is_some()
    });
    check(
        &ended.expect("it failed"),
        "sign-in: the token has expired",
        remedy,
    );
}

#[test]
fn a_token_file_that_is_not_there_and_a_gateway_without_a_token() {
    let world = World::new();
    let path = world.path("absent");
    let path = path.to_str().expect("UTF-8");
    let join = ["join", &world.url, "--name", "a"];
    let ended = world.try_run("a", &[&join[..], &["--token-file", path]].concat());
    check(&ended, "sign-in: read the token from `", "you may read it");
    let first = ["gateway", &world.url, "--endpoint", "127.0.0.1:1"];
    check(
        &world.try_run("b", &first),
        "sign-in: the first start of a gateway needs a token",
        "--token-file",
    );
}

/// Reads the first of ten bytes and closes: what was not read makes the system reset.
fn serve_reset() -> SocketAddr {
    serve(|mut stream| drop(stream.read_exact(&mut [0])))
}

/// Sends ten bytes over an open connection and is reset.
#[track_caller]
fn is_reset(mut stream: TcpStream) {
    stream.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    stream.write_all(&[7; 10]).expect("it is taken");
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    assert_eq!(
        read.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
}

#[test]
fn a_reset_by_the_remote_port_is_a_failure_of_dial_and_a_reset_for_local_programs() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "rude", 7000, serve_reset());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    let input = world.path("input");
    fs::write(&input, [7; 10]).expect("write");
    let mut dial = world.ginnel("laptop", &["dial", "shed", "7000"]);
    dial.stdin(File::open(&input).expect("it was written"));
    check(
        &finish(&mut dial),
        "remote port: shed port 7000 closed the connection by reset",
        "the log of the program",
    );
    is_reset(TcpStream::connect(local).expect("it listens"));

    let line = ["proxy", "--http", "127.0.0.1:0", "--socks5", "127.0.0.1:0"];
    let (mut proxy, socks5) = world.start("laptop", &line, "socks5 at");
    let http = proxy.until("http at");
    let connect = |line: &str| {
        let address = line.split_whitespace().last().expect("an address");
        TcpStream::connect(address).expect("it listens")
    };
    let mut stream = connect(&http);
    let request = b"CONNECT shed:7000 HTTP/1.1\r\nHost: shed:7000\r\n\r\n";
    stream.write_all(request).expect("it is taken");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        answer.extend(byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    is_reset(stream);

    let mut stream = connect(&socks5);
    // No authentication; CONNECT to the name `shed` (RFC 1928, 3 and 4).
    let request = b"\x05\x01\x00\x05\x01\x00\x03\x04shed\x1b\x58";
    stream.write_all(request).expect("it is taken");
    let mut answer = [0; 2 + 4 + 16 + 2];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer[..4], [5, 0, 5, 0]);
    is_reset(stream);
}

#[test]
fn a_server_that_does_not_answer() {
    let mut world = World::new();
    world.server.take().expect("it runs").kill();
    let line = [
        "login",
        &world.url,
        "--token",
        &world.admin,
        "--name",
        "laptop",
    ];
    let ended = world.try_run("laptop", &line);
    check(&ended, "TCP: 127.0.0.1:", "check that the server runs");
    let token = world.admin.clone();
    for (url, sentence, remedy) in [
        (
            "https://nobody.invalid:1",
            "DNS: `nobody.invalid`",
            "check the URL",
        ),
        (
            "vpn.example",
            "is not the URL of a server",
            "as the server printed it",
        ),
    ] {
        let line = ["login", url, "--token", &token, "--name", "laptop"];
        check(&world.try_run("laptop", &line), sentence, remedy);
    }
}

#[test]
fn a_server_that_is_another_one() {
    let (ours, theirs) = (World::new(), World::new());
    let line = [
        "login",
        &theirs.url,
        "--token",
        &ours.admin,
        "--name",
        "laptop",
    ];
    let ended = ours.try_run("laptop", &line);
    let sentence = "is not the server that made the token";
    check(
        &ended,
        sentence,
        "check the URL, or get a new token of that server",
    );
}

#[test]
fn udp_that_is_blocked() {
    let (world, _laptop) = World::with_laptop();
    let gateway = world.gateway("edge");
    wait_for("the tunnel to the gateway", || {
        world
            .try_run("laptop", &["ping", "laptop", "-c", "1"])
            .code
            .is_some()
            && world.json("laptop", &["status"])["node"]["peers"][0]["name"] == "edge"
    });
    // It has the port, and nothing that is sent there is answered.
    gateway.signal("STOP");
    world.join("shed");
    let ended = world.try_run("shed", &["dial", "laptop", "22", "--timeout", "4"]);
    check(
        &ended,
        "handshake: no answer from the gateway at 127.0.0.1:",
        "let UDP to 127.0.0.1:",
    );
}

#[test]
fn a_port_that_another_program_has() {
    let world = World::new();
    let taken = world.url.trim_start_matches("https://");
    let data = world.path("second");
    let data = data.to_str().expect("UTF-8");
    let line = [
        "server",
        "--data",
        data,
        "--listen",
        taken,
        "--wireguard",
        "127.0.0.1:0",
    ];
    let ended = world.try_run("x", &line);
    check(
        &ended,
        &format!("HTTPS: listen at {taken}: "),
        "choose one with --listen",
    );
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let taken = udp.local_addr().expect("bound").to_string();
    let line = [
        "server",
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--wireguard",
        &taken,
    ];
    let ended = world.try_run("x", &line);
    check(&ended, &format!("UDP: listen at {taken}"), "--wireguard");
    world.login("laptop");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = tcp.local_addr().expect("bound").to_string();
    let ended = world.try_run("laptop", &["proxy", "--http", &taken]);
    check(
        &ended,
        &format!("local port: listen at {taken}"),
        "another port",
    );
    let ended = world.try_run("laptop", &["forward", &format!("{taken}:laptop:22")]);
    check(
        &ended,
        &format!("local port: listen at {taken}"),
        "another port",
    );
}

#[test]
fn a_second_server_on_one_directory() {
    let world = World::new();
    let data = world.path("data");
    let data = data.to_str().expect("UTF-8");
    let free = free_udp();
    let line = [
        "server",
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--wireguard",
        &free,
    ];
    let ended = world.try_run("x", &line);
    check(
        &ended,
        "another server uses",
        "stop it, or name another directory",
    );
}

#[test]
fn a_machine_that_is_not_enrolled() {
    let world = World::new();
    for line in [
        &["up", "--user"][..],
        &["ping", "a"],
        &["whoami"],
        &["logout"],
        &["node", "list"],
        &["service", "add", "a", "--port", "1"],
    ] {
        let ended = world.try_run("nobody", line);
        check(
            &ended,
            "this machine is not enrolled",
            "enrol it: `ginnel login URL",
        );
    }
}

#[test]
fn a_machine_that_is_enrolled_already() {
    let (world, _laptop) = World::with_laptop();
    let token = world.token(&[]);
    let line = ["join", &world.url, "--token", &token, "--name", "again"];
    let ended = world.try_run("laptop", &line);
    let sentence = "already enrolled as `laptop` at https://";
    check(
        &ended,
        sentence,
        "run `ginnel logout` first, or keep a second node with --state",
    );
    // The token was not spent on it.
    world.join_with("again", "again", &token);
}

#[test]
fn names_that_are_taken_unknown_or_reserved() {
    let (world, _laptop) = World::with_laptop();
    let token = world.token(&["--uses", "2"]);
    let ended = try_join(&world, &world.url, &token, "laptop");
    let sentence = "server: organisation `default` has a node `laptop` already";
    check(&ended, sentence, "choose another name");
    let ended = try_join(&world, &world.url, &token, "svc");
    check(
        &ended,
        "server: `svc` has a meaning of its own",
        "choose another name",
    );
    let ended = world.try_run("laptop", &["node", "remove", "nobody"]);
    check(
        &ended,
        "no node has the name `nobody`",
        "see `ginnel node list`",
    );
    let ended = world.try_run("laptop", &["node", "remove", "server"]);
    check(
        &ended,
        "policy: the server's own gateway ends with the server",
        "administrator",
    );
    let ended = world.try_run("laptop", &["token", "add", "--org", "nobody"]);
    check(
        &ended,
        "server: there is no organisation `nobody`",
        "`list`",
    );
    world.join("shed");
    let ended = world.try_run("shed", &["node", "list"]);
    check(
        &ended,
        "sign-in: nobody has signed in on this machine",
        "ginnel login URL",
    );
}

#[test]
fn services_that_collide_or_refuse() {
    let (world, _laptop) = World::with_laptop();
    let echo = serve_echo();
    let refuses = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let closed = refuses.local_addr().expect("bound");
    drop(refuses);
    let _shed = world.machine("shed", "echo", 7000, echo);
    let ended = world.try_run("shed", &["service", "add", "other", "--port", "7000"]);
    let sentence = "server: node `shed` offers `echo` at port 7000";
    check(&ended, sentence, "choose another --port");
    let ended = world.try_run("shed", &["service", "add", "echo", "--port", "7001"]);
    check(
        &ended,
        "server: node `shed` offers `echo` already",
        "another name",
    );
    let ended = world.try_run("shed", &["service", "remove", "nobody"]);
    check(
        &ended,
        "nobody offers a service `nobody` here",
        "see `ginnel service list`",
    );
    world.publish("shed", "closed", 7002, closed);
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the service", || echoes(local, b"x"));
    let refusal = || world.try_run("laptop", &["dial", "shed", "7002"]);
    // The connection is taken before its target is known, and then reset.
    wait_for("the end of a connection without a target", || {
        let ended = refusal();
        ended.code == Some(1) && ended.stderr.contains("remote port: ")
    });
    let ended = world.try_run("laptop", &["dial", "shed", "7003"]);
    check(
        &ended,
        "remote port: ",
        "see whether the program listens at that port",
    );
}

#[test]
fn wrong_usage_ends_with_2() {
    let world = World::new();
    for line in [
        &[][..],
        &["nonsense"],
        &["join"],
        &["join", "https://a"],
        &["dial", "a", "0"],
        &["service", "add", "web", "--port", "0"],
        &["token", "add", "--ttl", "soon"],
        &["join", "https://a", "--token", "t", "--name", "Not A Label"],
        &["gateway", "https://a", "--endpoint", "nowhere"],
    ] {
        let ended = world.try_run("x", line);
        assert_eq!(ended.code, Some(2), "{line:?}: {ended:?}");
        assert!(
            ended.stderr.contains("Usage:") || ended.stderr.contains("--help"),
            "{ended:?}"
        );
    }
}

#[test]
fn programs_read_the_same_as_people() {
    let world = World::new();
    let ended = world.try_run("nobody", &["whoami", "--json"]);
    assert_eq!(ended.code, Some(1));
    let said: serde_json::Value = serde_json::from_str(&ended.stderr).expect("JSON");
    assert!(
        said["error"]
            .as_str()
            .is_some_and(|text| text.contains("not enrolled")),
        "{said}"
    );
    assert!(
        said["remedy"]
            .as_str()
            .is_some_and(|text| text.contains("ginnel login")),
        "{said}"
    );
}

#[test]
fn an_administrator_who_lost_her_token_gets_another_at_the_server() {
    let mut world = World::new();
    let first = std::mem::take(&mut world.admin);
    drop(world.server.take());
    let data = world.path("data");
    let line = [
        "server",
        "--data",
        data.to_str().expect("UTF-8"),
        "--listen",
        world.url.trim_start_matches("https://"),
        "--wireguard",
        &world.wireguard,
        "--admin-token",
        "--json",
    ];
    let (server, line) = world.start("server", &line, "{");
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(said["url"], world.url);
    assert_eq!(said["wireguard"], world.wireguard);
    world.admin = word(
        said["admin_token"].as_str().expect("a token"),
        "ginnel-login-",
    );
    world.server = Some(server);
    assert_ne!(world.admin, first);
    world.login("laptop");
}
