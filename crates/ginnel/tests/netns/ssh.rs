//! SSH at a node with an interface: Debian's server with the organisation's certificates, and ours,
//! for our client, OpenSSH's and Ansible.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    attachment::{At, Network, Running},
    world::{LONG, find, lacks, text, within},
};

/// `alpha` is a person's device in user mode; `beta` has an interface.
struct Scene {
    network: Network,
    _alpha: Running,
    _beta: Running,
}

impl Scene {
    fn new(flags: &[&str]) -> Option<Self> {
        for tool in ["ssh", "sshd", "ansible"] {
            if find(tool).is_none() {
                lacks("NETNS", &format!("`{tool}` is not installed"));
                return None;
            }
        }
        let network = Network::new()?;
        let beta = [&["up", "--tun"], flags].concat();
        let beta = network.start(At::Beta, &beta, "ready on ginnel0");
        let alpha = network.start(At::Alpha, &["up", "--user"], "is ready");
        Some(Self {
            network,
            _alpha: alpha,
            _beta: beta,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.network.path(name)
    }

    /// Our client at `beta`; `None` if it is not let in.
    fn ginnel(&self, line: &str) -> Option<String> {
        let output = self.network.output(At::Alpha, &["ssh", "root@beta", line]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        output.status.success().then_some(text)
    }

    /// OpenSSH's client by the stanza that we print.
    fn openssh(&self, line: &str) -> Option<String> {
        let mut ssh = self.network.space(At::Alpha).command("ssh");
        ssh.arg("-F")
            .arg(self.configuration())
            .args(["-o", "BatchMode=yes"]);
        ssh.args(["-o", "IdentitiesOnly=yes", "root@beta.internal", line]);
        let output = ssh.env_remove("SSH_AUTH_SOCK").output().expect("ssh runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        output.status.success().then_some(text)
    }

    fn configuration(&self) -> PathBuf {
        let path = self.path("ssh_config");
        fs::write(&path, self.network.run(At::Alpha, &["ssh-config"])).expect("a file");
        path
    }

    /// Whether Ansible reaches `beta` and runs its own program there.
    fn ansible(&self) -> String {
        let mut ansible = self.network.space(At::Alpha).command("ansible");
        ansible.args(["all", "-i", "beta.internal,", "-u", "root", "-m", "ping"]);
        ansible.args(["-e", "ansible_python_interpreter=/usr/bin/python3"]);
        let arguments = format!("-F {} -o ControlMaster=no", self.configuration().display());
        ansible.env("ANSIBLE_SSH_ARGS", arguments);
        ansible.env("ANSIBLE_HOME", self.path("ansible"));
        ansible.env("ANSIBLE_LOCALHOST_WARNING", "false");
        text(&ansible.output().expect("ansible runs"))
    }

    fn await_login(&self) {
        within(LONG, "a login at beta", || self.ginnel("true").is_some());
    }
}

/// Where sshd finds the program meanwhile.
const PROGRAM: &str = "/var/lib/ginnel-test";

/// Debian's server below a directory of its own.
fn sshd(scene: &Scene) -> (String, Running) {
    let root = scene.path("root");
    let ssh = root.join("etc/ssh");
    for folder in [
        ssh.join("sshd_config.d"),
        root.join("run"),
        PathBuf::from("/run/sshd"),
    ] {
        fs::create_dir_all(folder).expect("a directory");
    }
    let key = ssh.join("ssh_host_ed25519_key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen runs").success());
    let config = format!(
        "Include {0}/etc/ssh/sshd_config.d/*.conf\nPort 22\nHostKey {1}\nUsePAM no\n\
         PidFile {0}/run/sshd.pid\nAuthorizedKeysFile none\nPasswordAuthentication no\n",
        root.display(),
        key.display()
    );
    fs::write(ssh.join("sshd_config"), config).expect("a file");
    let root = root.to_str().expect("UTF-8").to_owned();
    let said = scene
        .network
        .run(At::Beta, &["ssh-server", "install", "--root", &root]);
    assert!(
        said.contains("accepts the certificates of default"),
        "{said}"
    );
    // sshd runs no program below a directory that others may write to, such as /tmp.
    let program = PROGRAM;
    fs::copy(env!("CARGO_BIN_EXE_ginnel"), program).expect("a copy");
    for entry in fs::read_dir(ssh.join("sshd_config.d")).expect("a directory") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("a file");
        let text = text.replace(env!("CARGO_BIN_EXE_ginnel"), program);
        fs::write(&path, text).expect("it is written");
    }
    let mut command = scene.network.space(At::Beta).command("/usr/sbin/sshd");
    command
        .args(["-D", "-e", "-f"])
        .arg(ssh.join("sshd_config"));
    let running = scene.network.spawn(&mut command, "Server listening");
    (root, running)
}

#[test]
fn debian_s_server_takes_our_certificates_and_gives_them_back() {
    let Some(scene) = Scene::new(&[]) else {
        return;
    };
    let (root, sshd) = sshd(&scene);
    scene.await_login();
    let seen = scene.ginnel("echo $SSH_CONNECTION").expect("a login");
    assert!(
        seen.starts_with("fd"),
        "it sees the device's own address: {seen}"
    );
    scene.network.run(At::Alpha, &["cert"]);
    assert_eq!(
        scene.openssh("id -un").as_deref(),
        Some("root\n"),
        "{}",
        sshd.said()
    );
    let pong = scene.ansible();
    assert!(
        pong.contains("\"ping\": \"pong\""),
        "{pong}\n{}",
        sshd.said()
    );

    // What changes within seconds is asked at each login.
    scene
        .network
        .run(At::Alpha, &["ssh-ca", "revoke", "--user", "admin"]);
    within(LONG, "a refusal", || scene.openssh("true").is_none());
    scene.network.run(At::Alpha, &["cert"]);
    assert!(
        scene.openssh("true").is_some(),
        "a new certificate counts: {}",
        sshd.said()
    );

    scene.network.run(At::Alpha, &["ssh-ca", "rotate", "--now"]);
    let renew = ["ssh-server", "renew", "--root", &root];
    within(LONG, "the host proves itself by the new authority", || {
        scene.network.run(At::Beta, &renew);
        scene.ginnel("true").is_some()
    });

    scene
        .network
        .run(At::Beta, &["ssh-server", "remove", "--root", &root]);
    assert!(!Path::new(&root).join("etc/ssh/ginnel").exists());
    let left = fs::read_dir(Path::new(&root).join("etc/ssh/sshd_config.d"));
    assert_eq!(left.expect("a directory").count(), 0);
    within(LONG, "nobody is let in any more", || {
        scene.ginnel("true").is_none()
    });
    fs::remove_file(PROGRAM).expect("the copy is there");
}

#[test]
fn our_server_at_a_node_with_an_interface_serves_every_client() {
    let Some(scene) = Scene::new(&["--ssh"]) else {
        return;
    };
    scene.await_login();
    let seen = scene
        .ginnel("id -un; echo $SSH_CONNECTION")
        .expect("a login");
    assert!(
        seen.starts_with("root\nfd") && seen.ends_with(" 22\n"),
        "{seen}"
    );
    scene.network.run(At::Alpha, &["cert"]);
    assert_eq!(scene.openssh("id -un").as_deref(), Some("root\n"));
    let pong = scene.ansible();
    assert!(pong.contains("\"ping\": \"pong\""), "{pong}");
}
