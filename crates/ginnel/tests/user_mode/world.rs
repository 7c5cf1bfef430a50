//! Two namespaces, a foreign WireGuard between them, and a user without privileges.
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

/// The world of one test. Dropping it ends every process in it.
pub(crate) struct World {
    server: String,
    client: String,
    /// Its name is also that of a socket, which no namespace separates.
    interface: String,
    directory: tempfile::TempDir,
    pub(crate) config: PathBuf,
    binary: PathBuf,
    children: Vec<Child>,
}

/// The user nobody, of whom nothing is expected but that it is not root.
const NOBODY: &str = "65534";

const TOOLS: [&str; 8] = [
    "ip",
    "wg",
    "wireguard-go",
    "setpriv",
    "curl",
    "python3",
    "socat",
    "sha256sum",
];

/// Makes a world, or tells why not: then the test is skipped, unless it is required.
pub(crate) fn world() -> Option<World> {
    let missing = TOOLS.iter().find(|tool| !succeeds("which", &[tool]));
    let problem = if os::process::euid() != 0 {
        Some("not root".to_owned())
    } else {
        missing.map(|tool| format!("no {tool}"))
    };
    let Some(problem) = problem else {
        return Some(World::new());
    };
    let required = |name| std::env::var(name).is_ok_and(|value| value == "required");
    assert!(
        !required("NETNS") && !required("INTEROP"),
        "required, but {problem}"
    );
    eprintln!("SKIPPED: {problem}");
    None
}

