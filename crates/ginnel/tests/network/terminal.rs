//! A person at a terminal: its size, its keys and its end reach a node, by `ginnel ssh` and by
//! OpenSSH, and a copy says how far it is.

use std::{
    fs::{self, File},
    process::{Child, Command, ExitStatus},
};

use os::terminal::{Pty, Size};

use crate::{
    ssh::world,
    world::{World, finish, lacks, note, serve_echo, wait_for},
};

/// A terminal, the program that runs on it, and what the program has shown.
struct Terminal {
    pty: Pty,
    child: Child,
    screen: Vec<u8>,
}

/// Says the size of its terminal, at first and at each change of it, and when it is interrupted.
const PROGRAM: &str = "trap 'echo size: $(stty size)' WINCH; trap 'echo interrupted' INT; \
                       echo size: $(stty size); while :; do sleep 0.1; done";

fn size(columns: u16, rows: u16) -> Size {
    Size {
        columns,
        rows,
        ..Size::default()
    }
}

impl Terminal {
    /// Starts `command` with a terminal that controls it, as a person's does.
    fn start(command: &Command, size: Size) -> Self {
        let (pty, slave) = Pty::open(size).expect("a terminal");
        let slave = File::from(slave);
        let mut controlled = Command::new("setsid");
        controlled.arg("--ctty").arg(command.get_program());
        controlled.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => controlled.env(name, value),
                None => controlled.env_remove(name),
            };
        }
        let side = || slave.try_clone().expect("a descriptor");
        controlled.stdin(side()).stdout(side()).stderr(side());
        Self {
            pty,
            child: controlled.spawn().expect("start"),
            screen: Vec::new(),
        }
    }

    fn press(&self, keys: &[u8]) {
        assert_eq!(self.pty.write(keys).expect("it takes keys"), keys.len());
    }

    /// Waits until the screen has shown `text`.
    #[track_caller]
    fn until(&mut self, text: &str) {
        wait_for(&format!("`{text}`"), || {
            self.read();
            self.shown().contains(text)
        });
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("its end", || {
            self.read();
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        self.read();
        status.expect("it has ended")
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    fn read(&mut self) {
        let mut part = [0; 4096];
        // An error says that nothing is there, or that the program has ended.
        while let Ok(length @ 1..) = self.pty.read(&mut part) {
            self.screen.extend_from_slice(&part[..length]);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            note(&self.shown());
        }
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// OpenSSH as the laptop's `ginnel ssh-config` and `ginnel cert` prepare it.
fn openssh(world: &World, line: &[&str]) -> Command {
    let configuration = world.path("ssh_config");
    fs::write(&configuration, world.run("laptop", &["ssh-config"])).expect("a file");
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(&configuration).args(line);
    ssh.env_remove("SSH_AUTH_SOCK");
    ssh
}

#[test]
fn a_trace_says_on_a_terminal_how_far_it_has_come_and_nothing_of_that_in_a_pipe() {
    if lacks("setsid") {
        return;
    }
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let line = ["trace", "shed", "--count", "1000"];
    let mut terminal = Terminal::start(&world.ginnel("laptop", &line), size(80, 24));
    terminal.until(" of 1000, 0 s");
    wait_for("the third round, in the same line", || {
        terminal.read();
        let shown = terminal.shown();
        let round = shown.rsplit("\u{1b}[K\rround ").next();
        let round = round.and_then(|text| text.split(' ').next()?.parse().ok());
        round.is_some_and(|round: u32| round >= 3)
    });
    terminal.press(b"\x03");
    assert!(terminal.ended().code().is_some());
    let shown = terminal.shown();
    let (_, after) = shown.rsplit_once("\r\u{1b}[K").expect("the line goes");
    assert!(
        after.contains("shed") && !after.contains("round"),
        "{shown}"
    );

    let ended = world.try_run("laptop", &["trace", "shed", "--count", "2"]);
    assert_eq!(ended.stderr, "", "{ended:?}");
}

#[test]
fn a_terminal_tells_its_size_passes_its_keys_and_ends_by_an_escape() {
    if lacks("ssh") || lacks("setsid") {
        return;
    }
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    world.run("laptop", &["cert", "--principal", "root"]);
    let ours = world.ginnel("laptop", &["ssh", "-t", "root@shed", PROGRAM]);
    let theirs = openssh(&world, &["-t", "root@shed.internal", PROGRAM]);
    for (command, left) in [(ours, 0), (theirs, 255)] {
        let mut terminal = Terminal::start(&command, size(101, 31));
        terminal.until("size: 31 101");
        terminal.pty.resize(size(133, 47)).expect("a new size");
        terminal.until("size: 47 133");
        // A raw terminal makes no signal of it: it is the program there that is interrupted.
        terminal.press(b"\x03");
        terminal.until("interrupted");
        terminal.press(b"\r~.");
        let status = terminal.ended();
        assert_eq!(status.code(), Some(left), "{}", terminal.shown());
    }
}

#[test]
fn a_copy_says_on_a_terminal_how_far_it_is_and_nothing_in_a_pipe() {
    if lacks("setsid") {
        return;
    }
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let (here, there) = (world.path("here"), world.path("there"));
    fs::write(&here, vec![7; 3_000_000]).expect("a file");
    let target = format!("root@shed:{}", there.display());
    let line = ["cp", here.to_str().expect("UTF-8"), &target];
    let mut terminal = Terminal::start(&world.ginnel("laptop", &line), size(80, 24));
    assert!(terminal.ended().success(), "{}", terminal.shown());
    assert!(terminal.shown().contains("100%"), "{}", terminal.shown());
    assert!(fs::read(&there).expect("it arrived") == vec![7; 3_000_000]);
    let ended = world.try_run("laptop", &line);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

/// `ginnel cert --agent`: OpenSSH gets in by the agent alone, and nothing lies on disk.
#[test]
fn a_certificate_in_the_agent_lets_openssh_in_and_is_on_no_disk() {
    if lacks("ssh") || lacks("ssh-agent") || lacks("ssh-add") {
        return;
    }
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let socket = world.path("agent.socket");
    let _agent = world.spawn(Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket));
    wait_for("an agent", || socket.exists());
    let mut certify = world.ginnel("laptop", &["cert", "--agent", "--principal", "root"]);
    let ended = finish(certify.env("SSH_AUTH_SOCK", &socket));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut listed = Command::new("ssh-add");
    let listed = finish(listed.arg("-l").env("SSH_AUTH_SOCK", &socket));
    assert!(listed.stdout.contains("(ED25519-CERT)"), "{listed:?}");
    for name in ["ssh_user", "ssh_user-cert.pub"] {
        assert!(!world.path("laptop").join(name).exists(), "{name}");
    }
    let mut ssh = openssh(&world, &["-n", "root@shed.internal", "echo inside"]);
    let ended = finish(ssh.env("SSH_AUTH_SOCK", &socket));
    assert_eq!(ended.stdout, "inside\n", "{ended:?}");
    let mut forget = Command::new("ssh-add");
    finish(forget.arg("-D").env("SSH_AUTH_SOCK", &socket));
    let ended = finish(ssh.env("SSH_AUTH_SOCK", &socket));
    assert_eq!(ended.code, Some(255), "it was the agent: {ended:?}");
}
