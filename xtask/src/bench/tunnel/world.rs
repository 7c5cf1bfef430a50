//! Two namespaces, a veth between them, and a tunnel over it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Driven, Far, Peer};
use crate::step;

/// A running tunnel; taken down when dropped.
pub(super) struct World {
    processes: Vec<Child>,
    /// What runs beside the tunnel, and is not counted with it.
    beside: Vec<Child>,
    /// Where programs in [`CLIENT`] reach those at [`TARGET`].
    pub(super) reached_at: &'static str,
}

/// What the two tunnel processes have used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Seconds of CPU of both.
    pub(super) cpu: f64,
    /// The largest resident memory of one, in MB.
    pub(super) memory: f64,
}

/// One end.
struct Side {
    namespace: &'static str,
    link: &'static str,
    interface: &'static str,
    outer: &'static str,
    inner: &'static str,
}

/// Where the traffic comes from.
pub(super) const CLIENT: &str = "ginnel-bench-a";
/// Where it goes.
pub(super) const SERVER: &str = "ginnel-bench-b";
/// The inner address of the server.
pub(super) const TARGET: &str = "10.199.0.2";
const PORT: &str = "51820";
/// The port of iperf3.
const IPERF: &str = "5201";

const SIDES: [Side; 2] = [
    Side {
        namespace: CLIENT,
        link: "gbl0",
        interface: "gbn0",
        outer: "192.0.2.1",
        inner: "10.199.0.1",
    },
    Side {
        namespace: SERVER,
        link: "gbl1",
        interface: "gbn1",
        outer: "192.0.2.2",
        inner: TARGET,
    },
];

impl World {
    /// Builds everything and waits until the tunnel carries a packet. What a relay loses depends on
    /// `seed`.
    pub(super) fn build(peer: &Peer, far: Option<Far>, seed: usize) -> Result<Self> {
        clear();
        let mut world = Self {
            processes: Vec::new(),
            beside: Vec::new(),
            reached_at: TARGET,
        };
        let [a, b] = &SIDES;
        for side in &SIDES {
            ip(&["netns", "add", side.namespace])?;
        }
        match far {
            Some(far) => world.beside.push(relay(a, b, far, seed)?),
            None => veth(a, b)?,
        }
        for side in &SIDES {
            let space = ["-n", side.namespace];
            let outer = format!("{}/24", side.outer);
            ip(&[&space[..], &["address", "add", &outer, "dev", side.link]].concat())?;
            ip(&[&space[..], &["link", "set", side.link, "up"]].concat())?;
            ip(&[&space[..], &["link", "set", "lo", "up"]].concat())?;
        }
        match peer.driven {
            Driven::Wg(words) => world.tunnel(peer, words)?,
            Driven::User(captured) => world.user(peer, captured)?,
            Driven::Captured(captured) => world.captured(peer, captured)?,
        }
        Ok(world)
    }

    /// A tunnel between two interfaces.
    fn tunnel(&mut self, peer: &Peer, words: &[&str]) -> Result<()> {
        let keys = [key()?, key()?];
        for side in &SIDES {
            self.processes.push(start(peer, words, side)?);
        }
        for (index, side) in SIDES.iter().enumerate() {
            configure(side, &SIDES[1 - index], &keys[index].0, &keys[1 - index].1)?;
        }
        wait_until("the tunnel carries a packet", || {
            passes(inside(
                CLIENT,
                &["ping", "-q", "-c", "1", "-W", "1", TARGET],
            ))
        })
    }

    /// A tunnel between two interfaces of ours, and perhaps a capture at the first.
    fn captured(&mut self, peer: &Peer, captured: &[&str]) -> Result<()> {
        self.tunnel(peer, &["tun", "-f"])?;
        if !captured.is_empty() {
            let [a, _] = &SIDES;
            let program = peer.program.to_str().context("a path in UTF-8")?;
            let mut capture = inside(CLIENT, &[program, "capture", "--tun", a.interface]);
            capture.args(captured).args(["-w", "-"]);
            self.beside.push(quiet(capture)?);
        }
        self.still_runs()
    }

    /// A node without an interface, a port that it forwards, and perhaps a capture at it.
    fn user(&mut self, peer: &Peer, captured: &[&str]) -> Result<()> {
        let ([a, b], keys) = (&SIDES, [key()?, key()?]);
        write_configuration(a, b, &keys[0].0, &keys[1].1)?;
        let mut up = node(peer)?;
        up.args(["up", "--user"]);
        self.processes.push(quiet(up)?);
        self.processes.push(start(peer, &["tun", "-f"], b)?);
        configure(b, a, &keys[1].0, &keys[0].1)?;
        wait_until("the tunnel carries a packet", || {
            let ping = node(peer).map(|mut node| {
                node.args(["ping", TARGET, "-c", "1"]);
                node
            });
            ping.is_ok_and(passes)
        })?;
        let mut forward = node(peer)?;
        forward.args(["forward", &format!("{IPERF}:{TARGET}:{IPERF}")]);
        self.beside.push(quiet(forward)?);
        self.reached_at = "127.0.0.1";
        if !captured.is_empty() {
            let mut capture = node(peer)?;
            capture.arg("capture").args(captured).args(["-w", "-"]);
            self.beside.push(quiet(capture)?);
        }
        self.still_runs()
    }

