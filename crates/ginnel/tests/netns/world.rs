//! Network namespaces joined by a veth pair, and the interfaces and programs inside them.
//!
//! ```text
//!   space 0                         space 1
//!   inner 10.88.0.1, fd88::1        inner 10.88.0.2, fd88::2
//!   outer 10.99.0.1, fd99::1 ─veth─ outer 10.99.0.2, fd99::2
//! ```
//! Everything has a name that no other test and no other run has, and goes when the value goes.

#![allow(dead_code, reason = "two test programs use different parts of it")]

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

/// Two namespaces that reach each other.
pub(crate) struct World {
    pub(crate) spaces: [Space; 2],
}

/// A namespace and what runs in it.
pub(crate) struct Space {
    pub(crate) name: String,
    /// The outer interface.
    pub(crate) link: String,
}

/// A namespace beside the two, with nothing in it; goes with the value.
pub(crate) struct Apart(pub(crate) Space);

/// A userspace WireGuard interface with its process.
pub(crate) struct Tunnel {
    pub(crate) interface: String,
    pub(crate) private_key: String,
    pub(crate) public_key: String,
    pub(crate) child: Child,
    space: String,
}

/// Deletes an interface that a background process serves, so that the process goes with it.
pub(crate) struct Background<'a> {
    pub(crate) space: &'a Space,
    pub(crate) interface: String,
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.space.name, "link", "delete", &self.interface]);
        // It is gone already when the test went well.
        ip.stderr(Stdio::null()).status().ok();
    }
}

/// Which program serves an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Program {
    Ginnel,
    /// Ginnel that lets only so much pass as one: what `GINNEL_OFFLOAD` may say.
    GinnelWithOffload(&'static str),
    /// Ginnel that writes the file of [`key_log`].
    GinnelWithKeyLog,
    /// Ginnel that is the user `nobody` once it runs.
    GinnelAsNobody,
    /// Ginnel with four queues.
    GinnelWithQueues,
    WireguardGo,
    Boringtun,
}

/// Skips loudly when this machine lacks something, or fails if the variable says `required`.
pub(crate) fn lacks(variable: &str, what: &str) {
    let required = std::env::var(variable).is_ok_and(|value| value == "required");
    assert!(!required, "{variable}=required, but {what}");
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let said = writeln!(io::stderr().lock(), "SKIPPED {test}: {what}");
    said.expect("stderr is open");
}

/// Finds a program in PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

impl World {
    /// Makes the namespaces; `None`, said loudly, without root, `ip` or TUN.
    pub(crate) fn new() -> Option<Self> {
        if os::process::euid() != 0 {
            lacks("NETNS", "not root");
            return None;
        }
        for program in ["ip", "wg", "ping"] {
            if find(program).is_none() {
                lacks("NETNS", &format!("`{program}` is not installed"));
                return None;
            }
        }
        if !Path::new("/dev/net/tun").exists() {
            lacks("NETNS", "no /dev/net/tun");
            return None;
        }
        let names = [unique("s"), unique("s")];
        let links = [unique("v"), unique("v")];
        for name in &names {
            ip(&["netns", "add", name]);
        }
        let [one, other] = &links;
        ip(&[
            "link", "add", one, "netns", &names[0], "type", "veth", "peer", "name", other, "netns",
            &names[1],
        ]);
        let mut pairs = names.into_iter().zip(links);
        let mut next = |number: usize| {
            let (name, link) = pairs.next().expect("two names");
            let space = Space { name, link };
            space.ip(&["link", "set", "lo", "up"]);
            space.ip(&["link", "set", &space.link, "up"]);
            for address in [outer(number, false), outer(number, true)] {
                space.add_outer(address);
            }
            space
        };
        let spaces = [next(0), next(1)];
        Some(Self { spaces })
    }

    /// Makes an interface served by `program` in space `number`, without configuration.
    pub(crate) fn tunnel(&self, number: usize, program: Program) -> Option<Tunnel> {
        Tunnel::start(&self.spaces[number], program)
    }

