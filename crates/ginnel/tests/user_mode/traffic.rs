//! Bytes through user mode by foreign programs: curl, psql, socat, Python.

use std::{fs, process::Command, thread, time::Duration};

use crate::world::{World, exchange, fed, finished, open, world};

/// A TCP echo server for a thousand connections.
const ECHO: &str = "
import asyncio
async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(echo, ['0.0.0.0', '::'], 7000, backlog=2048)
    await server.serve_forever()
asyncio.run(main())
";

/// A DNS server that knows db.test and says NXDOMAIN to the rest; big.test needs TCP.
const DNS: &str = r"
import socket, struct, threading
def answer(query, tcp):
    name, at = [], 12
    while query[at]:
        name.append(query[at+1:at+1+query[at]].decode()); at += 1 + query[at]
    question, kind = query[12:at+5], struct.unpack('>H', query[at+1:at+3])[0]
    name = '.'.join(name).lower()
    known = name in ('db.test', 'big.test')
    flags, records = (0x8580 if known else 0x8583), b''
    if known and kind == 1: records = b'\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\x58\0\1'
    if name == 'big.test' and not tcp: flags, records = 0x8780, b''
    count = 1 if records else 0
    return query[:2] + struct.pack('>HHHHH', flags, 1, count, 0, 0) + question + records
def tcp():
    server = socket.create_server(('10.88.0.1', 53))
    while True:
        connection, _ = server.accept()
        length = struct.unpack('>H', connection.recv(2))[0]
        reply = answer(connection.recv(length), True)
        connection.sendall(struct.pack('>H', len(reply)) + reply)
        connection.close()
threading.Thread(target=tcp, daemon=True).start()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('10.88.0.1', 53))
while True:
    query, source = udp.recvfrom(4096)
    udp.sendto(answer(query, False), source)
";

/// A UDP echo server for both families.
const UDP_ECHO: &str = "
import socket
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(('::', 7001))
while True:
    data, source = udp.recvfrom(65536)
    udp.sendto(data, source)
";

const WEB: [&str; 6] = [
    "python3",
    "-m",
    "http.server",
    "--bind",
    "10.88.0.1",
    "8080",
];

/// Sends the line that the web server then gives back.
fn web(world: &mut World) {
    let page = world.path().join("page");
    fs::create_dir_all(&page).expect("make");
    fs::write(page.join("index.html"), "the page\n").expect("write");
    let page = page.to_str().expect("UTF-8").to_owned();
    let [python, m, server, bind, address, port] = WEB;
    world.serve(
        [python, m, server, bind, address, "--directory", &page, port],
        8080,
    );
}

