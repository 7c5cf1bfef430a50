//! The gateway's process: `ginnel gateway` from a state directory, or a tunnel and the kernel.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use model::{
    id::{NodeId, OrgId, RuleId},
    key::{PublicKey, SecretKey},
    map::{Gateway, NetworkMap, Node, Org, Own, Role, State},
    name::Label,
    policy::{Reach, Rule},
    token::{Kind, Token},
};
use wireguard::StaticSecret;

use crate::ends::{address, gateway_secret, prefix, secret};

/// Where the gateway listens: no port that the system gives to a socket of a peer.
pub(crate) const PORT: u16 = 21_820;

const INTERFACE: &str = "gbw0";

/// A running gateway; ended when dropped.
pub(crate) struct Running {
    child: Child,
    state: PathBuf,
}

impl Running {
    /// Starts a program with so many peers: ours without an interface, others with one.
    pub(crate) fn start(name: &str, path: &Path, peers: u16) -> Self {
        let state = std::env::temp_dir().join(format!("ginnel-bench-{}", std::process::id()));
        fs::remove_dir_all(&state).ok();
        let mut directory = fs::DirBuilder::new();
        directory.mode(0o700).create(&state).expect("a directory");
        if name.starts_with("ginnel") {
            ours(path, state, peers)
        } else {
            theirs(path, state, peers)
        }
    }

    /// Returns the CPU time that all its threads have used.
    ///
    /// What the kernel forwards, it forwards on the thread that wrote to the interface.
    pub(crate) fn cpu(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.expect("the process lives");
        let nanos = tasks.map(|task| {
            let path = task.expect("a thread").path().join("schedstat");
            // A thread that has just ended used little.
            let text = fs::read_to_string(path).unwrap_or_default();
            let first = text.split(' ').next().and_then(|text| text.parse().ok());
            first.unwrap_or(0)
        });
        Duration::from_nanos(nanos.sum())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.state).ok();
        fs::remove_file(socket_path()).ok();
    }
}

/// A gateway works from the last map while its server is away, and here it always is.
fn ours(path: &Path, state: PathBuf, peers: u16) -> Running {
    let write = |name: &str, bytes: &[u8]| {
        os::file::write_private(&state.join(name), bytes).expect("the directory is ours");
    };
    let key = SecretKey::new(gateway_secret());
    write("private.key", key.to_base64().as_bytes());
    let map = serde_json::to_vec(&map(peers)).expect("a map is JSON");
    write("map.json", &map);
    let enrolment = serde_json::json!({
        "url": "https://127.0.0.1:9",
        "id": NodeId(1),
        "name": "gateway",
        "org": null,
        "address": null,
        "token": *Token::new(Kind::Node, [7; 20], None).emit(),
    });
    write("node.json", enrolment.to_string().as_bytes());
    let listen = format!("127.0.0.1:{PORT}");
    let mut command = Command::new(path);
    command.arg("--state").arg(&state);
    command.args(["gateway", "https://127.0.0.1:9", "--wireguard", &listen]);
    Running {
        child: spawn(command),
        state,
    }
}

/// Everybody may reach everybody by one rule, so that the policy is asked.
fn map(peers: u16) -> NetworkMap {
    let rule = RuleId(1);
    let public = |secret: &StaticSecret| PublicKey(secret.public_key().0);
    let label = |text: &str| text.parse::<Label>().expect("a name");
    let node = |number: u16| Node {
        name: label(&format!("node-{number}")),
        public_key: public(&secret(number)),
        address: address(number),
        owner: None,
        may_reach: vec![rule],
        reached_by: vec![Reach { rule, port: None }],
    };
    let nodes = (0..peers).map(|number| (NodeId(i64::from(number) + 2), node(number)));
    let traffic = vec!["5001/udp".parse().expect("traffic")];
    let org = Org {
        name: label("bench"),
        prefix: prefix(),
        gateway: Some(Gateway {
            id: NodeId(1),
            name: label("gateway"),
            public_key: public(&StaticSecret::new(gateway_secret())),
            endpoint: format!("127.0.0.1:{PORT}"),
        }),
        nodes: nodes.collect(),
        services: BTreeMap::new(),
        sites: BTreeMap::new(),
        rules: Some(BTreeMap::from([(rule, Rule { traffic })])),
        ssh: None,
    };
    NetworkMap {
        serial: 1,
        own: Own {
            id: NodeId(1),
            name: label("gateway"),
            role: Role::Gateway,
            state: State::Active,
            capture: None,
        },
        orgs: BTreeMap::from([(OrgId(1), org)]),
    }
}

/// What comes out of the interface goes back into it, for another peer.
fn theirs(path: &Path, state: PathBuf, peers: u16) -> Running {
    let mut command = Command::new(path);
    command.args(["-f", INTERFACE]);
    let running = Running {
        child: spawn(command),
        state,
    };
    for _ in 0..100 {
        if fs::exists(socket_path()).unwrap_or(false) {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let key = hex(&gateway_secret());
    let mut text = format!("set=1\nprivate_key={key}\nlisten_port={PORT}\n");
    for number in 0..peers {
        let key = hex(&secret(number).public_key().0);
        let address = address(number);
        write!(text, "public_key={key}\nallowed_ip={address}/128\n").expect("text has room");
    }
    text.push('\n');
    let mut stream = UnixStream::connect(socket_path()).expect("it serves its socket");
    stream.write_all(text.as_bytes()).expect("it reads");
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).expect("it answers");
    assert_eq!(&answer[..length], b"errno=0\n\n", "it takes the peers");
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("a namespace of our own");
    let route = format!("{}/48", prefix().network());
    for words in [
        &["link", "set", INTERFACE, "mtu", "1420", "up"][..],
        &["-6", "route", "add", &route, "dev", INTERFACE],
    ] {
        let status = Command::new("ip").args(words).status();
        assert!(status.expect("ip is installed").success(), "ip {words:?}");
    }
    running
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).spawn().expect("it starts")
}

fn socket_path() -> String {
    format!("/var/run/wireguard/{INTERFACE}.sock")
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
