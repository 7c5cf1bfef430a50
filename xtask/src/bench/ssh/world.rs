//! Servers, keys and nodes of the bench, all on loopback and gone with it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{TcpListener, UdpSocket},
    ops::{Add, Sub},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{CIPHER, relay};

/// Where scratch files go.
struct Folder(PathBuf);

/// OpenSSH's client with a key, and servers that take it.
pub(super) struct Openssh {
    folder: Folder,
    ours: PathBuf,
}

/// A process that ends with this value.
pub(super) struct Process(Child);

/// A server at a port of loopback.
pub(super) struct Server {
    pub(super) process: Process,
    pub(super) port: u16,
}

/// Where a client of OpenSSH's goes.
pub(super) enum Target<'a> {
    Port(u16),
    Node(&'a World),
    Service(&'a World),
}

/// A control plane, a gateway, and two nodes: `laptop`, and `shed` that serves SSH.
pub(super) struct World {
    folder: Folder,
    ours: PathBuf,
    _server: Process,
    _gateway: Process,
    shed: Process,
}

/// Seconds of CPU.
#[derive(Clone, Copy)]
pub(super) struct Cpu(f64);

/// Clock ticks a second in /proc (proc(5); USER_HZ is 100 on every architecture that we run on).
const TICKS: f64 = 100.0;

const SERVICE: &str = "2222";

impl Folder {
    fn new() -> Result<Self> {
        let made = Command::new("mktemp").args(["-d"]).output()?;
        ensure!(made.status.success(), "make a directory");
        Ok(Self(PathBuf::from(String::from_utf8(made.stdout)?.trim())))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stderr(File::create(log)?)
            .spawn();
        Ok(Self(child.with_context(|| format!("start {command:?}"))?))
    }

    /// Starts a command and returns the first line with `sign`.
    fn until(command: &mut Command, log: &Path, sign: &str) -> Result<(Self, String)> {
        let mut process = Self::start(command.stdout(Stdio::piped()), log)?;
        let stdout = process.0.stdout.take().context("piped")?;
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains(sign));
        let line = line.with_context(|| {
            let said = fs::read_to_string(log).unwrap_or_default();
            format!("{command:?} says no `{sign}`: {said}")
        })?;
        // The pipe must not fill up.
        thread::spawn(move || lines.for_each(drop));
        Ok((process, line))
    }

    /// What it and its children have used; waits for those that are about to end.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        let id = self.0.id();
        let children = format!("/proc/{id}/task/{id}/children");
        for _ in 0..500 {
            if fs::read_to_string(&children)?.trim().is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        Cpu::of(&self.0.id().to_string(), 13..17)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Cpu {
    /// What children of this process that have ended have used.
    pub(super) fn of_children() -> Result<Self> {
        Self::of("self", 15..17)
    }

    fn of(process: &str, fields: std::ops::Range<usize>) -> Result<Self> {
        let line = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name in parentheses is the second field and may hold blanks.
        let rest = line.rsplit(") ").next().context("a line of /proc")?;
        let words: Vec<_> = rest.split_whitespace().collect();
        let ticks = fields.map(|field| words[field - 2].parse::<f64>().unwrap_or_default());
        Ok(Self(ticks.sum::<f64>() / TICKS))
    }
}

impl Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Cpu {
    type Output = f64;

    fn sub(self, other: Self) -> f64 {
        self.0 - other.0
    }
}

impl Openssh {
    pub(super) fn new(ours: &Path) -> Result<Self> {
        let folder = Folder::new()?;
        for name in ["ca", "host", "me"] {
            run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.at(name)))?;
        }
        run(Command::new("ssh-keygen")
            .args(["-q", "-I", "me", "-n", "root", "-s"])
            .args([folder.at("ca"), folder.at("me.pub")]))?;
        let ours = ours.to_owned();
        Ok(Self { folder, ours })
    }

    pub(super) fn serve_ours(&self) -> Result<Server> {
        let mut command = Command::new(&self.ours);
        command.args(["ssh-server", "run", "--listen", "127.0.0.1:0", "--user-ca"]);
        command.arg(self.folder.at("ca.pub")).arg("--host-key");
        command.arg(self.folder.at("host"));
        let log = self.folder.at("ours.log");
        let (process, line) = Process::until(&mut command, &log, "ssh at")?;
        let port = line.rsplit(':').next().context("a port")?.trim().parse()?;
        Ok(Server { process, port })
    }

    pub(super) fn serve_openssh(&self) -> Result<Server> {
        let port = free_port()?;
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nTrustedUserCAKeys {}\n\
             PidFile none\nUsePAM no\nPermitRootLogin yes\nStrictModes no\nLogLevel ERROR\n\
             AuthorizedKeysFile none\n",
            self.folder.text("host"),
            self.folder.text("ca.pub")
        );
        fs::write(self.folder.at("sshd_config"), config)?;
        fs::create_dir_all("/run/sshd")?;
        let mut command = Command::new("/usr/sbin/sshd");
        command
            .arg("-D")
            .arg("-f")
            .arg(self.folder.at("sshd_config"));
        let process = Process::start(&mut command, &self.folder.at("sshd.log"))?;
        let server = Server { process, port };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("sshd does not listen")
    }

    /// A client that waits for the command to run.
    pub(super) fn client(&self, target: &Target<'_>) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-c", CIPHER]);
        command.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        command.args(["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"]);
        command.env_remove("SSH_AUTH_SOCK");
        let by = |world: &World, port: &str| {
            let (ours, state) = (self.ours.display(), world.folder.text("laptop"));
            format!("ProxyCommand={ours} --state {state} dial shed {port}")
        };
        let key = match target {
            Target::Port(port) => {
                command.args(["-p", &port.to_string()]);
                self.folder.text("me")
            }
            Target::Service(world) => {
                command.args(["-o", &by(world, SERVICE)]);
                self.folder.text("me")
            }
            Target::Node(world) => {
                command.args(["-o", &by(world, "22")]);
                world.folder.text("key")
            }
        };
        command.args(["-i", &key, "root@127.0.0.1"]);
        command
    }
}

