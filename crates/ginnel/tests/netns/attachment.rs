//! A node with a TUN interface and one in user mode, with a server between them.
//!
//! ```text
//!   alpha: up --tun             server, its gateway             beta: up --user
//!   10.99.0.1 ───── veth ───── 10.99.0.2   10.98.0.1 ─── veth ─── 10.98.0.2
//! ```

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
};

use super::world::{GINNEL, LONG, SHORT, Space, World, find, lacks, text, unique, within};

/// The three machines and what runs on them.
pub(crate) struct Network {
    world: World,
    beta: Space,
    directory: tempfile::TempDir,
    server: Option<Running>,
}

/// A program that stays, with all that it says in one file.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

/// One of the three machines.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum At {
    Alpha,
    Server,
    Beta,
}

impl Network {
    /// Starts the server and enrols both nodes.
    pub(crate) fn new() -> Option<Self> {
        Self::with(|_| ())
    }

    /// Does the same with changes to the command of the server.
    pub(crate) fn with(of_server: impl FnOnce(&mut Command)) -> Option<Self> {
        for tool in ["curl", "setpriv"] {
            if find(tool).is_none() {
                lacks("NETNS", &format!("`{tool}` is not installed"));
                return None;
            }
        }
        let world = World::new()?;
        let beta = Space {
            name: unique("s"),
            link: unique("v"),
        };
        let made = Command::new("ip")
            .args(["netns", "add", &beta.name])
            .status();
        assert!(made.expect("ip runs").success());
        let other = unique("v");
        let server = &world.spaces[1];
        server.ip(&[
            "link", "add", &other, "type", "veth", "peer", "name", &beta.link, "netns", &beta.name,
        ]);
        server.ip(&["link", "set", &other, "up"]);
        beta.ip(&["link", "set", "lo", "up"]);
        beta.ip(&["link", "set", &beta.link, "up"]);
        server.add_address(&other, [10, 98, 0, 1].into());
        beta.add_outer([10, 98, 0, 2].into());
        beta.ip(&["route", "add", "10.99.0.0/24", "via", "10.98.0.1"]);
        let mut network = Self {
            world,
            beta,
            directory: tempfile::tempdir().expect("a temporary directory"),
            server: None,
        };
        network.enrol(of_server);
        Some(network)
    }

    fn enrol(&mut self, of_server: impl FnOnce(&mut Command)) {
        let data = self.path("data");
        let data = data.to_str().expect("UTF-8");
        let (listen, wireguard) = ("10.99.0.2:8443", "[::]:51820");
        let line = [
            "server",
            "--data",
            data,
            "--listen",
            listen,
            "--wireguard",
            wireguard,
        ];
        let mut server = self.command(At::Server, &line);
        of_server(&mut server);
        let server = self.spawn(&mut server, "ginnel-login-");
        let url = word(&server.said(), "https://");
        let admin = word(&server.said(), "ginnel-login-");
        self.server = Some(server);
        let line = ["login", &url, "--token", &admin, "--name", "alpha"];
        self.run(At::Alpha, &line);
        // Alpha is a person's device, and beta opens connections to it too.
        let line = ["policy", "add", "--from", "*", "--to", "node:alpha"];
        self.run(At::Alpha, &line);
        let made = self.run(At::Alpha, &["token", "add"]);
        let token = word(&made, "ginnel-join-");
        let line = ["join", &url, "--token", &token, "--name", "beta"];
        self.run(At::Beta, &line);
    }

    pub(crate) fn space(&self, at: At) -> &Space {
        match at {
            At::Alpha => &self.world.spaces[0],
            At::Server => &self.world.spaces[1],
            At::Beta => &self.beta,
        }
    }

    /// Returns the process of the server.
    pub(crate) fn server(&self) -> u32 {
        self.server.as_ref().expect("it runs").child.id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, at: At, line: &[&str]) -> Command {
        self.command_by(at, &[], line)
    }