    /// Gives what runs beside the tunnel time to begin, and sees that it has not ended.
    fn still_runs(&mut self) -> Result<()> {
        thread::sleep(Duration::from_millis(500));
        for process in &mut self.beside {
            let ended = process.try_wait().context("look at a process")?;
            ensure!(ended.is_none(), "the forward or the capture ended");
        }
        Ok(())
    }

    /// Reads what the tunnel processes have used.
    pub(super) fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for process in &self.processes {
            let id = process.id();
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).context("read its CPU")?;
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
            // utime and stime, in hundredths of a second (proc_pid_stat(5)).
            for field in [12, 13] {
                let ticks: f64 = fields.get(field).context("short stat")?.parse()?;
                usage.cpu += ticks / 100.0;
            }
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kilobytes = line.and_then(|line| line.split_whitespace().next());
            let kilobytes: f64 = kilobytes.context("read its memory")?.parse()?;
            usage.memory = usage.memory.max(kilobytes / 1000.0);
        }
        Ok(usage)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().chain(&mut self.beside) {
            process.kill().ok();
            process.wait().ok();
        }
        clear();
    }
}

/// Makes a command that runs in a namespace, under its own process id.
pub(super) fn inside(namespace: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).args(words);
    command.stdin(Stdio::null());
    command
}

fn veth(a: &Side, b: &Side) -> Result<()> {
    let link = [
        "link",
        "add",
        a.link,
        "netns",
        a.namespace,
        "type",
        "veth",
        "peer",
    ];
    ip(&[&link[..], &["name", b.link, "netns", b.namespace]].concat())
}

/// Starts the relay of the bench `tcp` between the two, and waits for its interfaces.
fn relay(a: &Side, b: &Side, far: Far, seed: usize) -> Result<Child> {
    let mut command = step::cargo(&["bench", "--quiet", "--package", "xtask", "--bench", "tcp"]);
    command.args(["--", "--between"]);
    for side in [a, b] {
        command.arg(format!("{}={}", side.namespace, side.link));
    }
    command.arg(far.round_trip.to_string());
    command.args([far.loss.to_string(), seed.to_string()]);
    command.stdin(Stdio::piped());
    let child = command.spawn().context("start the relay")?;
    for side in [a, b] {
        let words = ["-n", side.namespace, "link", "show", side.link];
        wait_until("the relay's interface is there", || {
            let mut show = Command::new("ip");
            show.args(words);
            passes(show)
        })?;
    }
    Ok(child)
}

fn start(peer: &Peer, words: &[&str], side: &Side) -> Result<Child> {
    let program = peer.program.to_str().context("a path in UTF-8")?;
    let mut command = inside(side.namespace, &[program]);
    command.args(words).arg(side.interface);
    let child = quiet(command)?;
    let socket = socket(side.interface);
    wait_until("its UAPI socket is there", || socket.exists())?;
    Ok(child)
}

/// Starts a program whose words nobody reads.
fn quiet(mut command: Command) -> Result<Child> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    child.with_context(|| format!("start {command:?}"))
}

fn passes(mut command: Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A command of the node where the traffic comes from.
fn node(peer: &Peer) -> Result<Command> {
    let program = peer.program.to_str().context("a path in UTF-8")?;
    let mut command = inside(CLIENT, &[program]);
    command.arg("--config").arg(configuration());
    Ok(command)
}

fn write_configuration(side: &Side, other: &Side, private: &str, public: &str) -> Result<()> {
    let text = format!(
        "[Interface]\nPrivateKey = {private}\nAddress = {}/32\nListenPort = {PORT}\n[Peer]\n\
         PublicKey = {public}\nAllowedIPs = {}/32\nEndpoint = {}:{PORT}\n",
        side.inner, other.inner, other.outer,
    );
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(configuration());
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.context("write the node's configuration")
}

fn configuration() -> PathBuf {
    std::env::temp_dir().join("ginnel-bench.conf")
}

fn configure(side: &Side, other: &Side, private: &str, public: &str) -> Result<()> {
    let endpoint = format!("{}:{PORT}", other.outer);
    let mut wg = inside(side.namespace, &["wg", "set", side.interface]);
    wg.args([
        "listen-port",
        PORT,
        "private-key",
        "/dev/stdin",
        "peer",
        public,
    ]);
    wg.args([
        "endpoint",
        &endpoint,
        "allowed-ips",
        &format!("{}/32", other.inner),
    ]);
    feed(wg, private)?;
    let inner = format!("{}/24", side.inner);
    let space = ["-n", side.namespace];
    ip(&[
        &space[..],
        &["address", "add", &inner, "dev", side.interface],
    ]
    .concat())?;
    ip(&[
        &space[..],
        &["link", "set", side.interface, "mtu", "1420", "up"],
    ]
    .concat())
}

fn key() -> Result<(String, String)> {
    let private = output(Command::new("wg").arg("genkey").stdin(Stdio::null()))?;
    let mut public = Command::new("wg");
    public.arg("pubkey");
    let public = feed(public, &private)?;
    Ok((private, public))
}

fn feed(mut command: Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start wg")?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn ip(words: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(words)
        .status()
        .context("start ip")?;
    ensure!(status.success(), "ip {} failed", words.join(" "));
    Ok(())
}

fn socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

fn clear() {
    for side in &SIDES {
        let mut command = Command::new("ip");
        command.args(["netns", "delete", side.namespace]);
        command.stderr(Stdio::null()).status().ok();
        fs::remove_file(socket(side.interface)).ok();
    }
    fs::remove_file(configuration()).ok();
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..100 {
        if holds() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("waited in vain until {what}")
}
