//! Whose an address is, as the command says it and as a real nginx lets people in by it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use crate::world::{Process, WAIT_MAX, World, lacks, serve, serve_echo, wait_for};

#[test]
fn an_address_and_a_name_tell_the_node_the_person_and_the_role() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let _barn = world.machine("barn", "echo", 7000, serve_echo());
    let shed = world.run("laptop", &["resolve", "shed"]);
    let found = world.json("laptop", &["whois", shed.trim()]);
    let expected = serde_json::json!({
        "address": shed.trim(), "org": "default", "node": "shed",
        "site": null, "user": null, "role": null,
    });
    assert_eq!(found, expected);
    let found = world.json("shed", &["whois", "laptop"]);
    assert_eq!(found["user"], "admin");
    assert_eq!(found["role"], "admin");
    let text = world.run("shed", &["whois", "laptop"]);
    assert!(text.contains("user") && text.contains("admin"), "{text}");

    for (line, sentence) in [
        (["whois", "fd00::1"], "map: no node of the organisation has"),
        (
            ["whois", "192.0.2.1"],
            "map: no node of the organisation has",
        ),
        (["whois", "nobody"], "does not exist"),
        (["whois", "echo.svc"], "DNS: echo.svc has 2 addresses"),
    ] {
        let ended = world.try_run("laptop", &line);
        assert_eq!(ended.code, Some(1), "{line:?}: {ended:?}");
        assert!(ended.stderr.contains(sentence), "{line:?}: {ended:?}");
    }
    for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:80", "9587"] {
        let ended = world.try_run("laptop", &["whois", "--listen", address]);
        assert_eq!(ended.code, Some(2), "{address}: {ended:?}");
    }
}

#[test]
fn nginx_lets_people_in_by_their_tunnel_and_tells_the_application_who_they_are() {
    if lacks("nginx") {
        return;
    }
    let stage = Stage::new();
    let world = &stage.world;
    let (_forward, laptop) = world.forward("laptop", "shed", 8000);
    wait_for("the published nginx", || status(laptop, "/") == "200");

    let page = get(
        laptop,
        "/",
        "X-Ginnel-User: root\r\nX-Ginnel-Role: guest\r\n",
    );
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for line in [
        "X-Ginnel-User: admin\r\n",
        "X-Ginnel-Role: admin\r\n",
        "X-Ginnel-Node: laptop\r\n",
        "X-Ginnel-Org: default\r\n",
    ] {
        assert_eq!(page.matches(line).count(), 1, "{line}: {page}");
    }
    assert_eq!(page.matches("X-Ginnel").count(), 4, "{page}");
    let request = "POST / HTTP/1.1\r\nHost: shed\r\nContent-Length: 4\r\n\
                   Connection: close\r\n\r\nbody";
    let page = exchange(laptop, request);
    assert!(page.ends_with("body"), "{page}");
    assert!(page.contains("X-Ginnel-User: admin\r\n"), "{page}");

    // Who does not come through the tunnel is nobody, whatever she says she is.
    let address = world.run("laptop", &["resolve", "laptop"]);
    let address = address.trim();
    let forged = format!(
        "X-Ginnel-User: admin\r\nX-Forwarded-For: {address}\r\nX-Real-IP: {address}\r\n\
         Forwarded: for=\"[{address}]\"\r\n"
    );
    let path = format!("/?address={address}&port=1");
    for (path, headers) in [("/", ""), ("/", &forged), (&path, "")] {
        let page = get(stage.nginx_at, path, headers);
        assert!(page.starts_with("HTTP/1.1 401"), "{path}: {page}");
    }
    let page = get(laptop, "/ginnel-whois", "");
    assert!(page.starts_with("HTTP/1.1 404"), "{page}");

    // A machine of the organisation is no person.
    world.join("barn");
    let _barn = world.up("barn");
    let (_forward, barn) = world.forward("barn", "shed", 8000);
    wait_for("the machine in the map", || status(barn, "/") == "403");
}

#[test]
fn what_nginx_is_told_follows_roles_and_ends_with_the_person() {
    if lacks("nginx") {
        return;
    }
    let stage = Stage::new();
    let world = &stage.world;
    let invitation = world.run("laptop", &["user", "add", "alice", "--role", "developer"]);
    let invitation = invitation.trim();
    let line = ["login", &world.url, "--token", invitation, "--name", "desk"];
    world.run("desk", &line);
    let _desk = world.up("desk");
    let (_forward, desk) = world.forward("desk", "shed", 8000);
    wait_for("alice in the map", || status(desk, "/") == "200");
    let page = get(desk, "/", "");
    assert!(page.contains("X-Ginnel-User: alice\r\n"), "{page}");
    assert!(page.contains("X-Ginnel-Role: developer\r\n"), "{page}");
    assert_eq!(status(desk, "/admin/"), "403");
    world.run("laptop", &["user", "set", "alice", "--role", "admin"]);
    wait_for("her other role", || status(desk, "/admin/") == "200");

    // Connections of hers may still stand at nginx when she is removed.
    let mut kept = TcpStream::connect(desk).expect("the forward listens");
    kept.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    let address = world.run("laptop", &["resolve", "desk"]);
    let ends = "port=40000&server_address=::1&server_port=80";
    let question = format!("/auth?address={}&{ends}", address.trim());
    assert_eq!(status(stage.whois_at, &question), "200");
    world.run("laptop", &["user", "remove", "alice"]);
    wait_for("nobody at her address", || {
        status(stage.whois_at, &question) == "401"
    });
    // Nothing of it comes through, or it is a refusal: never the page.
    let mut answer = Vec::new();
    drop(kept.write_all(b"GET / HTTP/1.1\r\nHost: shed\r\nConnection: close\r\n\r\n"));
    drop(kept.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("X-Ginnel-User"), "{answer}");
}