    /// A command of ginnel, run by another program that changes its rights.
    fn command_by(&self, at: At, by: &[&str], line: &[&str]) -> Command {
        let mut words = by.to_vec();
        words.push(GINNEL);
        let mut command = self.space(at).command(words[0]);
        let state = match at {
            At::Alpha => "alpha",
            At::Server => "server",
            At::Beta => "beta",
        };
        command
            .args(&words[1..])
            .args(line)
            .env("GINNEL_STATE", self.path(state))
            .env_remove("XDG_RUNTIME_DIR")
            .current_dir("/");
        command
    }

    pub(crate) fn output(&self, at: At, line: &[&str]) -> Output {
        self.command(at, line).output().expect("ginnel runs")
    }

    #[track_caller]
    pub(crate) fn run(&self, at: At, line: &[&str]) -> String {
        let output = self.output(at, line);
        assert!(output.status.success(), "{line:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(crate) fn start(&self, at: At, line: &[&str], sign: &str) -> Running {
        self.spawn(&mut self.command(at, line), sign)
    }

    #[track_caller]
    pub(crate) fn spawn(&self, command: &mut Command, sign: &str) -> Running {
        Running::spawn(command, self.path(&unique("log")), sign)
    }

    /// Returns the address of a node, as the server lists it.
    pub(crate) fn address(&self, name: &str) -> IpAddr {
        let shown = self.run(At::Alpha, &["node", "show", name, "--json"]);
        let value: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let address = value["address"].as_str().expect("a text");
        address.parse().expect("an address")
    }

    /// Fetches a page with the kernel's TCP of a machine.
    pub(crate) fn curl(&self, at: At, url: &str) -> String {
        let mut curl = self.space(at).command("curl");
        curl.args(["-s", "-m", "10", url]);
        text(&curl.output().expect("curl runs"))
    }

    /// Sends a request through `ginnel dial` and returns the answer.
    pub(crate) fn dial(&self, at: At, host: &str, port: u16) -> String {
        let mut command = self.command(at, &["dial", host, &port.to_string()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip runs");
        let mut stdin = child.stdin.take().expect("piped");
        // It may have ended without reading.
        stdin.write_all(b"GET / HTTP/1.0\r\n\r\n").ok();
        drop(stdin);
        text(&child.wait_with_output().expect("ginnel ends"))
    }

    /// Serves one page on a machine, by its kernel.
    pub(crate) fn serve(&self, at: At, address: &str, page: &'static str) -> SocketAddr {
        let listener = self.space(at).enter(|| TcpListener::bind(address));
        let listener = listener.expect("a free port");
        let local = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // The other side may go away at any time.
                let _request = stream.read(&mut [0; 1024]);
                let length = page.len();
                write!(
                    stream,
                    "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{page}"
                )
                .ok();
                stream.shutdown(Shutdown::Both).ok();
            }
        });
        local
    }

    pub(crate) fn publish(&self, at: At, name: &str, port: u16, target: SocketAddr) {
        let (port, target) = (port.to_string(), target.to_string());
        let line = ["service", "add", name, "--port", &port, "--target", &target];
        self.run(at, &line);
    }

    fn has_interface(&self, name: &str) -> bool {
        self.space(At::Alpha)
            .enter(|| os::link::index(name))
            .is_some()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.server = None;
        // Agents that commands started on demand.
        for state in ["alpha", "beta"] {
            let mut command = Command::new(GINNEL);
            command.args(["logout", "--force"]);
            command.env("GINNEL_STATE", self.path(state));
            command.output().ok();
        }
        let deleted = Command::new("ip")
            .args(["netns", "delete", &self.beta.name])
            .status();
        deleted.expect("ip runs");
    }
}

