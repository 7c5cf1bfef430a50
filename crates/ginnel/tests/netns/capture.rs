//! `ginnel capture` of an interface of `ginnel tun`, its metrics, and a capture elsewhere whose
//! reader loses its network.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::sys::signal::Signal;

use super::{
    attachment::{At, Network},
    trouble::joined,
    world::{
        GINNEL, LONG, Program, SHORT, Space, Tunnel, World, file_with, find, inner, lacks,
        socket_path, text, wg_line, within,
    },
};

/// A capture that runs, and what it has written so far.
struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    /// Starts one at an interface, and waits until it has begun.
    fn start(tunnel: &Tunnel, flags: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut ginnel = Command::new(GINNEL);
        ginnel.args(["capture", "--tun", &tunnel.interface, "-w"]);
        ginnel.arg(file.path()).args(flags).stderr(Stdio::piped());
        let child = ginnel.spawn().expect("it runs");
        let capture = Self { child, file };
        within(SHORT, "the capture begins", || {
            fs::metadata(capture.file.path()).is_ok_and(|file| file.len() > 0)
        });
        capture
    }

    /// Ends it as a person does, and returns what it said.
    fn end(&mut self) -> String {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, Signal::SIGINT).expect("our child");
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("text");
        assert!(self.child.wait().expect("it ends").success(), "{said}");
        let mut capinfos = Command::new("capinfos");
        let told = capinfos.arg(self.file.path()).output().expect("it runs");
        assert!(told.status.success(), "{}", text(&told));
        said
    }

    /// Returns a field of the frames that a filter finds; of a file that is written still, of those
    /// that are whole.
    fn fields(&self, filter: &str, field: &str) -> Vec<String> {
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-T", "fields", "-e", field, "-Y", filter, "-r"]);
        let output = tshark.arg(self.file.path()).output().expect("tshark runs");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        lines.lines().map(str::to_owned).collect()
    }

    fn count(&self, filter: &str) -> usize {
        self.fields(filter, "frame.number").len()
    }

    /// All data is opened by the keys in the file, of so many handshakes at least.
    fn is_open(&self, handshakes: usize) {
        let sealed = self.count("wg.type == 4");
        let opened = "wg.type == 4 && (icmp || tcp || icmpv6 || wg.keepalive)";
        assert_eq!(self.count(opened), sealed);
        assert!(self.count("wg.type == 4 && icmp") >= 4);
        let responses = self.count("wg.type == 2");
        assert!(responses >= handshakes, "{responses}");
        assert_eq!(self.count("wg.handshake_ok == 1"), responses);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn has_tshark() -> bool {
    let found = find("tshark").is_some();
    if !found {
        lacks("NETNS", "`tshark` is not installed");
    }
    found
}

#[test]
fn tshark_reads_the_packets_of_both_sides_of_an_interface_and_why_some_got_no_further() {
    let Some((world, [one, _other])) = joined() else {
        return;
    };
    if !has_tshark() {
        return;
    }
    let [here, there] = &world.spaces;
    let mut capture = Capture::start(&one, &["--interface", "both"]);
    assert!(status(&one).contains("capture      runs, without keys"));
    let mut second = Command::new(GINNEL);
    second.args(["capture", "--tun", &one.interface, "-w", "/dev/null"]);
    let refused = text(&second.output().expect("it runs"));
    assert!(refused.contains("runs already"), "{refused}");
    assert_eq!(here.ping(inner(1, false), 5), 5);
    here.transfer(there, inner(1, true), 400_000);
    // Nobody has this address.
    assert_eq!(here.ping([10, 88, 0, 77].into(), 1), 0);
    let said = capture.end();
    assert!(said.is_empty(), "{said}");
    assert!(!status(&one).contains("capture"));
    let mode = fs::metadata(capture.file.path()).expect("it is there");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    let at = |interface: &str, filter: &str| {
        let filter = format!("frame.interface_name == \"{interface}\" && {filter}");
        capture.fields(&filter, "frame.len").len()
    };
    let to = |address: &str| format!("icmp.type == 8 && ip.dst == {address}");
    assert_eq!(at("inner", &to("10.88.0.2")), 5);
    assert_eq!(at("inner", "icmp.type == 0"), 5);
    // Each in a datagram of its own, which nobody opens without keys.
    assert!(at("outer", "wg.type == 4 && ip.dst == 10.99.0.2") >= 5);
    assert!(at("outer", "wg.type == 4 && ip.src == 10.99.0.2") >= 5);
    assert_eq!(capture.count("wg.type == 4 && (icmp || tcp)"), 0);
    let lost = capture.fields(&to("10.88.0.77"), "frame.comment");
    assert_eq!(lost, ["discarded: wireguard.no_route"]);
    // What went there came back.
    let lengths = capture.fields("ipv6 && tcp.len > 0", "tcp.len");
    let length: usize = lengths
        .iter()
        .map(|text| text.parse::<usize>().expect("a number"))
        .sum();
    assert!(length >= 800_000, "{length}");
    let file = fs::read(capture.file.path()).expect("it is there");
    let key = one.private_key.as_bytes();
    assert!(!file.windows(key.len()).any(|part| part == key));
}

#[test]
fn with_keys_tshark_opens_all_that_an_interface_sends_and_receives_in_either_role() {
    let Some((world, [one, other])) = joined() else {
        return;
    };
    if !has_tshark() {
        return;
    }
    let [here, _] = &world.spaces;
    let opened = |capture: &Capture, more: usize| {
        // Answers: a request that nobody takes any more is in a file too.
        let answers = "wg.type == 4 && icmp.type == 0";
        let before = capture.count(answers);
        within(LONG, "a session whose keys are in the file", || {
            here.ping(inner(1, false), 1);
            capture.count(answers) >= before + more
        });
    };
    let mut second = Command::new(GINNEL);
    second.args(["capture", "--tun", &one.interface, "--keys", "-w", "-"]);
    let refused = second.stdin(Stdio::null()).output().expect("it runs");
    let refused = text(&refused);
    assert!(refused.contains("holds the private key"), "{refused}");
    assert!(refused.contains("wg set"), "{refused}");

    let key = wg_line(&["genpsk"], "");
    for preshared in [None, Some(key.as_str())] {
        one.set_peer(&other, 1, preshared, false);
        other.set_peer(&one, 0, preshared, false);
        // It begins by itself.
        let mut capture = Capture::start(&one, &["--keys", "--yes"]);
        opened(&capture, 4);
        let said = capture.end();
        assert!(said.contains("replace the private key"), "{said}");
        capture.is_open(1);

        // It does not know where the other is, and so only answers; twice.
        other.remove_peer(&one);
        let file = preshared.map(file_with);
        let allowed = "10.88.0.1/32,fd88::1/128";
        let mut line = vec!["peer", &one.public_key, "allowed-ips", allowed];
        line.extend(file.iter().flat_map(|key| ["preshared-key", key]));
        other.set(&line);
        let mut capture = Capture::start(&other, &["--keys", "--yes", "--interface", "both"]);
        for _ in 0..2 {
            one.remove_peer(&other);
            one.set_peer(&other, 1, preshared, false);
            opened(&capture, 4);
        }
        capture.end();
        capture.is_open(2);
        let inner = "frame.interface_name == \"inner\" && icmp.type == 0";
        let outer = "frame.interface_name == \"outer\" && icmp.type == 0";
        assert!(capture.count(inner) >= capture.count(outer));
    }
}

#[test]
fn keys_come_through_a_pipe_before_what_they_open_and_only_of_peers_that_the_filter_names() {
    let Some((world, [one, _other])) = joined() else {
        return;
    };
    if !has_tshark() {
        return;
    }
    let mut other = Capture::start(&one, &["--keys", "--yes", "--filter", "host 10.99.0.9"]);
    other.end();
    let file = fs::read(other.file.path()).expect("it is there");
    let ephemeral = b"LOCAL_EPHEMERAL_PRIVATE_KEY";
    let mut parts = file.windows(ephemeral.len());
    assert!(!parts.any(|part| part == ephemeral));

    let mut shell = Command::new("sh");
    let line = format!(
        "{GINNEL} capture --tun {} --keys --yes --filter 'host 10.99.0.2' -w - | \
         tshark -l -n -i - -T fields -e icmp.type -Y 'wg.type == 4 && icmp' | head -n 2",
        one.interface
    );
    shell.args(["-c", &line]).stdout(Stdio::piped());
    let mut child = shell.spawn().expect("it runs");
    let space = &world.spaces[0];
    let mut lines = child.stdout.take().expect("piped");
    let lines = std::thread::spawn(move || {
        let mut text = String::new();
        lines.read_to_string(&mut text).expect("text");
        text
    });
    within(LONG, "two packets that were opened as they came", || {
        space.ping(inner(1, false), 1);
        child.try_wait().expect("our child").is_some()
    });
    let lines = lines.join().expect("no panic");
    assert_eq!(lines.split_whitespace().count(), 2, "{lines}");
}

#[test]
fn a_reader_that_reads_nothing_holds_nobody_up_and_what_it_missed_is_counted() {
    let Some((world, [one, _other])) = joined() else {
        return;
    };
    let [here, there] = &world.spaces;
    let mut reader = UnixStream::connect(socket_path(&one.interface)).expect("it listens");
    let request = b"ginnel_capture=1\ninner=true\nouter=true\n\n";
    reader.write_all(request).expect("it listens");
    let mut answer = [0; 9];
    reader.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"errno=0\n\n");
    here.transfer(there, inner(1, false), 40_000_000);
    // `wg` is answered as before.
    assert!(one.show(&["peers"]).len() > 40);
    reader.shutdown(Shutdown::Write).expect("it is open");
    let mut file = Vec::new();
    reader.read_to_end(&mut file).expect("a whole file");
    let [inner, outer] = dropped(&file);
    assert!(inner > 0 && outer > 0, "{inner}, {outer}");
}

