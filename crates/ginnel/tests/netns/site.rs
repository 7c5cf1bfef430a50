//! Offices behind nodes without a single right, and a developer at home whose LAN has the same
//! addresses as both of them.
//!
//! ```text
//!   neighbour ─── home ─── hub: server ─┬─ paris: node ─── device 192.168.1.10
//!   192.168.1.10                        └─ rome:  node ─── device 192.168.1.10
//! ```

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use super::{
    attachment::{Running, word},
    world::{Apart, GINNEL, LONG, Space, World, find, lacks, text, unique, within},
};

/// The device of each office, and of the developer's home.
pub(super) const DEVICE: [u8; 4] = [192, 168, 1, 10];

/// The user that every node of an office runs as.
const NOBODY: u32 = 65_534;

/// A developer at home, a server, and two offices.
pub(super) struct Scene {
    // Programs end before their namespaces go.
    pub(super) running: Vec<Running>,
    directory: tempfile::TempDir,
    hub: Apart,
    pub(super) home: Apart,
    /// A device in the developer's own LAN.
    pub(super) neighbour: Apart,
    pub(super) offices: Vec<Office>,
}

/// A node and a device that has nothing installed.
pub(super) struct Office {
    pub(super) name: &'static str,
    node: Apart,
    pub(super) device: Apart,
}