impl World {
    /// Starts everything; `laptop` and `shed` are `round_trip` apart, half of it behind the
    /// gateway.
    pub(super) fn start(ours: &Path, sshd: u16, round_trip: Duration) -> Result<Self> {
        let folder = Folder::new()?;
        let (server, url, admin) = serve(ours, &folder)?;
        // A quarter of the round trip each: every packet passes the relay of its node once.
        let delay = round_trip / 4;
        let port = url.rsplit(':').next().context("a port")?.parse()?;
        let far = format!("https://127.0.0.1:{}", relay::tcp(port, delay)?);
        let run_as = |who: &str, line: &[&str]| output(&mut command(ours, &folder, who, line));
        run_as(
            "laptop",
            &["login", &far, "--token", &admin, "--name", "laptop"],
        )?;
        let token = run_as("laptop", &["token", "add", "--kind", "gateway"])?;
        let public = UdpSocket::bind("127.0.0.1:0")?;
        let (endpoint, real) = (public.local_addr()?.to_string(), free_udp()?);
        relay::udp(public, real.parse()?, delay);
        let line = [
            "gateway",
            &url,
            "--token",
            &token,
            "--endpoint",
            &endpoint,
            "--wireguard",
            &real,
        ];
        let mut gateway = command(ours, &folder, "gateway", &line);
        let (gateway, _) = Process::until(&mut gateway, &folder.at("gateway.log"), "is ready")?;
        let token = run_as("laptop", &["token", "add"])?;
        run_as("shed", &["join", &url, "--token", &token, "--name", "shed"])?;
        let target = format!("127.0.0.1:{sshd}");
        let line = [
            "service", "add", "sshd", "--port", SERVICE, "--target", &target,
        ];
        run_as("shed", &line)?;
        let mut shed = command(ours, &folder, "shed", &["up", "--user", "--ssh"]);
        let (shed, _) = Process::until(&mut shed, &folder.at("shed.log"), "is ready")?;
        let world = Self {
            ours: ours.to_owned(),
            _server: server,
            _gateway: gateway,
            shed,
            folder,
        };
        world.await_login()?;
        let key = world.folder.text("key");
        let line = ["cert", "--out", &key, "--principal", "root", "--ttl", "12h"];
        output(&mut command(&world.ours, &world.folder, "laptop", &line))?;
        Ok(world)
    }

    /// The host is certified after it is ready.
    fn await_login(&self) -> Result<()> {
        for _ in 0..100 {
            let mut login = self.ginnel_ssh();
            if output(login.arg("true")).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        anyhow::bail!(
            "no login: {}",
            fs::read_to_string(self.folder.at("shed.log"))?
        )
    }

    /// Our client at our server.
    pub(super) fn ginnel_ssh(&self) -> Command {
        let mut command = command(&self.ours, &self.folder, "laptop", &["ssh", "root@shed"]);
        command.stderr(Stdio::null());
        command
    }

    /// Lets the laptop's agent run.
    pub(super) fn warm(&self) -> Result<()> {
        output(self.ginnel_ssh().arg("true")).map(drop)
    }

    /// Ends the laptop's agent, which the next command starts again.
    pub(super) fn chill(&self) -> Result<()> {
        let line = ["--state", &self.folder.text("laptop")].join(" ");
        let found = Command::new("pgrep").args(["-f", "--", &line]).output()?;
        for pid in String::from_utf8_lossy(&found.stdout).split_whitespace() {
            drop(Command::new("kill").args(["-TERM", pid]).status());
            while Path::new("/proc").join(pid).exists() {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// What both nodes have used.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        let line = ["--state", &self.folder.text("laptop")].join(" ");
        let found = Command::new("pgrep").args(["-f", "--", &line]).output()?;
        let mut cpu = self.shed.cpu()?;
        for pid in String::from_utf8_lossy(&found.stdout).split_whitespace() {
            cpu = cpu + Cpu::of(pid, 13..17).unwrap_or(Cpu(0.0));
        }
        Ok(cpu)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.chill());
    }
}

/// Starts the control plane; returns its URL and its first token.
fn serve(ours: &Path, folder: &Folder) -> Result<(Process, String, String)> {
    let data = folder.text("data");
    let server = [
        "server",
        "--data",
        &data,
        "--listen",
        "127.0.0.1:0",
        "--wireguard",
        "127.0.0.1:0",
    ];
    let mut command = command(ours, folder, "server", &server);
    let log = folder.at("server.log");
    let mut server = Process::start(command.stdout(Stdio::piped()), &log)?;
    let stdout = server.0.stdout.take().context("piped")?;
    let (mut url, mut admin) = (String::new(), String::new());
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    while url.is_empty() || admin.is_empty() {
        let line = lines.next().context("the server ended")?;
        for word in line.split_whitespace() {
            if word.starts_with("https://") {
                url = word.to_owned();
            } else if word.starts_with("ginnel-login-") {
                admin = word.to_owned();
            }
        }
    }
    thread::spawn(move || lines.for_each(drop));
    Ok((server, url, admin))
}

fn command(ours: &Path, folder: &Folder, who: &str, line: &[&str]) -> Command {
    let mut command = Command::new(ours);
    command.args(["--state", &folder.text(who)]).args(line);
    command.stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn free_udp() -> Result<String> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