/// Returns how many packets each interface of a file lost, from its interface statistics blocks.
fn dropped(file: &[u8]) -> [u64; 2] {
    let word = |at: usize| {
        let bytes = file[at..].first_chunk().expect("a block goes on");
        usize::try_from(u32::from_le_bytes(*bytes)).expect("it fits")
    };
    let (mut dropped, mut at) = ([0; 2], 0);
    while at < file.len() {
        let (kind, length, interface) = (word(at), word(at + 4), word(at + 8));
        let mut option = at + 20;
        while kind == 5 && option + 4 < at + length {
            let (code, size) = (word(option) & 0xffff, word(option) >> 16);
            // isb_osdrop.
            if code == 7 {
                let bytes = file[option + 4..].first_chunk().expect("eight bytes");
                dropped[interface] = u64::from_le_bytes(*bytes);
            }
            option += 4 + size.next_multiple_of(4);
        }
        at += length;
    }
    dropped
}

#[test]
fn an_interface_tells_what_it_counts_under_the_names_of_nodes() {
    let Some(world) = World::new() else {
        return;
    };
    let [here, there] = &world.spaces;
    let address: SocketAddr = ([127, 0, 0, 1], 9586).into();
    let flag = format!("--metrics={address}");
    let one = Tunnel::start_as(here, Program::Ginnel, |command| {
        command.arg(&flag);
    });
    let other = Tunnel::start(there, Program::Ginnel);
    let (Some(one), Some(other)) = (one, other) else {
        return;
    };
    world.join([&one, &other], None, false);
    assert_eq!(here.ping(inner(1, false), 3), 3);
    assert_eq!(here.ping([10, 88, 0, 77].into(), 2), 0);
    let metrics = metrics(here, address);
    let value = |series: &str| {
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {series}: {metrics}"));
        value.parse::<u64>().expect("a whole number")
    };
    for (series, least) in [
        ("ginnel_peers", 1),
        ("ginnel_peers_up", 1),
        ("ginnel_handshakes_completed_total", 1),
        ("ginnel_received_datagrams_total", 4),
        ("ginnel_sent_bytes_total", 3 * 128),
        (
            "ginnel_discards_total{layer=\"wireguard\",reason=\"no_route\"}",
            2,
        ),
    ] {
        assert!(value(series) >= least, "{series}: {metrics}");
    }
    let key = format!(
        "ginnel_peer_up{{peer=\"\",public_key=\"{}\"}}",
        other.public_key.trim()
    );
    assert_eq!(value(&key), 1);
    assert!(!metrics.contains(one.private_key.trim()));
    if find("promtool").is_none() {
        return lacks("NETNS", "`promtool` is not installed");
    }
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(metrics.as_bytes()).expect("it reads");
    drop(stdin);
    let told = child.wait_with_output().expect("it ends");
    assert!(told.status.success(), "{}", text(&told));
}