impl Scene {
    /// Starts everything; a rule lets the developer reach both offices.
    pub(super) fn new() -> Option<Self> {
        for tool in ["curl", "dig", "setpriv", "ssh", "sshd"] {
            if find(tool).is_none() {
                lacks("NETNS", &format!("`{tool}` is not installed"));
                return None;
            }
        }
        // It says why if this machine has no namespaces.
        drop(World::new()?);
        let [hub, home, neighbour] = [(); 3].map(|()| Apart::new());
        let offices = ["paris", "rome"].map(|name| Office {
            name,
            node: Apart::new(),
            device: Apart::new(),
        });
        let mut scene = Self {
            running: Vec::new(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            hub,
            home,
            neighbour,
            offices: offices.into(),
        };
        scene.lay();
        scene.enrol();
        Some(scene)
    }

    /// Lays the cables.
    fn lay(&self) {
        let nodes = self.offices.iter().map(|office| &office.node);
        for (net, place) in (1..).zip([&self.home].into_iter().chain(nodes)) {
            join(&self.hub.0, [10, 97, net, 1], &place.0, [10, 97, net, 2]);
            let gateway = format!("10.97.{net}.1");
            place
                .0
                .ip(&["route", "add", "10.97.0.0/16", "via", &gateway]);
        }
        for Office { node, device, .. } in &self.offices {
            join(&node.0, [192, 168, 1, 5], &device.0, DEVICE);
            // What Docker and many distributions have: whoever runs a program may ping.
            node.0.enter(|| {
                let range = "/proc/sys/net/ipv4/ping_group_range";
                fs::write(range, "0 2147483647").expect("root");
            });
        }
        let (home, neighbour) = (&self.home.0, &self.neighbour.0);
        join(home, [192, 168, 1, 77], neighbour, DEVICE);
    }

    fn enrol(&mut self) {
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.directory.path(), open).expect("our directory");
        let data = self.path("data");
        let mut server = self.hub.0.command(GINNEL);
        server.args(["server", "--listen", "10.97.1.1:8443"]);
        server.args(["--wireguard", "0.0.0.0:51820", "--public", "10.97.1.1:8443"]);
        server.arg("--data").arg(data);
        let server = self.start(server, "ginnel-login-");
        let url = word(&server.said(), "https://");
        let admin = word(&server.said(), "ginnel-login-");
        self.running.push(server);
        self.run(&["login", &url, "--token", &admin, "--name", "laptop"]);
        for number in 0..self.offices.len() {
            let token = word(&self.run(&["token", "add"]), "ginnel-join-");
            let name = self.offices[number].name;
            let join = self.at_office(number, &["join", &url, "--token", &token, "--name", name]);
            succeeded(&finish(join));
            let up = self.at_office(number, &["up", "--user"]);
            let up = self.start(up, "is ready");
            self.running.push(up);
            let prefix = ["--prefix", "192.168.1.0/24"];
            self.run(&[&["site", "add", name, "--node", name][..], &prefix].concat());
            let site = format!("site:{name}");
            self.run(&["policy", "add", "--from", "node:laptop", "--to", &site]);
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn start(&self, mut command: Command, sign: &str) -> Running {
        Running::spawn(&mut command, self.path(&unique("log")), sign)
    }

    /// A command of the developer.
    pub(super) fn at_home(&self, line: &[&str]) -> Command {
        ginnel(self.home.0.command(GINNEL), &self.path("laptop"), line)
    }

    /// Runs a command of the developer, which has to succeed.
    #[track_caller]
    pub(super) fn run(&self, line: &[&str]) -> String {
        succeeded(&finish(self.at_home(line)))
    }

    /// A command of an office's node, as a user without any right.
    fn at_office(&self, number: usize, line: &[&str]) -> Command {
        let Office { name, node, .. } = &self.offices[number];
        let state = self.path(name);
        fs::create_dir_all(&state).expect("a directory");
        chown(&state, Some(NOBODY), Some(NOBODY)).expect("root");
        let mut command = node.0.command("setpriv");
        let user = NOBODY.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
        command.arg(GINNEL);
        ginnel(command, &state, line)
    }

    /// Fetches a page by the name of a device, through the developer's proxy.
    fn curl(&self, proxy: &str, url: &str) -> String {
        let mut curl = self.home.0.command("curl");
        curl.args(["-sS", "-m", "20", "-x", proxy, url]);
        text(&finish(curl))
    }

    /// Logs in at a device with OpenSSH through `ginnel dial`.
    fn ssh(&self, host: &str, key: &Path) -> String {
        let dial = format!(
            "{GINNEL} --state {} dial %h %p",
            self.path("laptop").display()
        );
        let mut ssh = self.home.0.command("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes"]);
        ssh.args(["-o", "StrictHostKeyChecking=no"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", &format!("ProxyCommand={dial}")]);
        ssh.arg("-i").arg(key).arg(format!("root@{host}")).arg("id");
        ssh.env_remove("SSH_AUTH_SOCK");
        text(&finish(ssh))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The developer's agent was started on demand.
        self.at_home(&["logout", "--force"]).output().ok();
    }
}

pub(super) fn ginnel(mut command: Command, state: &Path, line: &[&str]) -> Command {
    command.args(line).env("GINNEL_STATE", state);
    command.env_remove("XDG_RUNTIME_DIR").current_dir("/");
    command
}

pub(super) fn finish(mut command: Command) -> Output {
    command.output().expect("ip runs")
}

#[track_caller]
pub(super) fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Lays a cable between two machines.
pub(super) fn join(one: &Space, its: [u8; 4], other: &Space, others: [u8; 4]) {
    let [here, there] = [unique("v"), unique("v")];
    one.ip(&[
        "link",
        "add",
        &here,
        "type",
        "veth",
        "peer",
        "name",
        &there,
        "netns",
        &other.name,
    ]);
    for (space, link, address) in [(one, &here, its), (other, &there, others)] {
        space.add_address(link, IpAddr::from(address));
        space.ip(&["link", "set", link, "up"]);
    }
}

/// A device's page: its office, and whom it sees.
pub(super) fn serve(space: &Space, address: SocketAddr, name: &'static str) {
    let listener = space.enter(|| TcpListener::bind(address).expect("a free port"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().expect("it is connected").ip();
            // Whoever asks may go away.
            let _request = stream.read(&mut [0; 1024]);
            let page = format!("{name} sees {peer}");
            let length = page.len();
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all((head + &page).as_bytes()).ok();
        }
    });
}

/// A device's name server: every name has the device's own address (RFC 1035, 4.1).
fn answer_names(space: &Space) {
    let socket = space.enter(|| UdpSocket::bind(SocketAddr::from((DEVICE, 53))));
    let socket = socket.expect("a free port");
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // Up to the end of the one question: labels, type and class.
            let labels = query[12..length].iter().position(|byte| *byte == 0);
            let question = 12 + labels.expect("a name ends") + 5;
            let mut answer = query[..question].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
            answer.extend(DEVICE);
            socket.send_to(&answer, from).ok();
        }
    });
}

/// OpenSSH's server on a device; whoever logs in is told the name of the office.
fn sshd(scene: &Scene, office: &Office, key: &Path) -> Running {
    let directory = scene.path(&format!("sshd-{}", office.name));
    fs::create_dir_all("/run/sshd").expect("root");
    fs::create_dir(&directory).expect("a directory");
    let host_key = directory.join("key");
    keygen(&host_key);
    let authorized = fs::read(key.with_extension("pub")).expect("a key");
    fs::write(directory.join("authorized"), authorized).expect("a file");
    let config = format!(
        "ListenAddress 192.168.1.10\nHostKey {}\nAuthorizedKeysFile {}\nUsePAM no\n\
         PidFile none\nStrictModes no\nForceCommand echo login at {}\n",
        host_key.display(),
        directory.join("authorized").display(),
        office.name,
    );
    let file = directory.join("config");
    fs::write(&file, config).expect("a file");
    let mut sshd = office.device.0.command("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f"]).arg(&file);
    scene.start(sshd, "Server listening")
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .status();
    assert!(made.expect("ssh-keygen runs").success());
}

