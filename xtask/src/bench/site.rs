//! Two offices through a hub: devices with nothing installed, one machine in each office that
//! forwards, ours against wireguard-go before the kernel's forwarding.
//!
//! ```text
//!   iperf3 ── device ── node ═══ hub ═══ node ── device ── iperf3
//!     192.168.201.55  .2                      .2  192.168.200.55
//! ```

use std::{
    fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::tunnel::{self, Peer};
use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  site takes --rounds N, --seconds N, --ours PATH and --peer NAME=PATH (another wireguard-go, or
  ginnel-NAME as another build of ours); it needs root, iperf3, iproute2 and wireguard-tools";

/// Machines, by their namespaces.
const DEVICES: [&str; 2] = ["ginnel-site-d0", "ginnel-site-d1"];
const NODES: [&str; 2] = ["ginnel-site-n0", "ginnel-site-n1"];
const HUB: &str = "ginnel-site-hub";

/// The third byte of the addresses of each office.
const NETS: [u8; 2] = [201, 200];
const PORT: &str = "51820";

/// What is measured: its name, and what `iperf3` is told.
const CASES: [(&str, &[&str]); 3] = [("tcp1", &[]), ("tcp1-reverse", &["-R"]), ("tcp4", &["-P4"])];

/// One result.
#[derive(Clone, Copy)]
struct Measured {
    /// Gbit/s of payload that arrived.
    speed: f64,
    /// CPU seconds of the three programs for each GB.
    cpu: f64,
    retransmits: f64,
}

/// The machines and what runs on them; taken down when dropped.
struct World {
    /// Those whose CPU counts.
    programs: Vec<Child>,
    /// Keys, logs and the server's data; removed with the rest.
    state: PathBuf,
}

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (mut rounds, mut seconds, mut ours, mut extra) = (3_usize, 4_u32, None, Vec::new());
    for pair in arguments.chunks(2) {
        let [argument, value] = pair else {
            bail!("{} takes a value\n{USAGE}", pair[0]);
        };
        match *argument {
            "--rounds" => rounds = value.parse().context("parse --rounds")?,
            "--seconds" => seconds = value.parse().context("parse --seconds")?,
            "--ours" => ours = Some(PathBuf::from(value)),
            "--peer" => extra.push(tunnel::other(value)?),
            _ => bail!("unexpected argument `{argument}`\n{USAGE}"),
        }
    }
    let mut peers = vec![tunnel::ours(ours)?];
    let installed = tunnel::installed().into_iter();
    peers.extend(installed.filter(|peer| peer.name == "wireguard-go"));
    peers.extend(extra);
    let mut results = vec![Vec::new(); CASES.len() * peers.len()];
    for round in 1..=rounds {
        for (place, peer) in peers.iter().enumerate() {
            step::note(&format!("round {round} of {rounds}: {}", peer.name));
            let world = World::build(peer).with_context(|| format!("build with {}", peer.name))?;
            for (case, (name, words)) in CASES.iter().enumerate() {
                let measured = world.measure(seconds, words);
                let measured = measured.with_context(|| format!("{name} of {}", peer.name))?;
                results[case * peers.len() + place].push(measured);
            }
        }
    }
    step::say(&table(&peers, &results));
    Ok(())
}

/// Medians over the rounds, and ratios to ours.
fn table(peers: &[Peer], results: &[Vec<Measured>]) -> String {
    let mut table = String::from(
        "\n| case | program | Gbit/s (range) | ours is | CPU-s per GB | ours is | retransmits |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for ((name, _), rows) in CASES.iter().zip(results.chunks(peers.len())) {
        let ours = [|one: &Measured| one.speed, |one: &Measured| one.cpu].map(|of| {
            let [_, median, _] = spread(&rows[0], of);
            median
        });
        for (peer, row) in peers.iter().zip(rows) {
            let [low, speed, high] = spread(row, |one| one.speed);
            let [_, cpu, _] = spread(row, |one| one.cpu);
            let [_, retransmits, _] = spread(row, |one| one.retransmits);
            table += &format!(
                "| {name} | {} | {speed:.2} ({low:.2}-{high:.2}) | {:.2} | {cpu:.2} | {:.2} | \
                 {retransmits:.0} |\n",
                peer.name,
                ours[0] / speed,
                ours[1] / cpu,
            );
        }
    }
    table
}

