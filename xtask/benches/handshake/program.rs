//! A program that serves `wg`: loading peers, idling, showing them, answering initiations.
//!
//! It runs in a network namespace of its own, made by `unshare`; so must this bench, which then
//! reaches it over loopback.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use wireguard::PublicKey;

use crate::{
    active::{self, Active},
    peers::{RESPONDER, idle_key, initiation, inner, now, secret},
    print,
    usage::{cpu, resident},
};

/// A running program; ended when dropped.
struct Running {
    child: Child,
}

/// Measures and prints everything about one program.
pub(crate) fn measure(name: &str, path: &str) {
    answer(name, path);
    for count in [100_000, 1_000_000] {
        // wireguard-go refuses more than 65,536 peers; the others need gigabytes and minutes.
        if count == 100_000 || name == "ginnel" {
            many(name, path, count);
        }
    }
}

/// CPU of the program for each initiation that it answers, with 10,000 peers.
fn answer(name: &str, path: &str) {
    let program = Running::start(name, path);
    let keys = (0..ACTIVE).map(|number| (secret(number).public_key(), number));
    if !program.load(keys) {
        print(name, "refuses peers beyond", f64::from(ACTIVE), "peers");
        return;
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a duration");
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let messages: Vec<_> = (0..ASKED)
        .map(|number| initiation(now(), number, to))
        .collect();
    let before = cpu(program.child.id());
    let mut answered = 0;
    let mut buffer = [0; 2048];
    for message in &messages {
        let sent = now();
        socket.send_to(message, to).expect("loopback takes it");
        if socket.recv(&mut buffer).is_ok() && buffer[0] == 2 {
            answered += 1;
        }
        // Slower than any of these programs feels load.
        thread::sleep(SPACING.saturating_sub(now() - sent));
    }
    let used = (cpu(program.child.id()) - before).as_secs_f64() * 1e6;
    let share = f64::from(answered) * 100.0 / f64::from(ASKED);
    print(name, "answered of 1000 initiations", share, "%");
    let each = used / f64::from(answered.max(1));
    print(
        name,
        "CPU of an answered initiation, 10000 peers",
        each,
        "µs",
    );
}

/// What configured peers cost.
fn many(name: &str, path: &str, count: u32) {
    let program = Running::start(name, path);
    let id = program.child.id();
    let case = |what: &str| format!("{what}, {count} peers");
    let before = (cpu(id), resident(&id.to_string()), now());
    let key = |number| match number < ASKED {
        true => secret(number).public_key(),
        false => idle_key(number),
    };
    if !program.load((0..count).map(|number| (key(number), number))) {
        print(name, &case("refuses to load"), 1.0, "");
        return;
    }
    let (wall, used) = (now() - before.2, cpu(id) - before.0);
    print(name, &case("time to load"), wall.as_secs_f64(), "s");
    print(name, &case("CPU to load"), used.as_secs_f64(), "s");
    let memory = resident(&id.to_string()).saturating_sub(before.1);
    let megabytes = u32::try_from(memory / 1_000_000).expect("less than 4 PB");
    print(name, &case("memory"), f64::from(megabytes), "MB");
    // What loading has left to do is done first.
    thread::sleep(Duration::from_secs(1));
    let before = cpu(id);
    thread::sleep(IDLE);
    let idle = (cpu(id) - before).as_secs_f64() / IDLE.as_secs_f64();
    print(name, &case("idle CPU"), idle * 100.0, "% of a core");
    let (before, start) = (cpu(id), now());
    let shown = Command::new("wg")
        .args(["show", INTERFACE, "dump"])
        .output();
    let shown = shown.expect("wg is installed");
    let lines = shown.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, usize::try_from(count).expect("64 bits") + 1);
    let wall = now() - start;
    print(name, &case("wg show: time"), wall.as_secs_f64(), "s");
    let used = cpu(id) - before;
    print(name, &case("wg show: CPU"), used.as_secs_f64(), "s");
    if name == "ginnel" {
        set_up_interface();
        for active in [1, ASKED] {
            Active::shake_hands(active, PORT).echo(name, &count.to_string(), id);
        }
    }
}

/// Gives the interface an address in one prefix with those of peers.
fn set_up_interface() {
    let address = format!("{}/64", active::ADDRESS);
    for line in [
        vec!["address", "add", &address, "dev", INTERFACE, "nodad"],
        vec!["link", "set", INTERFACE, "up"],
    ] {
        let done = Command::new("ip").args(line).status();
        assert!(done.expect("iproute2 is installed").success());
    }
}

impl Running {
    fn start(name: &str, path: &str) -> Self {
        let mut command = Command::new(path);
        if name == "ginnel" {
            command.arg("tun");
        }
        if name.starts_with("boringtun") || name.starts_with("gotatun") {
            command.arg("--disable-drop-privileges");
        }
        command.args(["-f", INTERFACE]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the program starts");
        for _ in 0..100 {
            if fs::exists(socket_path()).unwrap_or(false) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let key = hex(&RESPONDER);
        let program = Self { child };
        let text = format!("set=1\nprivate_key={key}\nlisten_port={PORT}\n\n");
        assert!(program.ask(&text), "the program takes a key and a port");
        program
    }

    /// Configures peers, a few thousand with each request; false when they are refused.
    fn load(&self, peers: impl Iterator<Item = (PublicKey, u32)>) -> bool {
        let mut text = String::new();
        let mut peers = peers.peekable();
        let mut number_in_request = 0;
        while let Some((key, number)) = peers.next() {
            if text.is_empty() {
                text.push_str("set=1\n");
            }
            let inner = inner(number);
            text += &format!(
                "public_key={}\nendpoint=192.0.2.1:51820\nallowed_ip={}/{}\n",
                hex(&key.0),
                inner.address(),
                inner.bits()
            );
            number_in_request += 1;
            if number_in_request == TOGETHER || peers.peek().is_none() {
                text.push('\n');
                if !self.ask(&text) {
                    return false;
                }
                text.clear();
                number_in_request = 0;
            }
        }
        true
    }

    /// Sends one request; tells whether it was done.
    fn ask(&self, request: &str) -> bool {
        let _alive: &Child = &self.child;
        let Ok(mut stream) = UnixStream::connect(socket_path()) else {
            return false;
        };
        let mut answer = Vec::new();
        let mut chunk = [0; 256];
        if stream.write_all(request.as_bytes()).is_err() {
            return false;
        }
        while !answer.ends_with(b"\n\n") {
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return false,
                Ok(length) => answer.extend_from_slice(&chunk[..length]),
            }
        }
        answer == b"errno=0\n\n"
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(socket_path()).ok();
    }
}

fn socket_path() -> String {
    format!("/var/run/wireguard/{INTERFACE}.sock")
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const INTERFACE: &str = "gbh0";
const PORT: u16 = 51_820;
/// Configured peers while initiations are answered, and how many of them ask.
const ACTIVE: u32 = 10_000;
const ASKED: u32 = 1_000;
const SPACING: Duration = Duration::from_millis(12);
const PATIENCE: Duration = Duration::from_millis(50);
/// Peers in one request.
const TOGETHER: u32 = 10_000;
const IDLE: Duration = Duration::from_secs(10);