#[test]
fn ping_and_dial_reach_both_families_without_root() {
    let Some(mut world) = world() else { return };
    world.serve_python(ECHO, 7000);
    let ping = finished(&mut world.ginnel(["ping", "-c", "3", "-i", "0.05", "10.88.0.1"]));
    assert!(ping.contains("3 requests, 3 answers, 0.0% loss"), "{ping}");
    let json = finished(&mut world.ginnel(["--json", "ping", "-c", "1", "fd88::1"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["transmitted"], &json["received"]),
        (&1.into(), &1.into())
    );
    for address in ["10.88.0.1", "fd88::1"] {
        let output = fed(&mut world.ginnel(["dial", address, "7000"]), b"hello\n");
        assert_eq!(
            output.stdout,
            b"hello\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success());
    }
}

#[test]
fn names_are_resolved_inside_the_tunnel() {
    let Some(mut world) = world() else { return };
    world.serve_python(DNS, 53);
    for name in ["db.test", "db", "db.test.", "big.test"] {
        let answer = finished(&mut world.ginnel(["resolve", name]));
        assert_eq!(answer, "10.88.0.1\n", "{name}");
    }
    let json = finished(&mut world.ginnel(["resolve", "db", "A", "--json"]));
    assert!(json.contains(r#""name":"db.test","type":"A""#), "{json}");
    for (name, kind, says) in [
        ("other", "A", "does not exist"),
        ("db", "AAAA", "has no AAAA"),
    ] {
        let output = world
            .ginnel(["resolve", name, kind])
            .output()
            .expect("start");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(says) && stderr.contains("DNS"), "{stderr}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn curl_fetches_a_page_by_name_through_socks_and_http() {
    let Some(mut world) = world() else { return };
    world.serve_python(DNS, 53);
    web(&mut world);
    let proxy = world.ginnel([
        "proxy",
        "--socks5",
        "127.0.0.1:1080",
        "--http",
        "127.0.0.1:8081",
    ]);
    world.start(proxy, 2);
    let url = "http://db.test:8080/";
    for proxy in [
        &["--socks5-hostname", "127.0.0.1:1080"][..],
        &["--proxytunnel", "-x", "http://127.0.0.1:8081"],
        &["-x", "http://127.0.0.1:8081"],
    ] {
        let mut curl = world.client("curl");
        curl.args(["-sS", "--max-time", "20"]).args(proxy).arg(url);
        assert_eq!(finished(&mut curl), "the page\n", "{proxy:?}");
    }
    let mut curl = world.client("curl");
    curl.args(["-sS", "-x", "http://127.0.0.1:8081", "http://none.test/"]);
    assert!(finished(&mut curl).contains("DNS: `none.test` does not exist"));
    // 97: the proxy refused; its reply code says why.
    let mut curl = world.client("curl");
    curl.args([
        "-sS",
        "--socks5-hostname",
        "127.0.0.1:1080",
        "http://10.88.0.1:9/",
    ]);
    assert_eq!(curl.output().expect("start").status.code(), Some(97));
}

#[test]
fn datagrams_go_through_socks_and_forward() {
    let Some(mut world) = world() else { return };
    world.serve_python(UDP_ECHO, 7001);
    let proxy = world.ginnel(["proxy", "--socks5", "127.0.0.1:1080"]);
    world.start(proxy, 1);
    let forward = world.ginnel([
        "forward",
        "7101:10.88.0.1:7001/udp",
        "7102:[fd88::1]:7001/udp",
    ]);
    world.start(forward, 2);
    let script = r"
import socket, struct
control = socket.create_connection(('127.0.0.1', 1080))
control.sendall(b'\5\1\0'); assert control.recv(2) == b'\5\0'
control.sendall(b'\5\3\0\1\0\0\0\0\0\0'); reply = control.recv(10); assert reply[1] == 0, reply
relay = ('127.0.0.1', struct.unpack('>H', reply[8:])[0])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(10)
header = b'\0\0\0\1' + socket.inet_aton('10.88.0.1') + struct.pack('>H', 7001)
for size in (0, 1, 1300):
    udp.sendto(header + b'x' * size, relay)
    assert udp.recv(65536) == header + b'x' * size, size
udp.sendto(b'\0\0\1' + header[3:] + b'fragment', relay)
for port in (7101, 7102):
    udp.sendto(b'forward', ('127.0.0.1', port)); assert udp.recv(100) == b'forward'
print('ok')
";
    let mut python = world.beside(["python3", "-c", script]);
    assert_eq!(finished(&mut python), "ok\n");
}

#[test]
fn psql_works_through_forward_by_tcp_and_unix_socket() {
    let Some(mut world) = world() else { return };
    let Some(bin) = postgres() else {
        let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
        assert!(!required, "required, but no PostgreSQL");
        eprintln!("SKIPPED: no PostgreSQL");
        return;
    };
    let data = world.path().join("pg");
    let data = data.to_str().expect("UTF-8").to_owned();
    fs::create_dir(&data).expect("make");
    finished(Command::new("chown").args(["postgres", &data]));
    let initdb = format!("{bin}/initdb");
    let server = world.server(["runuser", "-u", "postgres", "--", &initdb]);
    let mut initdb = server;
    finished(initdb.args(["-D", &data, "-A", "trust", "--no-sync"]));
    let hba = format!("{data}/pg_hba.conf");
    fs::write(&hba, "host all all 10.88.0.0/24 trust\n").expect("write");
    let postgres = format!("{bin}/postgres");
    let line = [
        "runuser",
        "-u",
        "postgres",
        "--",
        &postgres,
        "-D",
        &data,
        "-c",
        "listen_addresses=*",
    ];
    let [a, b, c, d, e, f, g, h, i] = line;
    world.serve(
        [a, b, c, d, e, f, g, h, i, "-c", "unix_socket_directories="],
        5432,
    );
    let socket = format!("{}/.s.PGSQL.5432", world.run().display());
    let unix = format!("{socket}:10.88.0.1:5432");
    let forward = world.ginnel(["forward", "0:10.88.0.1:5432", &unix]);
    let lines = world.start(forward, 2);
    let port = lines[0]
        .split([':', ' '])
        .nth(1)
        .expect("address")
        .to_owned();
    for (host, port) in [
        ("127.0.0.1", port.as_str()),
        (world.run().to_str().expect("UTF-8"), "5432"),
    ] {
        let mut psql = world.client("psql");
        psql.args(["-h", host, "-p", port, "-U", "postgres", "-Atc"]);
        psql.arg(
            "select sum(n), md5(string_agg(repeat('x', 100), '')) from generate_series(1, 20000) n",
        );
        let answer = finished(&mut psql);
        assert!(answer.starts_with("200010000|"), "{answer}");
    }
}

#[test]
fn a_large_file_arrives_whole_in_both_directions_and_half_close_passes_through() {
    let Some(mut world) = world() else { return };
    let bytes = std::env::var("GINNEL_TEST_BYTES").unwrap_or_else(|_| "67108864".into());
    let file = world.path().join("file");
    let file = file.to_str().expect("UTF-8").to_owned();
    finished(Command::new("sh").args(["-c", &format!("head -c {bytes} /dev/urandom > {file}")]));
    let expected = finished(Command::new("sh").args(["-c", &format!("sha256sum < {file}")]));
    world.serve(
        [
            "socat",
            "TCP-LISTEN:7002,fork,reuseaddr",
            "SYSTEM:sha256sum",
        ],
        7002,
    );
    let open = format!("OPEN:{file},rdonly");
    world.serve(
        ["socat", "-U", "TCP-LISTEN:7003,fork,reuseaddr", &open],
        7003,
    );
    // The digest comes back only after the end of what was sent: half-close.
    let mut up = world.ginnel(["dial", "10.88.0.1", "7002"]);
    up.stdin(fs::File::open(&file).expect("open"));
    assert_eq!(finished(&mut up), expected);
    let down = world.ginnel(["dial", "10.88.0.1", "7003"]);
    assert_eq!(digest_of(down), expected);
    let forward = world.ginnel(["forward", "7102:10.88.0.1:7002", "7103:[fd88::1]:7003"]);
    world.start(forward, 2);
    let mut up = world.client("socat");
    up.args(["-t", "100", "-", "TCP:127.0.0.1:7102"]);
    up.stdin(fs::File::open(&file).expect("open"));
    assert_eq!(finished(&mut up), expected);
}

fn digest_of(mut command: Command) -> String {
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start");
    let mut digest = Command::new("sha256sum");
    digest.stdin(child.stdout.take().expect("piped"));
    let digest = finished(&mut digest);
    assert!(child.wait().expect("it ends").success());
    digest
}

#[test]
fn a_thousand_connections_run_at_once() {
    let Some(mut world) = world() else { return };
    world.serve_python(ECHO, 7000);
    let forward = world.ginnel(["forward", "7100:10.88.0.1:7000"]);
    world.start(forward, 1);
    let script = "
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
async def main():
    async def connect(n):
        reader, writer = await asyncio.open_connection('127.0.0.1', 7100)
        writer.write(b'%06d' % n)
        assert await asyncio.wait_for(reader.readexactly(6), 60) == b'%06d' % n
        return reader, writer
    open = await asyncio.gather(*[connect(n) for n in range(1000)])
    for reader, writer in open:
        writer.write(b'again')
    for reader, writer in open:
        assert await asyncio.wait_for(reader.readexactly(5), 60) == b'again'
        writer.close()
    print(len(open))
asyncio.run(main())
";
    let mut python = world.beside(["python3", "-c", script]);
    assert_eq!(finished(&mut python), "1000\n");
}

#[test]
fn a_session_survives_a_server_that_was_restarted() {
    let Some(mut world) = world() else { return };
    world.serve_python(ECHO, 7000);
    let mut dial = world.ginnel(["dial", "10.88.0.1", "7000"]);
    let (mut child, mut stdout) = open(&mut dial);
    assert_eq!(exchange(&mut child, &mut stdout, b"before"), b"before");
    // The server forgets the session, as in a restart.
    world.forget_client();
    thread::sleep(Duration::from_millis(200));
    let begun = fed(&mut world.ginnel(["dial", "10.88.0.1", "7000"]), b"new");
    assert_eq!(
        begun.stdout,
        b"new",
        "{}",
        String::from_utf8_lossy(&begun.stderr)
    );
    assert_eq!(exchange(&mut child, &mut stdout, b"after"), b"after");
    drop(child.stdin.take());
    assert!(child.wait().expect("it ends").success());
}

fn postgres() -> Option<String> {
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort();
    let bin = versions.pop()?.join("bin");
    bin.join("postgres")
        .exists()
        .then(|| bin.display().to_string())
}
