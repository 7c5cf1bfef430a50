//! A server, gateways and nodes, each a process of its own with its state in one directory.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// The longest that anything may take before a test fails and says what.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The world of one test. Dropping it ends every process that it started.
pub(crate) struct World {
    directory: tempfile::TempDir,
    /// Where the server's API is.
    pub(crate) url: String,
    /// Where the server's own gateway is.
    pub(crate) wireguard: String,
    /// The token that the server printed at its first start.
    pub(crate) admin: String,
    /// The server.
    pub(crate) server: Option<Process>,
    /// Further flags of the server.
    flags: Vec<String>,
    /// How large the disk of the server's state is, if it has one of its own.
    disk_mebibytes: Option<u32>,
}

/// A process that stays; it ends when this is dropped.
pub(crate) struct Process {
    child: Child,
    /// Behind a lock only so that several threads may run commands of one world.
    lines: Mutex<mpsc::Receiver<String>>,
    errors: PathBuf,
}

/// What a command that ended by itself left.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it said to the person.
    pub(crate) stderr: String,
}

impl World {
    /// Starts a server.
    pub(crate) fn new() -> Self {
        Self::with_flags(&[])
    }

    /// Starts a server with further flags.
    pub(crate) fn with_flags(flags: &[&str]) -> Self {
        Self::made(flags, None)
    }

    /// Starts a server whose state lies on a disk of its own, which only it sees and which is gone
    /// with it; `None` where nobody may mount one.
    pub(crate) fn on_a_disk(mebibytes: u32) -> Option<Self> {
        may_mount().then(|| Self::made(&[], Some(mebibytes)))
    }