impl Running {
    /// Starts a program whose output goes to the file `log`, and waits until it has said `sign`.
    #[track_caller]
    pub(crate) fn spawn(command: &mut Command, log: PathBuf, sign: &str) -> Self {
        let file = File::create(&log).expect("a log");
        let same = file.try_clone().expect("a second handle");
        let child = command.stdout(file).stderr(same).spawn();
        let running = Self {
            child: child.expect("ip runs"),
            log,
        };
        within(LONG, &format!("{sign}: {}", running.said()), || {
            running.said().contains(sign)
        });
        running
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it ends by itself, and returns what it said.
    #[track_caller]
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let mut code = None;
        within(SHORT, "the process ends", || {
            let status = self.child.try_wait().expect("our child");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        (code, self.said())
    }

    /// Ends it without a chance to say so.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our child");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn word(text: &str, start: &str) -> String {
    let mut words = text.split_whitespace();
    let word = words.find(|word| word.starts_with(start));
    word.expect("it says such a word").to_owned()
}

#[test]
fn the_kernel_and_user_mode_reach_each_other_until_one_is_removed() {
    let Some(network) = Network::new() else {
        return;
    };
    let page = network.serve(At::Beta, "127.0.0.1:0", "from user mode");
    network.publish(At::Beta, "web", 8080, page);
    network.serve(At::Alpha, "[::]:9090", "from the kernel");
    let behind = network.serve(At::Alpha, "127.0.0.1:0", "from behind the kernel");
    network.publish(At::Alpha, "files", 7000, behind);
    let alpha = network.start(At::Alpha, &["up", "--tun"], "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    let beta_address = network.address("beta");
    let here = network.space(At::Alpha);

    assert_eq!(here.ping(beta_address, 5), 5);
    let url = format!("http://[{beta_address}]:8080/");
    assert_eq!(network.curl(At::Alpha, &url), "from user mode");
    let from = |at, host, port| network.dial(at, host, port);
    for (at, host, port, page) in [
        (At::Alpha, "web.svc.internal", 8080, "from user mode"),
        (At::Beta, "alpha", 9090, "from the kernel"),
        (
            At::Beta,
            "files.svc.internal",
            7000,
            "from behind the kernel",
        ),
    ] {
        let answer = from(at, host, port);
        assert!(answer.contains(page), "{host}: {answer}\n{}", alpha.said());
    }
    let refused = from(At::Beta, "alpha", 9091);
    assert!(refused.contains("remote port"), "{refused}");
    for (at, host) in [(At::Alpha, "beta"), (At::Beta, "alpha")] {
        network.run(at, &["ping", host, "-c", "3", "-i", "0.1"]);
        traces(&network, at, host);
    }
    let unknown = from(At::Alpha, "nobody", 1);
    assert!(unknown.contains("DNS"), "{unknown}");
    let status = network.run(At::Alpha, &["status"]);
    assert!(status.contains("interface ginnel0"), "{status}");

    network.run(At::Alpha, &["node", "remove", "alpha"]);
    let (code, said) = alpha.ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("was removed"), "{said}");
    assert!(!network.has_interface("ginnel0"));
    assert_eq!(here.ping(beta_address, 2), 0);
}

/// Sees that a node finds the gateway and the other node, by its kernel or its own stack.
fn traces(network: &Network, at: At, host: &str) {
    within(LONG, "both hops", || {
        let told = network.output(at, &["trace", host, "-c", "2", "--json"]);
        let Ok(told) = serde_json::from_slice::<serde_json::Value>(&told.stdout) else {
            return false;
        };
        let told = &told["hops"];
        let [gateway, node] = [&told[0], &told[1]];
        gateway["outcome"] == "time_exceeded"
            && gateway["name"].is_string()
            && gateway["address"] != node["address"]
            && node["outcome"] == "reply"
            && node["name"] == host
            && told[2].is_null()
    });
}

#[test]
fn without_the_right_an_interface_is_refused_and_the_default_is_user_mode() {
    let Some(network) = Network::new() else {
        return;
    };
    let powerless = ["setpriv", "--bounding-set", "-net_admin"];
    let mut up = network.command_by(At::Alpha, &powerless, &["up", "--tun"]);
    let refused = up.output().expect("setpriv runs");
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(
        said.contains("TUN: ") && said.contains("no permission"),
        "{said}"
    );
    assert!(said.contains("ginnel up --user"), "{said}");
    let mut up = network.command_by(At::Alpha, &powerless, &["up"]);
    let up = network.spawn(&mut up, "is ready");
    assert!(!up.said().contains("ginnel0"), "{}", up.said());
    let status = network.run(At::Alpha, &["status"]);
    assert!(status.contains("user mode"), "{status}");
}

#[test]
fn a_prefix_that_is_routed_elsewhere_is_never_taken_over() {
    let Some(network) = Network::new() else {
        return;
    };
    let IpAddr::V6(own) = network.address("alpha") else {
        panic!("an IPv6 address");
    };
    let [a, b, c, ..] = own.segments();
    let prefix = format!("{a:x}:{b:x}:{c:x}::/48");
    let here = network.space(At::Alpha);
    let route = ["-6", "route", "add", &prefix, "dev", &here.link];
    here.ip(&route);
    let refused = network.output(At::Alpha, &["up"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(
        said.contains(&prefix) && said.contains(&here.link),
        "{said}"
    );
    assert!(!network.has_interface("ginnel0"));
    here.ip(&["-6", "route", "del", &prefix, "dev", &here.link]);
    let up = network.start(At::Alpha, &["up", "--interface", "office0"], "office0");
    assert!(network.has_interface("office0"));
    up.terminate();
    assert_eq!(up.ended().0, Some(0));
    assert!(!network.has_interface("office0"));
}

#[test]
fn bulk_and_small_packets_pass_between_two_interfaces() {
    let Some(network) = Network::new() else {
        return;
    };
    let _alpha = network.start(At::Alpha, &["up"], "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
    let [here, there] = [At::Beta, At::Alpha].map(|at| network.space(at));
    let addresses = ["beta", "alpha"].map(|name| network.address(name));
    within(SHORT, "the first ping", || here.ping(addresses[1], 1) == 1);
    here.transfer_beside_datagrams(there, addresses);
    for at in [At::Alpha, At::Beta] {
        let status: serde_json::Value =
            serde_json::from_str(&network.run(at, &["status", "--json"])).expect("JSON");
        let discards = &status["node"]["discards"];
        for reason in ["node.not_ip", "node.no_room", "node.interface_down"] {
            assert!(
                discards[reason].as_u64().is_none_or(|lost| lost == 0),
                "{status}"
            );
        }
    }
}

#[test]
fn an_interface_that_was_down_works_again_and_one_that_was_deleted_ends_the_node() {
    let Some(network) = Network::new() else {
        return;
    };
    let alpha = network.start(At::Alpha, &["up"], "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    let beta_address = network.address("beta");
    let here = network.space(At::Alpha);
    let pings = || here.ping(beta_address, 1) == 1;
    within(SHORT, "the first ping", pings);
    here.ip(&["link", "set", "ginnel0", "down"]);
    within(SHORT, "the node sees it", || {
        alpha.said().contains("it is down")
    });
    network.output(At::Beta, &["ping", "alpha", "-c", "1"]);
    let status: serde_json::Value =
        serde_json::from_str(&network.run(At::Alpha, &["status", "--json"])).expect("JSON");
    let lost = status["node"]["discards"]["node.interface_down"].as_u64();
    assert!(lost.is_some_and(|lost| lost > 0), "{status}");
    here.ip(&["link", "set", "ginnel0", "up"]);
    within(SHORT, "the address is back", pings);
    here.ip(&["link", "set", "ginnel0", "mtu", "1400"]);
    assert_eq!(here.ping(beta_address, 2), 2);

    here.ip(&["link", "delete", "ginnel0"]);
    let (code, said) = alpha.ended();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("interface `ginnel0` was deleted") && said.contains("ginnel up"),
        "{said}"
    );
}