    /// Tells both ends about each other, and gives them their inner addresses.
    pub(crate) fn join(&self, tunnels: [&Tunnel; 2], preshared_key: Option<&str>, v6: bool) {
        for (number, tunnel) in tunnels.into_iter().enumerate() {
            let space = &self.spaces[number];
            tunnel.set(&[
                "private-key",
                &file_with(&tunnel.private_key),
                "listen-port",
                "51820",
            ]);
            tunnel.set_peer(tunnels[1 - number], 1 - number, preshared_key, v6);
            let interface = &tunnel.interface;
            for address in [inner(number, false), inner(number, true)] {
                space.add_address(interface, address);
            }
            space.ip(&["link", "set", interface, "up"]);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for space in &self.spaces {
            Command::new("ip")
                .args(["netns", "delete", &space.name])
                .status()
                .expect("ip runs");
        }
    }
}

impl Apart {
    pub(crate) fn new() -> Self {
        let name = unique("a");
        ip(&["netns", "add", &name]);
        let link = "lo".to_owned();
        let space = Space { name, link };
        space.ip(&["link", "set", "lo", "up"]);
        Self(space)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let mut ip = Command::new("ip");
        ip.args(["netns", "delete", &self.0.name]);
        ip.status().expect("ip runs");
    }
}

impl Space {
    /// A command that runs in this namespace.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ip` in this namespace; it must succeed.
    pub(crate) fn ip(&self, arguments: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        ip(&all);
    }

    pub(crate) fn add_outer(&self, address: IpAddr) {
        self.add_address(&self.link, address);
    }

    pub(crate) fn add_address(&self, interface: &str, address: IpAddr) {
        let bits = if address.is_ipv4() { 24 } else { 64 };
        let network = format!("{address}/{bits}");
        let mut arguments = vec!["address", "add", &network, "dev", interface];
        if address.is_ipv6() {
            arguments.push("nodad");
        }
        self.ip(&arguments);
    }

    /// Sends `count` echo requests 0.2 s apart and returns how many were answered.
    pub(crate) fn ping(&self, to: IpAddr, count: u32) -> u32 {
        let count = count.to_string();
        let mut ping = self.command("ping");
        ping.args(["-n", "-i", "0.2", "-W", "2", "-c", &count, &to.to_string()]);
        received(&text(&ping.output().expect("ping runs")))
    }

    /// Runs `make` in this namespace and returns what it made; sockets stay in the namespace.
    pub(crate) fn enter<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let space = File::open(path).expect("the namespace exists");
                nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("root may enter");
                make()
            });
            worker.join().expect("no panic inside the namespace")
        })
    }

    /// Moves `length` bytes from here to `other` and back, over TCP between inner addresses.
    pub(crate) fn transfer(&self, other: &Self, to: IpAddr, length: usize) {
        let listener = other.enter(|| TcpListener::bind((to, 0)).expect("inner address is there"));
        let port = listener.local_addr().expect("bound").port();
        let echo = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(LONG)).expect("a bound");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("all arrives");
            stream.write_all(&all).expect("all leaves");
        });
        let address = SocketAddr::from((to, port));
        let stream = self.enter(|| TcpStream::connect_timeout(&address, LONG));
        let mut stream = stream.expect("the tunnel carries TCP");
        stream.set_read_timeout(Some(LONG)).expect("a bound");
        stream.set_write_timeout(Some(LONG)).expect("a bound");
        let sent: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[n % 3]).collect();
        stream.write_all(&sent).expect("all leaves");
        stream.shutdown(Shutdown::Write).expect("half-close");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("all comes back");
        echo.join().expect("the echo ends well");
        assert!(back == sent, "{length} bytes came back changed");
    }

    /// Does as [`Space::transfer`] while small datagrams leave `from` here for the same address.
    pub(crate) fn transfer_beside_datagrams(&self, other: &Self, [from, to]: [IpAddr; 2]) {
        // So many that some share a queue with the transfer.
        let bind = || UdpSocket::bind((from, 0)).expect("a free port");
        let sockets: Vec<_> = (0..8).map(|_| self.enter(bind)).collect();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for socket in sockets.iter().cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    // The port is closed, and the queue may be full.
                    socket.send_to(&[0; 100], (to, 9)).ok();
                    thread::sleep(Duration::from_micros(20));
                }
            });
            let transfer = scope.spawn(|| self.transfer(other, to, 32_000_000));
            let ended = transfer.join();
            done.store(true, Ordering::Relaxed);
            ended.expect("the transfer arrives unchanged");
        });
    }
}