/// Asks for the metrics inside a namespace.
fn metrics(space: &Space, address: SocketAddr) -> String {
    let mut answer = String::new();
    let mut stream = space.enter(|| TcpStream::connect(address)).expect("a port");
    stream.set_read_timeout(Some(LONG)).expect("not zero");
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("it is open");
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    body.to_owned()
}

fn status(tunnel: &Tunnel) -> String {
    let mut ginnel = Command::new(GINNEL);
    ginnel.args(["status", "--interface", &tunnel.interface]);
    text(&ginnel.output().expect("it runs"))
}

#[test]
fn a_capture_elsewhere_ends_when_whoever_asked_has_no_network_any_more() {
    let Some(network) = Network::new() else {
        return;
    };
    let _beta = network.start(At::Beta, &["up", "--user"], "is ready");
    let file = network.path("beta.pcapng");
    let path = file.to_str().expect("UTF-8");
    // Nothing passes that is wanted: the connection is silent.
    let line = [
        "capture", "--node", "beta", "--filter", "port 9", "-w", path,
    ];
    let mut asker = network.command(At::Alpha, &line);
    let mut asker = asker.spawn().expect("it runs");
    within(LONG, "the capture begins", || {
        fs::metadata(Path::new(path)).is_ok_and(|file| file.len() > 0)
    });
    let runs = || {
        let status = network.run(At::Beta, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        !status["capture"].is_null()
    };
    assert!(runs());
    let here = network.space(At::Alpha);
    here.ip(&["link", "set", &here.link, "down"]);
    within(2 * LONG, "its end", || !runs());
    here.ip(&["link", "set", &here.link, "up"]);
    let rows = network.run(At::Alpha, &["audit", "list"]);
    assert!(rows.contains("end:reader_gone"), "{rows}");
    asker.kill().expect("our child");
    asker.wait().expect("it ends");
}