impl World {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let (server, client) = (format!("gus{id}"), format!("guc{id}"));
        let interface = format!("guw{id}");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("own directory");
        let run = path.join("run");
        fs::create_dir(&run).expect("make the run directory");
        std::os::unix::fs::chown(&run, Some(65_534), Some(65_534)).expect("root may");
        // The build directory may be closed to others.
        let binary = path.join("ginnel");
        fs::hard_link(env!("CARGO_BIN_EXE_ginnel"), &binary)
            .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_ginnel"), &binary).map(drop))
            .expect("copy the program");
        let config = path.join("wg0.conf");
        let mut world = Self {
            server,
            client,
            interface,
            directory,
            config,
            binary,
            children: Vec::new(),
        };
        world.connect();
        world.start_wireguard();
        world
    }

    fn connect(&self) {
        let (server, client) = (&self.server, &self.client);
        for line in [
            format!("netns add {server}"),
            format!("netns add {client}"),
            format!("link add eth0 netns {client} type veth peer name eth0 netns {server}"),
            format!("-n {client} addr add 10.99.0.1/24 dev eth0"),
            format!("-n {client} link set eth0 up"),
            format!("-n {client} link set lo up"),
            format!("-n {server} addr add 10.99.0.2/24 dev eth0"),
            format!("-n {server} link set eth0 up"),
            format!("-n {server} link set lo up"),
        ] {
            let arguments: Vec<_> = line.split(' ').collect();
            assert!(succeeds("ip", &arguments), "ip {line}");
        }
    }

    fn start_wireguard(&mut self) {
        let (server_key, client_key) = (wg(&["genkey"], ""), wg(&["genkey"], ""));
        let preshared = wg(&["genpsk"], "");
        let interface = self.interface.clone();
        let interface = interface.as_str();
        let child = self
            .server(["wireguard-go", "-f", interface])
            .stderr(Stdio::null())
            .spawn();
        self.children.push(child.expect("start wireguard-go"));
        self.wait_for("wireguard-go", |world| {
            succeeds("ip", &["-n", &world.server, "link", "show", interface])
                && world
                    .server(["wg", "show", interface])
                    .output()
                    .is_ok_and(|o| o.status.success())
        });
        let theirs = self.directory.path().join("server.conf");
        let text = format!(
            "[Interface]\nPrivateKey = {server_key}\nListenPort = 51820\n[Peer]\nPublicKey = {}\n\
             PresharedKey = {preshared}\nAllowedIPs = 10.88.0.2/32, fd88::2/128\n",
            wg(&["pubkey"], &client_key)
        );
        fs::write(&theirs, text).expect("write");
        let path = theirs.to_str().expect("UTF-8");
        assert!(
            self.server(["wg", "setconf", interface, path])
                .status()
                .expect("wg")
                .success()
        );
        for line in [
            format!("-n {} addr add 10.88.0.1/24 dev {interface}", self.server),
            format!(
                "-n {} addr add fd88::1/64 dev {interface} nodad",
                self.server
            ),
            format!("-n {} link set {interface} mtu 1420 up", self.server),
        ] {
            let arguments: Vec<_> = line.split(' ').collect();
            assert!(succeeds("ip", &arguments), "ip {line}");
        }
        let server_public = wg(&["pubkey"], &server_key);
        let text = format!(
            "[Interface]\nPrivateKey = {client_key}\nAddress = 10.88.0.2/32, fd88::2/128\n\
             DNS = 10.88.0.1, test\n[Peer]\nPublicKey = {server_public}\n\
             PresharedKey = {preshared}\nAllowedIPs = 10.88.0.0/24, fd88::/64\n\
             Endpoint = 10.99.0.2:51820\n"
        );
        self.write_config(&text);
    }

    /// Replaces the client's configuration.
    pub(crate) fn write_config(&self, text: &str) {
        fs::write(&self.config, text).expect("write");
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&self.config, open).expect("own file");
    }

    /// Says where the name of the server is for programs on the client's side (ip-netns(8)). Call
    /// it before the first of them starts.
    pub(crate) fn name_server_at(&self, address: &str) {
        let directory = self.names();
        fs::create_dir_all(&directory).expect("root may");
        // In place, for the file is mounted.
        let line = format!("{address} server.test\n");
        fs::write(directory.join("hosts"), line).expect("root may");
    }

    fn names(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.client)
    }

    /// Returns the directory of the world, which the client may read.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the directory where the client may write.
    pub(crate) fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// A program as root behind the tunnel.
    pub(crate) fn server<const N: usize>(&self, line: [&str; N]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.server]).args(line);
        command.stdin(Stdio::null());
        command
    }

    /// A foreign program as root on the client's side.
    pub(crate) fn beside<const N: usize>(&self, line: [&str; N]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client]).args(line);
        command.stdin(Stdio::null());
        command
    }

    /// Lets the server forget every session, as a restart would.
    pub(crate) fn forget_client(&self) {
        let path = self.path().join("server.conf");
        let path = path.to_str().expect("UTF-8");
        let empty = self.path().join("empty.conf");
        let text = fs::read_to_string(path).expect("read");
        let interface = text.split("[Peer]").next().expect("one part");
        fs::write(&empty, interface).expect("write");
        for file in [empty.to_str().expect("UTF-8"), path] {
            assert!(
                self.server(["wg", "setconf", &self.interface, file])
                    .status()
                    .expect("wg")
                    .success()
            );
        }
    }

    /// A program as nobody on the client's side.
    pub(crate) fn client(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.client,
            "setpriv",
            "--reuid",
            NOBODY,
            "--regid",
        ]);
        command.args([
            NOBODY,
            "--clear-groups",
            "--inh-caps=-all",
            "--no-new-privs",
        ]);
        command.arg(program.as_ref());
        command
            .env("XDG_RUNTIME_DIR", self.run())
            .env("HOME", self.run());
        command
            .env_remove("GINNEL_CONFIG")
            .env_remove("GINNEL_STATE")
            .current_dir("/");
        command.stdin(Stdio::null());
        command
    }

    /// `ginnel --config wg0.conf ...` as nobody.
    pub(crate) fn ginnel<const N: usize>(&self, line: [&str; N]) -> Command {
        let mut command = self.client(&self.binary);
        command.arg("--config").arg(&self.config).args(line);
        command
    }

    /// Starts a server program and waits until its port is open.
    pub(crate) fn serve<const N: usize>(&mut self, line: [&str; N], port: u16) {
        let child = self
            .server(line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.children.push(child.expect("start"));
        self.wait_for("the server program", |world| {
            let listening = world.server(["ss", "-Hlntu"]).output().expect("ss");
            String::from_utf8_lossy(&listening.stdout).contains(&format!(":{port} "))
        });
    }

    /// Serves a Python program of the test.
    pub(crate) fn serve_python(&mut self, program: &str, port: u16) {
        self.serve(["python3", "-c", program], port);
    }

    /// Starts a command that prints where it listens, and returns the first `count` lines.
    pub(crate) fn start(&mut self, mut command: Command, count: usize) -> Vec<String> {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        let first: Vec<_> = lines.by_ref().take(count).map_while(Result::ok).collect();
        self.children.push(child);
        // The pipe stays open, so that the command can go on printing.
        thread::spawn(move || lines.count());
        assert_eq!(first.len(), count, "{first:?}");
        first
    }

    /// The status of the agent.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = finished(&mut self.ginnel(["status", "--json"]));
        serde_json::from_str(&output).expect("JSON")
    }

    /// Waits until `condition` holds, at most 20 s.
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if condition(self) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{what}: waited for 20 s");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            for entry in fs::read_dir(self.run().join("ginnel"))
                .into_iter()
                .flatten()
                .flatten()
            {
                if entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log")
                {
                    eprintln!("{}", fs::read_to_string(entry.path()).unwrap_or_default());
                }
            }
        }
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        // It is there in one test only.
        drop(fs::remove_dir_all(self.names()));
        // What is left runs in the namespaces of this test alone.
        for namespace in [&self.client, &self.server] {
            let pids = Command::new("ip")
                .args(["netns", "pids", namespace])
                .output();
            for pid in String::from_utf8_lossy(&pids.expect("ip").stdout).split_whitespace() {
                succeeds("kill", &["-9", pid]);
            }
            succeeds("ip", &["netns", "del", namespace]);
        }
    }
}

/// Runs a command to its end and returns its stdout; it must succeed.
#[track_caller]
pub(crate) fn finished(command: &mut Command) -> String {
    let output = command.output().expect("start");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stderr}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command with `input` on its stdin.
pub(crate) fn fed(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("the writer ends");
    output
}

/// Starts a command whose stdin stays open, and returns it with its stdout.
pub(crate) fn open(command: &mut Command) -> (Child, ChildStdout) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start");
    let stdout = child.stdout.take().expect("piped");
    (child, stdout)
}

/// Writes `text` to a command of [`open`] and reads as much back.
pub(crate) fn exchange(child: &mut Child, stdout: &mut ChildStdout, text: &[u8]) -> Vec<u8> {
    child
        .stdin
        .as_mut()
        .expect("open")
        .write_all(text)
        .expect("write");
    let mut back = vec![0; text.len()];
    stdout.read_exact(&mut back).expect("read");
    back
}

fn wg(line: &[&str], input: &str) -> String {
    let output = fed(Command::new("wg").args(line), input.as_bytes());
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .trim()
        .to_owned()
}

fn succeeds(program: &str, line: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(line)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