#[test]
fn only_well_formed_questions_of_a_bounded_length_are_answered() {
    let (world, laptop) = World::with_laptop();
    let (_whois, listens) = listen(&world, "laptop");
    let ends = "address=127.0.0.1&port=1&server_address=127.0.0.1&server_port=2";
    for (path, expected) in [
        (format!("/auth?{ends}"), "401"),
        ("/auth".to_owned(), "400"),
        (format!("/auth?{ends}&user=admin"), "400"),
        ("/".to_owned(), "404"),
        (format!("/auth?{ends}&role={}", "a".repeat(8_000)), "400"),
    ] {
        assert_eq!(status(listens, &path), expected, "{path}");
    }
    let long = format!("X-Long: {}\r\n", "a".repeat(20_000));
    let page = get(listens, &format!("/auth?{ends}"), &long);
    // What was not read may reset the connection before the answer comes.
    assert!(
        page.is_empty() || page.starts_with("HTTP/1.1 431"),
        "{page}"
    );
    let page = exchange(listens, "POST /auth HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 405"), "{page}");
    drop(laptop);
    assert_eq!(status(listens, &format!("/auth?{ends}")), "503");
}

/// `laptop` and `shed`, whose service `web` is an nginx with the configuration of the manual in
/// front of an application that sends back what it is asked.
struct Stage {
    nginx_at: SocketAddr,
    whois_at: SocketAddr,
    _processes: [Process; 4],
    world: World,
}

impl Stage {
    fn new() -> Self {
        let (world, laptop) = World::with_laptop();
        let nginx_at = place();
        let shed = world.machine("shed", "web", 8000, nginx_at);
        let (whois, whois_at) = listen(&world, "shed");
        let application = serve(|mut stream| {
            let request = request(&mut stream);
            let length = request.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            // The other side may go away at any time.
            drop(stream.write_all(&[head.as_bytes(), &request].concat()));
        });
        let nginx = nginx(&world, nginx_at, whois_at, application);
        Self {
            nginx_at,
            whois_at,
            _processes: [whois, nginx, shed, laptop],
            world,
        }
    }
}

/// Starts `ginnel whois --listen` at the node of `who`.
fn listen(world: &World, who: &str) -> (Process, SocketAddr) {
    let line = ["whois", "--listen", "127.0.0.1:0"];
    let (process, line) = world.start(who, &line, "whois at ");
    let (_, url) = line.split_once("http://").expect("a URL");
    let address = url.trim_end_matches("/auth").parse();
    (process, address.expect("an address"))
}

/// Returns an address of the loopback that no other test has: the process id tells programs of
/// tests apart, a count the tests of one. The port is below those that systems give by themselves.
fn place() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(2);
    let [.., high, low] = std::process::id().to_be_bytes();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    ([127, high, low, count], 8000).into()
}

/// Starts nginx as the manual says, in front of `application`, and waits until it listens.
fn nginx(world: &World, at: SocketAddr, whois: SocketAddr, application: SocketAddr) -> Process {
    let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/whois/nginx.conf");
    let documented = fs::read_to_string(documented).expect("the manual");
    let everybody = documented
        .replace("127.0.0.1:9587", &whois.to_string())
        .replace("127.0.0.1:3000", &application.to_string());
    // The same once more for administrators, below another path.
    let admin = everybody
        .replace("/ginnel-whois", "/ginnel-admin")
        .replace("$server_port;", "$server_port&role=admin;")
        .replace("location / {", "location /admin/ {");
    let directory = world.path("nginx");
    fs::create_dir(&directory).expect("a directory");
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\n\
         http {{\naccess_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\n\
         server {{\nlisten {at};\n{everybody}\n{admin}\n}}\n}}\n"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).expect("write");
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&directory);
    command.arg("-c").arg(&file);
    let process = world.spawn(&mut command);
    wait_for("nginx", || TcpStream::connect(at).is_ok());
    process
}

/// Reads a request with its body.
fn request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        request.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    // The other side may go away at any time.
    drop(stream.read_exact(&mut body));
    [request, body].concat()
}

/// Asks for a page and returns its status, empty if nothing comes.
fn status(at: SocketAddr, path: &str) -> String {
    let page = get(at, path, "");
    page.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Asks for a page and returns all of the answer, empty if nothing comes.
fn get(at: SocketAddr, path: &str, headers: &str) -> String {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: shed\r\nConnection: close\r\n{headers}\r\n");
    exchange(at, &request)
}

/// Sends a request and returns all that comes back until the other side closes or resets.
fn exchange(at: SocketAddr, request: &str) -> String {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(at) {
        stream.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
        drop(stream.write_all(request.as_bytes()));
        drop(stream.read_to_end(&mut answer));
    }
    String::from_utf8_lossy(&answer).into_owned()
}