#[test]
fn devices_of_two_offices_with_equal_addresses_are_reached_from_a_home_that_has_them_too() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let key = scene.path("key");
    keygen(&key);
    for office in &scene.offices {
        serve(&office.device.0, (DEVICE, 80).into(), office.name);
        answer_names(&office.device.0);
    }
    for number in 0..scene.offices.len() {
        let running = sshd(&scene, &scene.offices[number], &key);
        scene.running.push(running);
    }
    serve(&scene.neighbour.0, (DEVICE, 80).into(), "home");
    let proxy = scene.at_home(&["proxy", "--socks5", "127.0.0.1:1080"]);
    let proxy = scene.start(proxy, "1080");
    scene.running.push(proxy);
    for name in ["paris", "rome"] {
        let host = format!("192-168-1-10.{name}.site.internal");
        let page = scene.curl("socks5h://127.0.0.1:1080", &format!("http://{host}/"));
        // The node's own address: the device needs no route back.
        assert_eq!(page, format!("{name} sees 192.168.1.5"));
        let login = scene.ssh(&host, &key);
        assert_eq!(login.trim(), format!("login at {name}"));
        scene.run(&["ping", &host, "-c", "3", "-i", "0.1"]);
        let port = if name == "paris" { "5301" } else { "5302" };
        let forward = scene.at_home(&["forward", &format!("{port}:{host}:53/udp")]);
        let forward = scene.start(forward, "leads to");
        let mut dig = scene.home.0.command("dig");
        dig.args(["@127.0.0.1", "-p", port, "+short", "printer.office", "A"]);
        assert_eq!(text(&finish(dig)).trim(), "192.168.1.10");
        drop(forward);
    }
    // The home's own device is where it always was.
    let mut curl = scene.home.0.command("curl");
    curl.args(["-sS", "-m", "20", "http://192.168.1.10/"]);
    assert_eq!(text(&finish(curl)), "home sees 192.168.1.77");
}

#[test]
fn what_a_device_refuses_what_is_not_there_and_what_is_the_nodes_own_is_told_apart() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let dial = |host: &str, port| {
        let output = finish(scene.at_home(&["dial", host, port]));
        assert!(!output.status.success(), "{host} {port}");
        text(&output)
    };
    serve(
        &scene.offices[0].node.0,
        "0.0.0.0:80".parse().expect("an address"),
        "node",
    );
    let refused = dial("192-168-1-10.paris.site", "81");
    assert!(refused.contains("remote port"), "{refused}");
    let own = dial("192-168-1-5.paris.site", "80");
    assert!(own.contains("policy"), "the node's own addresses: {own}");
    let nobody = dial("192-168-1-77.paris.site", "80");
    assert!(nobody.contains("unreachable"), "{nobody}");
    let outside = dial("10-0-0-1.paris.site", "80");
    assert!(outside.contains("does not exist"), "{outside}");
    let ping = |host: &str| {
        let line = ["ping", host, "-c", "1"];
        finish(scene.at_home(&line)).status.success()
    };
    assert!(ping("192-168-1-10.paris.site"));
    assert!(!ping("192-168-1-77.paris.site"));
    assert!(!ping("192-168-1-5.paris.site"));

    scene.run(&["site", "remove", "paris"]);
    within(LONG, "the site is gone", || {
        !ping("192-168-1-10.paris.site")
    });
    assert!(
        ping("192-168-1-10.rome.site"),
        "the other one is not touched"
    );
}

#[test]
fn the_doctor_walks_to_a_device_and_tells_when_the_node_of_its_site_is_gone() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let doctor = |scene: &Scene, target: &[&str]| -> serde_json::Value {
        let line = [&["doctor", "--json"], target].concat();
        let output = finish(scene.at_home(&line));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let outcome = |report: &serde_json::Value, name: &str| {
        let steps = report["steps"].as_array().expect("a list").clone();
        let step = steps.into_iter().find(|step| step["name"] == name);
        step.expect("such a step")["outcome"].clone()
    };
    let device = "192-168-1-10.paris.site";
    let report = doctor(&scene, &[device]);
    assert_eq!(report["healthy"], true, "{report}");
    assert_eq!(outcome(&report, "site"), "passed");
    let report = doctor(&scene, &["192-168-1-77.paris.site", "80"]);
    assert_eq!(report["finding"]["code"], "unreachable", "{report}");
    assert_eq!(outcome(&report, "site"), "passed");
    // The server, then the nodes of the offices in their order.
    drop(scene.running.remove(1));
    let report = doctor(&scene, &[device]);
    assert_eq!(report["finding"]["code"], "site_node_down", "{report}");
    assert_eq!(outcome(&report, "target"), "skipped");
    assert_eq!(doctor(&scene, &["192-168-1-10.rome.site"])["healthy"], true);
}