/// The least, the median and the most.
fn spread(rows: &[Measured], of: impl Fn(&Measured) -> f64) -> [f64; 3] {
    let mut values: Vec<_> = rows.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [values[0], values[values.len() / 2], values[last]]
}

impl World {
    fn build(peer: &Peer) -> Result<Self> {
        clear();
        let mut world = Self {
            programs: Vec::new(),
            state: directory()?,
        };
        for space in DEVICES.iter().chain(&NODES).chain([&HUB]) {
            ip(&["netns", "add", space])?;
            ip(&["-n", space, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", HUB, "address", "add", "10.0.1.1/32", "dev", "lo"])?;
        for place in 0..2 {
            lay(place)?;
        }
        if peer.name.starts_with("ginnel") {
            world.ours(&peer.program)?;
        } else {
            world.theirs(peer)?;
        }
        let far = format!("192.168.{}.55", NETS[1]);
        wait_until("the offices reach each other", || {
            passes(inside(DEVICES[0], &["ping", "-q", "-c1", "-W1", &far]))
        })?;
        Ok(world)
    }

    /// A server with its gateway, and a routed site in each office.
    fn ours(&mut self, program: &Path) -> Result<()> {
        let program = program.to_str().context("a path in UTF-8")?;
        let state = self.state.clone();
        let ginnel = |space: &str, own: &str, words: &[&str]| {
            let mut command = inside(space, &[&[program][..], words].concat());
            command.env("GINNEL_STATE", state.join(own));
            command.env_remove("XDG_RUNTIME_DIR");
            command
        };
        let data = state.join("data");
        let data = data.to_str().context("a path in UTF-8")?;
        let mut server = ginnel(HUB, "hub", &["server", "--data", data]);
        server.args(["--listen", "0.0.0.0:8443", "--public", "10.0.1.1:8443"]);
        let log = state.join("server.log");
        let wireguard = format!("0.0.0.0:{PORT}");
        server.args(["--wireguard", &wireguard]);
        self.programs.push(logged(server, &log)?);
        wait_until("the server is ready", || {
            said(&log).contains("ginnel-login-")
        })?;
        let text = said(&log);
        let (url, admin) = (word(&text, "https://")?, word(&text, "ginnel-login-")?);
        let admin = ["login", url, "--token", admin, "--name", "laptop"];
        succeeded(ginnel(HUB, "laptop", &admin))?;
        for place in 0..2 {
            let name = ["south", "north"][place];
            let made = succeeded(ginnel(HUB, "laptop", &["token", "add"]))?;
            let token = word(&made, "ginnel-join-")?;
            let join = ["join", url, "--token", token, "--name", name];
            succeeded(ginnel(NODES[place], name, &join))?;
            let prefix = format!("192.168.{}.0/24", NETS[place]);
            let site = ["site", "add", name, "--node", name, "--prefix", &prefix];
            let site = [&site[..], &["--mode", "routed"]].concat();
            succeeded(ginnel(HUB, "laptop", &site))?;
            let log = state.join(format!("{name}.log"));
            let up = ginnel(NODES[place], name, &["up", "--tun"]);
            self.programs.push(logged(up, &log)?);
            wait_until("the node is ready", || said(&log).contains("is ready"))?;
        }
        for rule in [["site:south", "site:north"], ["site:north", "site:south"]] {
            let rule = ["policy", "add", "--from", rule[0], "--to", rule[1]];
            succeeded(ginnel(HUB, "laptop", &rule))?;
        }
        // The administrator's agent was started on demand.
        succeeded(ginnel(HUB, "laptop", &["logout", "--force"]))?;
        Ok(())
    }

    /// An interface at each of the three, and the kernel's routes.
    fn theirs(&mut self, peer: &Peer) -> Result<()> {
        let spaces = [NODES[0], NODES[1], HUB];
        let mut keys = Vec::new();
        for space in spaces {
            let interface = interface(space);
            let mut command = inside(space, &[]);
            command.arg(&peer.program).args(["-f", &interface]);
            let log = self.state.join(&interface);
            self.programs.push(logged(command, &log)?);
            let socket = format!("/var/run/wireguard/{interface}.sock");
            wait_until("its socket is there", || Path::new(&socket).exists())?;
            let private = succeeded(inside(space, &["wg", "genkey"]))?;
            let public = fed(inside(space, &["wg", "pubkey"]), &private)?;
            keys.push((private, public.trim().to_owned()));
        }
        for (place, space) in spaces.iter().enumerate() {
            let name = interface(space);
            let mut set = inside(space, &["wg", "set", &name, "listen-port", PORT]);
            set.args(["private-key", "/dev/stdin"]);
            let mut routes = Vec::new();
            if *space == HUB {
                for (place, net) in NETS.iter().enumerate() {
                    let prefix = format!("192.168.{net}.0/24");
                    set.args(["peer", &keys[place].1, "allowed-ips", &prefix]);
                    routes.push(prefix);
                }
            } else {
                let prefix = format!("192.168.{}.0/24", NETS[1 - place]);
                let endpoint = format!("10.0.1.1:{PORT}");
                set.args(["peer", &keys[2].1, "allowed-ips", &prefix]);
                set.args(["endpoint", &endpoint, "persistent-keepalive", "25"]);
                routes.push(prefix);
            }
            fed(set, &keys[place].0)?;
            ip(&["-n", space, "link", "set", &name, "mtu", "1420", "up"])?;
            for route in routes {
                ip(&["-n", space, "route", "add", &route, "dev", &name])?;
            }
        }
        Ok(())
    }

    fn measure(&self, seconds: u32, words: &[&str]) -> Result<Measured> {
        let far = format!("192.168.{}.55", NETS[1]);
        let mut server = inside(DEVICES[1], &["iperf3", "-s", "-1"]);
        let mut server = server.stdout(Stdio::null()).spawn().context("iperf3")?;
        thread::sleep(Duration::from_millis(300));
        let before = self.cpu()?;
        let mut client = inside(DEVICES[0], &["iperf3", "-J", "-c", &far]);
        let output = client
            .arg("-t")
            .arg(seconds.to_string())
            .args(words)
            .output();
        let used = self.cpu()? - before;
        server.kill().ok();
        server.wait().ok();
        let report: Value = serde_json::from_slice(&output.context("iperf3")?.stdout)?;
        let number = |path: &str| {
            let found = report.pointer(path).and_then(Value::as_f64);
            found.with_context(|| format!("iperf3 reports no {path}: {}", report["error"]))
        };
        Ok(Measured {
            speed: number("/end/sum_received/bits_per_second")? / 1e9,
            cpu: used / (number("/end/sum_received/bytes")? / 1e9),
            retransmits: number("/end/sum_sent/retransmits")?,
        })
    }

    /// Seconds of user and system time of the programs so far (proc_pid_stat(5)).
    fn cpu(&self) -> Result<f64> {
        let mut ticks = 0.0;
        for program in &self.programs {
            let stat = fs::read_to_string(format!("/proc/{}/stat", program.id()));
            let stat = stat.context("a program has ended")?;
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
            for field in [12, 13] {
                let field: f64 = fields.get(field).context("short stat")?.parse()?;
                ticks += field;
            }
        }
        Ok(ticks / 100.0)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for program in &mut self.programs {
            program.kill().ok();
            program.wait().ok();
        }
        clear();
        fs::remove_dir_all(&self.state).ok();
    }
}

/// Makes a directory that nobody else can read.
fn directory() -> Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("ginnel-bench-site-{}", std::process::id()));
    fs::remove_dir_all(&directory).ok();
    let made = fs::DirBuilder::new().mode(0o700).create(&directory);
    made.context("make a directory")?;
    Ok(directory)
}

/// Lays the cables of an office.
fn lay(place: usize) -> Result<()> {
    let (net, device, node) = (NETS[place], DEVICES[place], NODES[place]);
    let (lan, uplink) = (format!("gsl{place}"), format!("gsu{place}"));
    cable((device, "eth0"), (node, &lan))?;
    cable((node, "eth0"), (HUB, &uplink))?;
    for (space, link, address) in [
        (device, "eth0", format!("192.168.{net}.55/24")),
        (node, &lan[..], format!("192.168.{net}.2/24")),
        (node, "eth0", format!("10.0.{net}.2/24")),
        (HUB, &uplink[..], format!("10.0.{net}.1/24")),
    ] {
        ip(&["-n", space, "address", "add", &address, "dev", link])?;
        ip(&["-n", space, "link", "set", link, "up"])?;
    }
    let gateway = format!("192.168.{net}.2");
    ip(&["-n", device, "route", "add", "default", "via", &gateway])?;
    let gateway = format!("10.0.{net}.1");
    ip(&["-n", node, "route", "add", "default", "via", &gateway])?;
    for space in [node, HUB] {
        succeeded(inside(space, &["sysctl", "-q", "net.ipv4.ip_forward=1"]))?;
    }
    Ok(())
}

fn cable(near: (&str, &str), far: (&str, &str)) -> Result<()> {
    let link = ["link", "add", near.1, "netns", near.0, "type", "veth"];
    ip(&[&link[..], &["peer", "name", far.1, "netns", far.0]].concat())
}

/// The interface of wireguard-go on a machine.
fn interface(space: &str) -> String {
    space.replace("ginnel-site-", "gsi")
}

fn clear() {
    for space in DEVICES.iter().chain(&NODES).chain([&HUB]) {
        let mut delete = Command::new("ip");
        delete
            .args(["netns", "delete", space])
            .stderr(Stdio::null());
        delete.status().ok();
    }
}

/// A command that runs in a namespace, under its own process id.
fn inside(space: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space]).args(words);
    command.stdin(Stdio::null());
    command
}