    fn made(flags: &[&str], disk_mebibytes: Option<u32>) -> Self {
        let mut world = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            url: String::new(),
            wireguard: String::new(),
            admin: String::new(),
            server: None,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            disk_mebibytes,
        };
        let mut server = world.serve("127.0.0.1:0", "127.0.0.1:0");
        world.url = word(&server.until("server "), "https://");
        let line = server.until("wireguard");
        world.wireguard = line.split_whitespace().last().expect("a word").to_owned();
        world.admin = word(&server.until("ginnel-login-"), "ginnel-login-");
        world.server = Some(server);
        world
    }

    /// Starts a server, signs `laptop` in and lets it run.
    pub(crate) fn with_laptop() -> (Self, Process) {
        let world = Self::new();
        world.login("laptop");
        let laptop = world.up("laptop");
        (world, laptop)
    }

    /// Starts the server of this world again, at the same addresses.
    pub(crate) fn restart_server(&mut self) {
        let listen = self.url.trim_start_matches("https://").to_owned();
        let mut server = self.serve(&listen, &self.wireguard);
        server.until("wireguard");
        self.server = Some(server);
    }

    /// The same with at most `descriptors` open files.
    pub(crate) fn restart_server_limited(&mut self, descriptors: u32) {
        let listen = self.url.trim_start_matches("https://");
        let command = self.server_command(listen, &self.wireguard);
        let mut server = self.spawn(&mut limited(&command, descriptors));
        server.until("wireguard");
        self.server = Some(server);
    }

    fn serve(&self, listen: &str, wireguard: &str) -> Process {
        self.spawn(&mut self.server_command(listen, wireguard))
    }

    fn server_command(&self, listen: &str, wireguard: &str) -> Command {
        let data = self.path("data");
        let line = [
            "server",
            "--data",
            data.to_str().expect("UTF-8"),
            "--listen",
            listen,
            "--wireguard",
            wireguard,
        ];
        let mut command = self.ginnel("server", &line);
        command.args(&self.flags);
        match self.disk_mebibytes {
            Some(mebibytes) => on_a_disk(&command, &data, mebibytes, "true"),
            None => command,
        }
    }

    /// Returns where a file of the server's state is, also on a disk that only the server sees.
    pub(crate) fn server_path(&self, name: &str) -> PathBuf {
        let server = self.server.as_ref().expect("it runs").pid();
        let data = self.path("data").join(name);
        let data = data.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{server}/root")).join(data)
    }

    /// Returns a path in this world's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command with the state of `who`.
    pub(crate) fn ginnel(&self, who: &str, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ginnel"));
        command.arg("--state").arg(self.path(who)).args(line);
        for name in ["GINNEL_STATE", "GINNEL_CONFIG", "GINNEL_TOKEN"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).current_dir("/");
        command
    }

    /// Runs a command to its end.
    pub(crate) fn try_run(&self, who: &str, line: &[&str]) -> Ended {
        finish(&mut self.ginnel(who, line))
    }

    /// Runs a command that has to succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn run(&self, who: &str, line: &[&str]) -> String {
        let ended = self.try_run(who, line);
        assert_eq!(ended.code, Some(0), "{line:?}: {ended:?}");
        ended.stdout
    }

    /// Runs a command that has to succeed, and reads the JSON that it printed.
    #[track_caller]
    pub(crate) fn json(&self, who: &str, line: &[&str]) -> serde_json::Value {
        let text = self.run(who, &[line, &["--json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    /// Signs `who` in with the first login token.
    #[track_caller]
    pub(crate) fn login(&self, who: &str) {
        let line = ["login", &self.url, "--token", &self.admin, "--name", who];
        self.run(who, &line);
    }

    /// Makes a token as the administrator at `laptop`.
    #[track_caller]
    pub(crate) fn token(&self, line: &[&str]) -> String {
        let made = self.run("laptop", &[&["token", "add"], line].concat());
        made.trim().to_owned()
    }

    /// Enrols a machine into the first organisation.
    #[track_caller]
    pub(crate) fn join(&self, who: &str) {
        let token = self.token(&[]);
        self.join_with(who, who, &token);
    }

    /// Enrols the machine with the state `who` as `name`.
    #[track_caller]
    pub(crate) fn join_with(&self, who: &str, name: &str, token: &str) {
        self.run(who, &["join", &self.url, "--token", token, "--name", name]);
    }

    /// Runs the node of `who` until the process is dropped, and waits until a gateway has a
    /// session with it: others reach it from then on.
    #[track_caller]
    pub(crate) fn up(&self, who: &str) -> Process {
        self.up_with(who, &[])
    }

    /// Does the same with further flags.
    #[track_caller]
    pub(crate) fn up_with(&self, who: &str, flags: &[&str]) -> Process {
        let line = [&["up", "--user"], flags].concat();
        let process = self.start(who, &line, "is ready").0;
        wait_for("a session with a gateway", || {
            self.json(who, &["status"])["node"]["peers_up"] != 0
        });
        process
    }

    /// Enrols a machine, publishes `service` there at `port` with `target`, and runs it.
    #[track_caller]
    pub(crate) fn machine(
        &self,
        who: &str,
        service: &str,
        port: u16,
        target: SocketAddr,
    ) -> Process {
        self.join(who);
        self.publish(who, service, port, target);
        self.up(who)
    }

    /// Publishes a service of `who`.
    #[track_caller]
    pub(crate) fn publish(&self, who: &str, service: &str, port: u16, target: SocketAddr) {
        let (port, target) = (port.to_string(), target.to_string());
        let line = [
            "service", "add", service, "--port", &port, "--target", &target,
        ];
        self.run(who, &line);
    }

    /// Enrols a gateway apart from the server and runs it; the name of its state is its own.
    #[track_caller]
    pub(crate) fn gateway(&self, who: &str) -> Process {
        let token = self.token(&["--kind", "gateway"]);
        let endpoint = free_udp();
        let line = [
            "gateway",
            &self.url,
            "--token",
            &token,
            "--endpoint",
            &endpoint,
            "--wireguard",
            &endpoint,
            "--name",
            who,
        ];
        self.start(who, &line, "is ready").0
    }

    /// Runs an enrolled gateway again.
    #[track_caller]
    pub(crate) fn gateway_again(&self, who: &str) -> Process {
        self.start(who, &["gateway", &self.url], "is ready").0
    }

    /// Starts a command that stays, and returns it with the first line that contains `sign`.
    #[track_caller]
    pub(crate) fn start(&self, who: &str, line: &[&str], sign: &str) -> (Process, String) {
        let mut process = self.spawn(&mut self.ginnel(who, line));
        let found = process.until(sign);
        (process, found)
    }

    /// Runs the node of `who` with at most `descriptors` open files.
    #[track_caller]
    pub(crate) fn up_limited(&self, who: &str, descriptors: u32) -> Process {
        let command = self.ginnel(who, &["up", "--user"]);
        let mut process = self.spawn(&mut limited(&command, descriptors));
        process.until("is ready");
        process
    }

    /// Starts a forward of `who` to a remote port, and returns where it listens.
    #[track_caller]
    pub(crate) fn forward(&self, who: &str, host: &str, port: u16) -> (Process, SocketAddr) {
        let spec = format!("127.0.0.1:0:{host}:{port}");
        let (process, line) = self.start(who, &["forward", &spec], "leads to");
        let local = line.split_whitespace().next().expect("a word");
        (process, local.parse().expect("an address"))
    }

    /// Starts a command of this world.
    pub(crate) fn spawn(&self, command: &mut Command) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Process::spawn(command, self.path(&format!("stderr-{number}.log")))
    }

    /// Returns the pids of every process that has this world's directory in its command line:
    /// what the test started, and the agents which that started.
    pub(crate) fn pids(&self) -> Vec<u32> {
        pids_with(self.directory.path())
    }

    /// Returns everything that processes of this world wrote for people and logs.
    pub(crate) fn logs(&self) -> String {
        let mut texts = Vec::new();
        for path in files_below(self.directory.path()) {
            if path.extension().is_some_and(|extension| extension == "log") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                texts.push(format!("== {}\n{text}", path.display()));
            }
        }
        texts.join("\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            note(&self.logs());
        }
        self.server = None;
        // Agents that commands started on demand.
        for pid in self.pids() {
            signal(pid, "KILL");
        }
        wait_for("the end of every process", || self.pids().is_empty());
    }
}

impl Process {
    /// Starts a command whose stderr goes to the file `errors`.
    pub(crate) fn spawn(command: &mut Command, errors: PathBuf) -> Self {
        let stderr = File::create(&errors).expect("create a log");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("start");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Who does not read on has all that it wanted; the pipe must not fill up.
                drop(sender.send(line));
            }
        });
        Self {
            child,
            lines: Mutex::new(lines),
            errors,
        }
    }

    /// Returns the next line that contains `sign`.
    #[track_caller]
    pub(crate) fn until(&mut self, sign: &str) -> String {
        loop {
            match self.lines().recv_timeout(WAIT_MAX) {
                Ok(line) if line.contains(sign) => return line,
                Ok(_) => {}
                Err(_) => panic!("no line with `{sign}`: {}", self.stderr()),
            }
        }
    }

    fn lines(&mut self) -> &mut mpsc::Receiver<String> {
        self.lines.get_mut().expect("nobody panicked with the lock")
    }

    /// Takes the lines that were printed so far.
    pub(crate) fn lines_so_far(&mut self) -> Vec<String> {
        self.lines().try_iter().collect()
    }

    /// Forgets the lines that were printed so far.
    pub(crate) fn forget_lines(&mut self) {
        while self.lines().try_recv().is_ok() {}
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, named as kill(1) does.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Ends the process as a power failure would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("it ends");
    }

    /// Waits until the process ends by itself.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Ended {
        let mut status: Option<ExitStatus> = None;
        wait_for("the end of a process", || {
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        Ended {
            code: status.and_then(|status| status.code()),
            stdout: self.lines().iter().collect::<Vec<_>>().join("\n"),
            stderr: self.stderr(),
        }
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The same command with at most `descriptors` open files, which it cannot raise.
fn limited(command: &Command, descriptors: u32) -> Command {
    let mut limited = Command::new("sh");
    let script = format!("ulimit -n {descriptors} && exec \"$@\"");
    limited.args(["-c", &script, "sh"]);
    as_it_was(&mut limited, command);
    limited
}

/// Begins a command that runs the rest of its line with mounts of its own.
fn with_private_mounts() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if finish(Command::new("id").arg("-u")).stdout.trim() != "0" {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

/// Tells whether a command may have mounts of its own, which is a fault where all are required.
#[track_caller]
pub(crate) fn may_mount() -> bool {
    let may = with_private_mounts().arg("true").status();
    let may = may.is_ok_and(|status| status.success());
    if !may {
        let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
        assert!(!required, "required, but nobody may mount a disk");
        note("SKIPPED: nobody may mount a disk");
    }
    may
}

/// The same command with a disk at `directory` that is in memory, on which `made` was run.
pub(crate) fn on_a_disk(
    command: &Command,
    directory: &Path,
    mebibytes: u32,
    made: &str,
) -> Command {
    fs::create_dir_all(directory).expect("make a directory");
    let script = format!(
        "mount -t tmpfs -o size={mebibytes}m,mode=711 ginnel-test \"$1\" && {made} && shift && \
         exec \"$@\""
    );
    let mut on_a_disk = with_private_mounts();
    on_a_disk.args(["sh", "-c", &script, "sh"]).arg(directory);
    as_it_was(&mut on_a_disk, command);
    on_a_disk
}

/// Lets `outer` run `command` with its environment.
fn as_it_was(outer: &mut Command, command: &Command) {
    outer
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .current_dir("/");
    for (name, _) in command.get_envs() {
        outer.env_remove(name);
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Ended {
    let output = command.output().expect("start");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Waits until `condition` holds and returns how long it took.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begin = now();
    while !condition() {
        let waited = now().duration_since(begin);
        assert!(waited < WAIT_MAX, "{what}: waited for {waited:?}");
        thread::sleep(LOOK_AGAIN);
    }
    now().duration_since(begin)
}

/// Reads the clock.
pub(crate) fn now() -> Instant {
    os::clock::Clock::start().now()
}

/// Tells whether a foreign program is missing, which is a fault where all are required.
#[track_caller]
pub(crate) fn lacks(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !found {
        let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
        assert!(!required, "`{program}` is not installed");
        note(&format!("SKIPPED: `{program}` is not installed"));
    }
    !found
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    // That it fails is well: the process may have ended by itself.
    sent.expect("start kill");
}

/// Returns the pids of every process whose command line holds `path`.
pub(crate) fn pids_with(path: &Path) -> Vec<u32> {
    let path = path.to_str().expect("UTF-8");
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = std::process::id();
    pids.filter(|pid| *pid != own && command_line(*pid).contains(path))
        .collect()
}

/// Returns a process's command line, empty once it is gone.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Returns every file below `directory`.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) | Err(_) => files.push(entry.path()),
            }
        }
    }
    files
}

/// Returns a UDP address of this machine that nobody uses.
pub(crate) fn free_udp() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("it is bound").to_string()
}