impl Tunnel {
    /// Starts `program` in the foreground and waits for its socket.
    pub(crate) fn start(space: &Space, program: Program) -> Option<Self> {
        Self::start_as(space, program, |_| ())
    }

    /// Starts `program` like [`Tunnel::start`], with changes to its command.
    pub(crate) fn start_as(
        space: &Space,
        program: Program,
        change: impl FnOnce(&mut Command),
    ) -> Option<Self> {
        let interface = unique("t");
        let mut command = program.command(space, &interface)?;
        change(&mut command);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("ip runs");
        let private_key = wg_line(&["genkey"], "");
        let public_key = wg_line(&["pubkey"], &private_key);
        let tunnel = Self {
            space: space.name.clone(),
            interface,
            private_key,
            public_key,
            child,
        };
        let path = socket_path(&tunnel.interface);
        within(SHORT, "the UAPI socket answers", || {
            UnixStream::connect(&path).is_ok()
        });
        Some(tunnel)
    }

    /// Runs `wg set` on the interface and tells whether it succeeded, and what it said.
    pub(crate) fn try_set(&self, arguments: &[&str]) -> Result<(), String> {
        let mut wg = Command::new("wg");
        wg.args(["set", &self.interface]).args(arguments);
        let output = wg.output().expect("wg runs");
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Runs `wg set` on the interface; it must succeed.
    pub(crate) fn set(&self, arguments: &[&str]) {
        self.try_set(arguments)
            .unwrap_or_else(|error| panic!("wg set {arguments:?}: {error}"));
    }

    /// Names `other`, in space `number`, as a peer.
    pub(crate) fn set_peer(
        &self,
        other: &Self,
        number: usize,
        preshared_key: Option<&str>,
        v6: bool,
    ) {
        let endpoint = SocketAddr::from((outer(number, v6), 51820)).to_string();
        let allowed = format!("{}/32,{}/128", inner(number, false), inner(number, true));
        let preshared = preshared_key.map(file_with);
        let mut arguments = vec!["peer", &other.public_key, "endpoint", &endpoint];
        arguments.extend(["allowed-ips", &allowed]);
        if let Some(preshared) = &preshared {
            arguments.extend(["preshared-key", preshared]);
        }
        self.set(&arguments);
    }

    /// Forgets `other`; boringtun cannot change a peer, only make one.
    pub(crate) fn remove_peer(&self, other: &Self) {
        self.set(&["peer", &other.public_key, "remove"]);
    }

    /// Runs `wg show INTERFACE ...` and returns what it prints.
    pub(crate) fn show(&self, what: &[&str]) -> String {
        let mut wg = Command::new("wg");
        wg.args(["show", &self.interface]).args(what);
        let output = wg.output().expect("wg runs");
        assert!(output.status.success(), "wg show: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Returns the last word of the first line of `wg show INTERFACE what`: the one peer's value.
    pub(crate) fn show_peer(&self, what: &str) -> String {
        let shown = self.show(&[what]);
        shown
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned()
    }

    /// Returns when the newest handshake with the one peer was, in seconds of the epoch.
    pub(crate) fn latest_handshake(&self) -> u64 {
        self.show_peer("latest-handshakes")
            .parse()
            .expect("a number")
    }

    /// Waits until the process has ended and tells whether it ended well.
    pub(crate) fn ends_well(&mut self) -> bool {
        let mut ended = None;
        within(SHORT, "the process ends", || {
            ended = self.child.try_wait().expect("our child");
            ended.is_some()
        });
        ended.is_some_and(|status| status.success())
    }

    /// Asks the process to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, signal).expect("our child");
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Those who ended already, and interfaces that are gone already, are what we want.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(socket_path(&self.interface)).ok();
        fs::remove_file(key_log(&self.interface)).ok();
    }
}

impl Program {
    fn command(self, space: &Space, interface: &str) -> Option<Command> {
        let mut command = match self {
            Self::Ginnel
            | Self::GinnelWithOffload(_)
            | Self::GinnelWithKeyLog
            | Self::GinnelAsNobody
            | Self::GinnelWithQueues => {
                let mut command = space.command(GINNEL);
                command.args(["tun", "-f", interface]);
                if self == Self::GinnelWithKeyLog {
                    command.arg("--key-log").arg(key_log(interface));
                }
                if self == Self::GinnelAsNobody {
                    command.args(["--user", "nobody"]);
                }
                if self == Self::GinnelWithQueues {
                    command.args(["--queues", "4"]);
                }
                if let Self::GinnelWithOffload(max) = self {
                    command.env("GINNEL_OFFLOAD", max);
                }
                command
            }
            Self::WireguardGo => {
                let Some(program) = find("wireguard-go") else {
                    lacks("INTEROP", "`wireguard-go` is not installed");
                    return None;
                };
                let mut command = space.command(program);
                command.args(["-f", interface]);
                command
            }
            Self::Boringtun => {
                let named = std::env::var_os("BORINGTUN_CLI").map(PathBuf::from);
                let Some(program) = named.or_else(|| find("boringtun-cli")) else {
                    lacks(
                        "INTEROP",
                        "`boringtun-cli` is not installed (or set BORINGTUN_CLI)",
                    );
                    return None;
                };
                let mut command = space.command(program);
                command.args(["-f", "--disable-drop-privileges", interface]);
                command
            }
        };
        // `ip netns exec` becomes the program itself, so killing the child ends it.
        command.env("LOG_LEVEL", "silent");
        Some(command)
    }
}

/// The outer address of space `number`.
pub(crate) fn outer(number: usize, v6: bool) -> IpAddr {
    address(number, v6, 99, 0xfd99)
}

/// The inner address of space `number`.
pub(crate) fn inner(number: usize, v6: bool) -> IpAddr {
    address(number, v6, 88, 0xfd88)
}

/// Where the UAPI socket of an interface is.
pub(crate) fn socket_path(interface: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{interface}.sock"))
}

/// Where the key log of an interface is.
pub(crate) fn key_log(interface: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{interface}.keys"))
}

/// Waits until `holds`, looking every 20 ms.
pub(crate) fn within(bound: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let mut clock = os::clock::Clock::start();
    let end = clock.now() + bound;
    while !holds() {
        assert!(clock.now() < end, "not within {bound:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Says a measurement.
#[expect(
    clippy::print_stderr,
    reason = "the test runner shows it with the test"
)]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Reads the clock.
pub(crate) fn now() -> Instant {
    os::clock::Clock::start().now()
}

/// Returns how many answers `ping` counted.
pub(crate) fn received(text: &str) -> u32 {
    let count = text
        .lines()
        .find_map(|line| line.split(", ").nth(1)?.strip_suffix(" received"));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// A file that `wg` reads a key or a configuration from; goes with the value.
pub(crate) struct Input(tempfile::NamedTempFile);

/// Makes a file with `contents`.
pub(crate) fn file_with(contents: &str) -> Input {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(contents.as_bytes()).expect("it takes them");
    Input(file)
}

impl std::ops::Deref for Input {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.path().to_str().expect("UTF-8")
    }
}

/// Runs `wg` with `input` and returns its one line.
pub(crate) fn wg_line(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("wg runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("wg reads");
    drop(stdin);
    let output = child.wait_with_output().expect("wg ends");
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

/// Both outputs of a program, to be searched or shown.
pub(crate) fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A name of at most 15 bytes that nothing else on this machine has.
pub(crate) fn unique(kind: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("g{kind}{:x}-{count}", std::process::id())
}

fn address(number: usize, v6: bool, v4_net: u8, v6_net: u16) -> IpAddr {
    let host = u8::try_from(number + 1).expect("two spaces");
    if v6 {
        [v6_net, 0, 0, 0, 0, 0, 0, host.into()].into()
    } else {
        [10, v4_net, 0, host].into()
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("ip runs");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        text(&output)
    );
}

/// The program under test.
pub(crate) const GINNEL: &str = env!("CARGO_BIN_EXE_ginnel");
/// For what takes milliseconds.
pub(crate) const SHORT: Duration = Duration::from_secs(10);
/// For what takes seconds, on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);
