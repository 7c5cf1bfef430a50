//! OpenSSH's client, and what runs over it, against our SSH server on loopback.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a world that cannot be made is a test that failed; the runner shows what is printed"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The distribution's own, which has its packages; another one may come first in PATH.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// The longest that anything may take before a test fails and says what.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A CA, a host, a user and our server.
pub(crate) struct World {
    directory: tempfile::TempDir,
    server: Child,
    pub(crate) port: u16,
}

impl World {
    /// Starts a server; `None` if a program is not installed.
    pub(crate) fn new(programs: &[&str]) -> Option<Self> {
        let mut needed = vec!["ssh", "ssh-keygen"];
        needed.extend(programs);
        if let Some(missing) = needed.into_iter().find(|program| !is_installed(program)) {
            let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
            assert!(!required, "`{missing}` is not installed");
            eprintln!("skipped: `{missing}` is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["user_ca", "host_ca", "other_ca", "host", "me"] {
            run(keygen(
                &directory,
                &["-q", "-t", "ed25519", "-N", "", "-f", name],
            ));
        }
        let line = "-q -s host_ca -I host -h -n localhost host.pub";
        run(keygen(&directory, &words(line)));
        fs::write(directory.path().join("revoked"), "").unwrap();
        let host_ca = fs::read_to_string(directory.path().join("host_ca.pub")).unwrap();
        let known = format!("@cert-authority localhost {host_ca}");
        fs::write(directory.path().join("known"), known).unwrap();
        let (server, port) = serve(&directory);
        let world = Self {
            directory,
            server,
            port,
        };
        let user = user();
        world.certify(&format!("-n {user} -z 7 -V -1m:+1h"));
        Some(world)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes the certificate of the user anew.
    fn certify(&self, options: &str) {
        self.certify_by("user_ca", options);
    }

    fn certify_by(&self, ca: &str, options: &str) {
        let line = format!("-q -s {ca} -I me {options} me.pub");
        run(keygen(&self.directory, &words(&line)));
    }

    /// The options of every OpenSSH program, as one file.
    fn configuration(&self) -> PathBuf {
        let path = self.path("configuration");
        let directory = self.directory.path().display();
        let text = format!(
            "Host host\n HostName localhost\n HostKeyAlias localhost\n Port {}\n User {}\n \
             AddressFamily inet\n IdentityFile {directory}/me\n CertificateFile \
             {directory}/me-cert.pub\n IdentitiesOnly yes\n UserKnownHostsFile {directory}/known\n \
             GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n \
             ForwardX11Trusted yes\n ExitOnForwardFailure yes\n",
            self.port,
            user()
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// An OpenSSH program that knows `host`.
    fn openssh(&self, program: &str, line: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.configuration()).args(line);
        command.env_remove("SSH_AUTH_SOCK").env_remove("DISPLAY");
        command
            .stdin(Stdio::null())
            .current_dir(self.directory.path());
        command
    }

    pub(crate) fn ssh(&self, line: &[&str]) -> Command {
        self.openssh("ssh", line)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Returns how many TCP sockets the server has.
    fn sockets(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.server.id())).unwrap();
        let own = all
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        let tcp = fs::read_to_string("/proc/net/tcp").unwrap();
        let inodes: std::collections::BTreeSet<_> = tcp
            .lines()
            .filter_map(|line| line.split_whitespace().nth(9))
            .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
            .collect();
        own.filter(|link| inodes.contains(link)).count()
    }

    /// Returns how many KiB of memory the server has.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let word = line.and_then(|line| line.split_whitespace().nth(1));
        word.unwrap().parse().unwrap()
    }

    /// Waits until the log of the server holds `text`.
    #[track_caller]
    fn logged(&self, text: &str) {
        wait_for(text, || self.log().contains(text));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn serve(directory: &tempfile::TempDir) -> (Child, u16) {
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_ginnel"))
        .args(["-v", "ssh-server", "run", "--listen", "127.0.0.1:0"])
        .args([
            "--user-ca",
            "user_ca.pub",
            "--host-key",
            "host",
            "--revoked",
            "revoked",
        ])
        .args(["--host-certificate", "host-cert.pub"])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = Vec::new();
    let mut stdout = server.stdout.take().unwrap();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stdout
            .read_exact(&mut byte)
            .expect("it says where it listens");
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
    (server, port)
}

fn is_installed(program: &str) -> bool {
    if program == "paramiko" {
        let mut import = Command::new(PYTHON);
        let import = import.args(["-c", "import paramiko"]).stderr(Stdio::null());
        return import.status().is_ok_and(|status| status.success());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/usr/bin"];
    let mut directories = path.split(':').chain(sbin);
    directories.any(|directory| PathBuf::from(directory).join(program).is_file())
}

fn keygen(directory: &tempfile::TempDir, line: &[&str]) -> Command {
    let mut command = Command::new("ssh-keygen");
    command.args(line).current_dir(directory.path());
    command
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

pub(crate) fn user() -> String {
    os::account::Account::own().unwrap().unwrap().name
}

#[track_caller]
pub(crate) fn run(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fed(mut command: Command, input: Vec<u8>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    drop(feeder.join().unwrap());
    output
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = now();
    while !condition() {
        assert!(now().duration_since(begin) < WAIT_MAX, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn now() -> Instant {
    os::clock::Clock::start().now()
}

/// Bytes without a pattern that a lost or doubled piece would keep.
fn bytes(count: usize) -> Vec<u8> {
    let words = (0..count as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Sends back what it gets, on a port of loopback.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                drop(std::io::copy(&mut reader, &mut stream));
                drop(stream.shutdown(std::net::Shutdown::Write));
            });
        }
    });
    port
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Sends `data` to a port of loopback and reads it back.
fn echoes(port: u16, data: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent = data.to_vec();
    let writer = thread::spawn(move || {
        drop(writer.write_all(&sent));
        drop(writer.shutdown(std::net::Shutdown::Write));
    });
    let mut back = Vec::new();
    let read = stream.read_to_end(&mut back);
    writer.join().unwrap();
    read.is_ok() && back == data
}

/// A command that stays; it ends with this value.
struct Staying(Child);

impl Staying {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_command_has_its_input_output_errors_and_status() {
    let Some(world) = World::new(&[]) else { return };
    let output = world
        .ssh(&["host", "echo out; echo err >&2; pwd; exit 7"])
        .output()
        .unwrap();
    let home = os::account::Account::own().unwrap().unwrap().home;
    let expected = format!("out\n{}\n", home.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(7));
    let killed = world.ssh(&["host", "kill -TERM $$"]).output().unwrap();
    assert_eq!(
        killed.status.code(),
        Some(255),
        "OpenSSH's code for a signal"
    );
    let data = bytes(8_000_000);
    let output = fed(world.ssh(&["host", "cat"]), data.clone());
    assert!(output.status.success() && output.stdout == data);
    let output = fed(
        world.ssh(&["-C", "-c", "aes128-ctr", "host", "cat"]),
        data.clone(),
    );
    assert!(
        output.status.success() && output.stdout == data,
        "compressed"
    );
}

#[test]
fn the_environment_is_the_account_s_and_what_is_harmless() {
    let Some(world) = World::new(&[]) else { return };
    let line = ["-o", "SetEnv=LC_TEST=x LD_PRELOAD=y", "host", "env"];
    let environment = run(world.ssh(&line));
    assert!(environment.contains("LC_TEST=x\n"), "{environment}");
    assert!(!environment.contains("LD_PRELOAD"), "{environment}");
    assert!(
        environment.contains(&format!("USER={}\n", user())),
        "{environment}"
    );
    assert!(
        environment.contains("SSH_CONNECTION=127.0.0.1 "),
        "{environment}"
    );
    assert!(
        !environment.contains("CARGO"),
        "nothing of the server's: {environment}"
    );
}

#[test]
fn a_terminal_is_made_and_what_is_written_last_arrives() {
    let Some(world) = World::new(&[]) else { return };
    let line = "test -t 0 && test -t 1 && echo \"$TERM $SSH_TTY\"; seq 5000; exit 3";
    let mut command = world.ssh(&["-tt", "host", line]);
    let output = command.env("TERM", "vt100").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("vt100 /dev/pts/"), "{text}");
    assert!(text.ends_with("\r\n5000\r\n"), "{}", text.len());
    assert_eq!(output.status.code(), Some(3));
    let output = fed(
        world.ssh(&["-tt", "host"]),
        b"echo $((40+2))\nexit 5\n".to_vec(),
    );
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("42"),
        "a login shell"
    );
    assert_eq!(output.status.code(), Some(5));
}

/// Whoever waits for neither side to read must not wait for ever: OpenSSH grants its window only
/// as its output is taken, and sends on meanwhile.
#[test]
fn a_reader_that_pauses_gets_everything_in_the_end() {
    let Some(world) = World::new(&[]) else { return };
    let data = bytes(64_000_000);
    let mut child = world
        .ssh(&["host", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let feeder = thread::spawn(move || stdin.write_all(&sent));
    let mut stdout = child.stdout.take().unwrap();
    thread::sleep(Duration::from_secs(2));
    let mut back = Vec::new();
    stdout.read_to_end(&mut back).unwrap();
    feeder.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
}

#[test]
fn files_are_copied_by_sftp_scp_rsync_and_git() {
    let Some(world) = World::new(&["sftp", "scp", "rsync", "git"]) else {
        return;
    };
    let data = bytes(3_000_000);
    fs::write(world.path("one"), &data).unwrap();
    let there = world.path("there");
    fs::create_dir(&there).unwrap();
    let there = there.display();
    let script = format!("put one {there}/two\nrename {there}/two {there}/three\nls -l {there}\n");
    let mut command = world.openssh("sftp", &["-b", "-", "host"]);
    command.stdin(Stdio::piped());
    let output = fed(command, script.into_bytes());
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("three"));
    assert!(fs::read(world.path("there/three")).unwrap() == data);
    for (options, name) in [(&[][..], "four"), (&["-O"][..], "five")] {
        let to = format!("host:{there}/{name}");
        run(world.openssh("scp", &[options, &["-pq", "one", &to]].concat()));
        run(world.openssh("scp", &[options, &["-pq", &to, "back"]].concat()));
        assert!(fs::read(world.path("back")).unwrap() == data, "{name}");
    }
    let shell = format!("ssh -F {}", world.configuration().display());
    let mut rsync = Command::new("rsync");
    rsync.args(["-a", "-e", &shell, &format!("host:{there}/"), "copy"]);
    run_in(&world, rsync);
    assert!(fs::read(world.path("copy/five")).unwrap() == data);
    for line in [
        "init -q repository",
        "-C repository add one",
        "-C repository commit -qm one",
    ] {
        if line.contains("add") {
            fs::copy(world.path("one"), world.path("repository/one")).unwrap();
        }
        run_in(&world, git(&words(line)));
    }
    let url = format!("host:{}", world.path("repository").display());
    let mut clone = git(&["clone", "-q", &url, "clone"]);
    clone.env("GIT_SSH_COMMAND", &shell);
    run_in(&world, clone);
    assert!(fs::read(world.path("clone/one")).unwrap() == data);
}

fn git(line: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
        .args(["-c", "safe.directory=*"])
        .args(line);
    command
}

#[track_caller]
fn run_in(world: &World, mut command: Command) {
    command.current_dir(world.directory.path());
    run(command);
}

#[test]
fn ports_are_led_in_every_direction() {
    let Some(world) = World::new(&["curl"]) else {
        return;
    };
    let data = bytes(4_000_000);
    let (target, local, remote, socks) = (echo(), free_port(), free_port(), free_port());
    let line = [
        "-N".to_owned(),
        format!("-L127.0.0.1:{local}:127.0.0.1:{target}"),
        format!("-R127.0.0.1:{remote}:127.0.0.1:{target}"),
        format!("-D127.0.0.1:{socks}"),
        "host".to_owned(),
    ];
    let line: Vec<_> = line.iter().map(String::as_str).collect();
    let forward = Staying::start(world.ssh(&line));
    for port in [local, remote] {
        wait_for("the forward", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(echoes(port, &data));
    }
    let proxy = format!("socks5h://127.0.0.1:{socks}");
    let url = format!("http://127.0.0.1:{}/", page());
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--proxy", &proxy, &url]);
    assert_eq!(run(curl), "hello");
    drop(forward);
    wait_for("the end of the listener", || {
        TcpStream::connect(("127.0.0.1", remote)).is_err()
    });
}

fn page() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.read(&mut [0; 1024]));
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    port
}

#[test]
fn the_agent_of_the_person_is_reached() {
    let Some(world) = World::new(&["ssh-agent", "ssh-add"]) else {
        return;
    };
    let socket = world.path("agent");
    let mut agent = Command::new("ssh-agent");
    agent.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null());
    let _agent = Staying::start(agent);
    wait_for("the agent", || socket.exists());
    let mut add = Command::new("ssh-add");
    add.args(["-q", "other_ca"]).env("SSH_AUTH_SOCK", &socket);
    run_in(&world, add);
    let line = [
        "-A",
        "host",
        "ssh-add -l; stat -c %a $SSH_AUTH_SOCK; dirname $SSH_AUTH_SOCK",
    ];
    let mut ssh = world.ssh(&line);
    let text = run_with_agent(&mut ssh, &socket);
    assert!(text.contains("ED25519"), "{text}");
    let directory = text.lines().last().unwrap().to_owned();
    wait_for("the end of the socket", || {
        !PathBuf::from(&directory).exists()
    });
}

fn run_with_agent(command: &mut Command, socket: &PathBuf) -> String {
    let output = command.env("SSH_AUTH_SOCK", socket).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_clipboard_of_the_person_s_display_is_reached() {
    let Some(world) = World::new(&["Xvfb", "xclip", "xauth"]) else {
        return;
    };
    let display = format!(":{}", 100 + std::process::id() % 400);
    let authority = world.path("authority");
    let mut xauth = Command::new("xauth");
    xauth.arg("-f").arg(&authority).args(["add", &display, "."]);
    run_in(&world, {
        xauth.arg("00112233445566778899aabbccddeeff");
        xauth
    });
    let mut server = Command::new("Xvfb");
    // It would start anew, and cut who is just connecting, whenever the last program leaves.
    server
        .args([&display, "-noreset", "-auth"])
        .arg(&authority)
        .stderr(Stdio::null());
    let _server = Staying::start(server);
    let socket = format!("/tmp/.X11-unix/X{}", &display[1..]);
    wait_for("the X server", || PathBuf::from(&socket).exists());
    let on_display = |mut command: Command| {
        command
            .env("DISPLAY", &display)
            .env("XAUTHORITY", &authority);
        command
    };
    // It stays until somebody has pasted.
    let line = "printf remote | xclip -selection clipboard -i -quiet -loops 1 >/dev/null 2>&1";
    let mut copy = on_display(world.ssh(&["-X", "host", line]));
    let mut copy = copy.spawn().unwrap();
    let pasted = || {
        let mut paste = on_display(Command::new("xclip"));
        paste
            .args(["-selection", "clipboard", "-o"])
            .stderr(Stdio::null());
        String::from_utf8_lossy(&paste.output().unwrap().stdout).into_owned()
    };
    wait_for("the clipboard", || pasted() == "remote");
    drop(copy.wait());
}

#[test]
fn who_is_not_let_in_is_told_nothing_and_the_log_says_why() {
    let Some(world) = World::new(&[]) else { return };
    let user = user();
    let refused = |why: &str| {
        let said = || world.log().matches(&format!("refused: {why}")).count();
        let before = said();
        let output = world.ssh(&["host", "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(255), "{why}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("Permission denied (publickey)"), "{text}");
        wait_for(why, || said() > before);
    };
    world.certify(&format!("-n {user}x"));
    refused(&format!("user `{user}` is not among its principals"));
    world.certify_by("other_ca", &format!("-n {user}"));
    refused("it was signed by another CA");
    world.certify("-O clear");
    refused(&format!("user `{user}` is not among its principals"));
    world.certify(&format!("-n {user} -O source-address=10.9.0.0/16"));
    refused("it was not made for a login from 127.0.0.1");
    world.certify(&format!("-n {user} -O critical:colour=red"));
    refused("its critical option `colour` is not known here");
    world.certify(&format!("-n {user} -z 13"));
    fs::write(world.path("revoked"), "12\n13\n").unwrap();
    refused("serial 13 was revoked");
    world.certify(&format!("-n {user} -z 14"));
    let ca = fs::read(world.path("user_ca.pub")).unwrap();
    fs::remove_file(world.path("user_ca.pub")).unwrap();
    refused("the CA keys of the organisation are not known now");
    fs::write(world.path("user_ca.pub"), ca).unwrap();
    fs::remove_file(world.path("me-cert.pub")).unwrap();
    refused("a public key without a certificate");
    for (from, to) in [("user_ca", "me"), ("user_ca.pub", "me.pub")] {
        fs::copy(world.path(from), world.path(to)).unwrap();
    }
    world.certify(&format!("-n {user}"));
    refused("it certifies the key of a CA");
}

#[test]
fn a_certificate_outside_its_time_is_refused() {
    let Some(world) = World::new(&[]) else { return };
    let user = user();
    for validity in ["-2h:-1h", "+1h:+2h"] {
        world.certify(&format!("-n {user} -V {validity}"));
        let output = world.ssh(&["host", "true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(255), "{validity}");
        let refused = || {
            world
                .log()
                .matches("refused: expired_or_not_yet_valid")
                .count()
        };
        wait_for("a reason", || {
            refused() > usize::from(validity.starts_with('+'))
        });
    }
    assert!(!world.log().contains("accepted"));
}

#[test]
fn only_what_the_certificate_permits_is_done() {
    let Some(world) = World::new(&[]) else { return };
    let user = user();
    world.certify(&format!("-n {user} -O clear"));
    let output = world.ssh(&["-tt", "host", "tty"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("PTY allocation request failed"), "{text}");
    let target = format!("127.0.0.1:{}", echo());
    let output = world.ssh(&["-W", &target, "host"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("administratively prohibited"), "{text}");
    let remote = format!("-R{}:127.0.0.1:1", free_port());
    assert!(
        !world
            .ssh(&["-N", &remote, "host"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

/// Connections that never log in, all from one address and in several states of the beginning;
/// their count is `SSH_FLOOD`.
#[test]
fn a_flood_before_the_login_takes_little_and_keeps_nobody_else_out() {
    let Some(world) = World::new(&[]) else { return };
    let count = std::env::var("SSH_FLOOD").ok();
    let count = count.map_or(1_000, |count| count.parse().unwrap());
    run(world.ssh(&["host", "true"]));
    wait_for("its end", || world.sockets() == 1);
    let before = world.resident();
    let flood = flood(world.port, count);
    assert_eq!(run(world.ssh(&["host", "echo in"])), "in\n");
    let (sockets, grown) = (world.sockets(), world.resident().saturating_sub(before));
    eprintln!("{count} strangers: {sockets} sockets of the server, {grown} KiB more");
    assert!(sockets <= STRANGERS_MAX + 2, "{sockets} sockets");
    assert!(grown <= GROWTH_MAX, "{grown} KiB");
    drop(flood);
    wait_for("their end", || world.sockets() == 1);
    assert_eq!(run(world.ssh(&["host", "echo in"])), "in\n");
}

/// What the server keeps of connections without a login.
const STRANGERS_MAX: usize = 256;

/// KiB that they may cost, generously.
const GROWTH_MAX: u64 = 32 * 1_024;

/// Connects from an address that no other test uses, and stays.
fn flood(port: u16, count: usize) -> Vec<tokio::net::TcpStream> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let mut streams = Vec::new();
    runtime.block_on(async {
        for number in 0..count {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
            let beginning = b"SSH-2.0-x\r\n\0\0\x04";
            let half = &beginning[..[0, 5, 11, 14][number % 4]];
            // Beyond the bound it is closed already.
            drop(stream.try_write(half));
            streams.push(stream);
        }
    });
    streams
}

#[test]
fn a_forced_command_replaces_every_other() {
    let Some(world) = World::new(&["sftp"]) else {
        return;
    };
    let user = user();
    let forced = "force-command=echo forced; printenv SSH_ORIGINAL_COMMAND";
    let options = [
        "-q", "-s", "user_ca", "-I", "me", "-n", &user, "-O", forced, "me.pub",
    ];
    run(keygen(&world.directory, &options));
    assert_eq!(run(world.ssh(&["host", "id; id"])), "forced\nid; id\n");
}

#[test]
fn a_revoked_certificate_ends_the_running_session() {
    let Some(world) = World::new(&[]) else { return };
    let marker = world.path("marker");
    let line = format!("touch {}; sleep 300", marker.display());
    let mut session = world.ssh(&["host", &line]).spawn().unwrap();
    wait_for("the session", || marker.exists());
    fs::write(world.path("revoked"), "7\n").unwrap();
    let mut status = None;
    wait_for("its end", || {
        status = session.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(255));
    world.logged("cut off: serial 7 was revoked");
}

#[test]
fn root_becomes_the_account_and_others_serve_only_their_own() {
    let Some(world) = World::new(&["sftp"]) else {
        return;
    };
    if os::process::euid() != 0 {
        world.certify("-n root,someone");
        let output = world
            .ssh(&["-l", "someone", "host", "true"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(255));
        world.logged("serves no other account");
        return;
    }
    world.certify("-n nobody,no-such-user,postgres");
    let output = world
        .ssh(&["-l", "no-such-user", "host", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    world.logged("there is no account `no-such-user`");
    let output = fed(
        world.openssh("sftp", &["-b", "-", "nobody@host"]),
        b"ls /\n".to_vec(),
    );
    assert!(
        !output.status.success(),
        "an account without a shell has no files either"
    );
    if os::account::Account::named("postgres").unwrap().is_none() {
        return;
    }
    let text = run(world.ssh(&["-l", "postgres", "host", "id -un; id -Gn; echo $HOME; pwd"]));
    assert!(
        text.starts_with("postgres\n") && !text.contains("root"),
        "{text}"
    );
    let terminal = "stat -c '%U %a' $(tty); cat /etc/shadow";
    let output = world
        .ssh(&["-tt", "-l", "postgres", "host", terminal])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("postgres 620\r\n"), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
    let script = b"get /etc/shadow\n".to_vec();
    let output = fed(world.openssh("sftp", &["-b", "-", "postgres@host"]), script);
    assert!(!output.status.success(), "{output:?}");
    let remote = format!("-R{}:127.0.0.1:1", 1_023);
    let line = ["-N", &remote, "-l", "postgres", "host"];
    assert!(
        !world.ssh(&line).output().unwrap().status.success(),
        "a port of root"
    );
}

#[test]
fn ssh_audit_finds_nothing_weak() {
    let Some(world) = World::new(&["ssh-audit"]) else {
        return;
    };
    let port = world.port.to_string();
    let mut audit = Command::new("ssh-audit");
    audit.args(["-n", "-l", "warn", "-p", &port, "127.0.0.1"]);
    let output = audit.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Newer ones know ML-KEM, which we offer first, and warn of every exchange without it; OpenSSH
    // before 9.9 has no other in common with us. Older ones do not know ML-KEM at all.
    let faults = text
        .lines()
        .filter(|line| line.contains("[fail]") || line.contains("[warn]"));
    let mut faults = faults.filter(|line| {
        !line.contains("post-quantum attacks") && !line.contains("unknown algorithm")
    });
    assert_eq!(faults.next(), None, "{text}");
    // It has reached the server.
    assert!(text.contains("# key exchange algorithms"), "{text}");
}