fn ip(words: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words);
    succeeded(command).map(drop)
}

fn passes(mut command: Command) -> bool {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a command that has to succeed, and returns what it said.
fn succeeded(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    text(&command, output)
}

fn fed(mut command: Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start wg")?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    text(&command, child.wait_with_output()?)
}

fn text(command: &Command, output: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Starts a program whose words go to a file.
fn logged(mut command: Command, log: &Path) -> Result<Child> {
    let file = fs::File::create(log).context("a log")?;
    command.stdout(file.try_clone()?).stderr(file);
    let child = command.spawn();
    child.with_context(|| format!("start {command:?}"))
}

fn said(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

fn word<'t>(text: &'t str, start: &str) -> Result<&'t str> {
    let mut words = text.split_whitespace();
    let found = words.find(|word| word.starts_with(start));
    found.with_context(|| format!("nothing begins with {start} in: {text}"))
}

fn wait_until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    for _ in 0..300 {
        if holds() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    bail!("not within 30 s: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_medians_ranges_and_ratios() {
        let peer = |name: &str| Peer {
            name: name.to_owned(),
            program: PathBuf::new(),
            driven: tunnel::Driven::Wg(&[]),
        };
        let rows = |speeds: [f64; 3], cpu: f64| {
            let row = |speed| Measured {
                speed,
                cpu,
                retransmits: 7.0,
            };
            speeds.map(row).to_vec()
        };
        let case = [rows([4.0, 1.0, 3.0], 2.0), rows([1.5, 1.0, 9.0], 4.0)];
        let results: Vec<_> = CASES.iter().flat_map(|_| case.clone()).collect();
        let table = table(&[peer("ginnel"), peer("other")], &results);
        let lines: Vec<_> = table.trim().lines().collect();
        assert_eq!(lines.len(), 2 + 2 * CASES.len(), "{table}");
        assert_eq!(
            lines[2],
            "| tcp1 | ginnel | 3.00 (1.00-4.00) | 1.00 | 2.00 | 1.00 | 7 |"
        );
        assert_eq!(
            lines[3],
            "| tcp1 | other | 1.50 (1.00-9.00) | 2.00 | 4.00 | 0.50 | 7 |"
        );
    }
}
