//! Two namespaces, a veth between them, and a tunnel over it.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::Peer;

/// A running tunnel; taken down when dropped.
pub(super) struct World {
    processes: Vec<Child>,
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
    /// Builds everything and waits until the tunnel carries a packet.
    pub(super) fn build(peer: &Peer) -> Result<Self> {
        clear();
        let mut world = Self {
            processes: Vec::new(),
        };
        let [a, b] = &SIDES;
        for side in &SIDES {
            ip(&["netns", "add", side.namespace])?;
        }
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
        ip(&[&link[..], &["name", b.link, "netns", b.namespace]].concat())?;
        for side in &SIDES {
            let space = ["-n", side.namespace];
            let outer = format!("{}/24", side.outer);
            ip(&[&space[..], &["address", "add", &outer, "dev", side.link]].concat())?;
            ip(&[&space[..], &["link", "set", side.link, "up"]].concat())?;
            ip(&[&space[..], &["link", "set", "lo", "up"]].concat())?;
            world.processes.push(start(peer, side)?);
        }
        let keys = [key()?, key()?];
        for (index, side) in SIDES.iter().enumerate() {
            configure(side, &SIDES[1 - index], &keys[index].0, &keys[1 - index].1)?;
        }
        wait_until("the tunnel carries a packet", || {
            let ping = ["ping", "-q", "-c", "1", "-W", "1", TARGET];
            inside(CLIENT, &ping)
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        })?;
        Ok(world)
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
        for process in &mut self.processes {
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

fn start(peer: &Peer, side: &Side) -> Result<Child> {
    let program = peer.program.to_str().context("a path in UTF-8")?;
    let mut command = inside(side.namespace, &[program]);
    command.args(peer.arguments).arg(side.interface);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context("start the tunnel")?;
    let socket = socket(side.interface);
    wait_until("its UAPI socket is there", || socket.exists())?;
    Ok(child)
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