/// Serves `answer` to everybody who connects, each on a thread of its own.
pub(crate) fn serve(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || answer(stream));
        }
    });
    address
}

/// Serves back what it is sent.
pub(crate) fn serve_echo() -> SocketAddr {
    serve(|mut stream| {
        let mut reader = stream.try_clone().expect("a second handle");
        // The other side may go away at any time.
        drop(std::io::copy(&mut reader, &mut stream));
        drop(stream.shutdown(std::net::Shutdown::Write));
    })
}

/// Serves one web page.
pub(crate) fn serve_page(page: &'static str) -> SocketAddr {
    serve(move |mut stream| {
        let mut request = [0; 1024];
        let length = page.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
        );
        // The other side may go away at any time.
        drop(stream.read(&mut request));
        drop(stream.write_all(answer.as_bytes()));
    })
}

/// Sends `text` to an echo behind `local` and reads it back.
pub(crate) fn echoes(local: SocketAddr, text: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(local) else {
        return false;
    };
    let mut back = vec![0; text.len()];
    stream.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    stream.write_all(text).is_ok() && stream.read_exact(&mut back).is_ok() && back == text
}

/// Says something beside the verdict: a measurement, or the logs of a failure.
#[expect(
    clippy::print_stderr,
    reason = "the test runner shows it with the test"
)]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Returns the first word of `text` that starts with `start`.
#[track_caller]
pub(crate) fn word(text: &str, start: &str) -> String {
    let word = text.split_whitespace().find(|word| word.starts_with(start));
    word.expect("the line has such a word").to_owned()
}
