//! One case through one tunnel.

use std::{
    fmt,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::world::{CLIENT, SERVER, TARGET, World, inside};

/// What is sent through the tunnel.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Case {
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    Udp64,
    Udp1372,
    PingPong,
    PingPongLoaded,
    /// Beside a stream of `PACED`, which every program can carry.
    PingPongPaced,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    case: Case,
    /// Gb/s, thousand packets per second, or the median round trip in µs.
    pub(super) value: f64,
    /// Gbit, thousand packets or round trips per second of CPU of both tunnels.
    pub(super) per_cpu: f64,
    /// Retransmits of TCP, thousand packets per second of UDP that the program at the end read, or
    /// the 99th percentile of round trips in µs.
    pub(super) beside: f64,
    /// Gb/s of the stream that ran meanwhile.
    pub(super) load: Option<f64>,
    /// MB.
    pub(super) memory: f64,
}

impl Case {
    pub(super) const ALL: [Self; 9] = [
        Self::Tcp1,
        Self::Tcp1Reverse,
        Self::Tcp4,
        Self::Tcp4Reverse,
        Self::Udp64,
        Self::Udp1372,
        Self::PingPong,
        Self::PingPongLoaded,
        Self::PingPongPaced,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp1Reverse => "tcp1-reverse",
            Self::Tcp4 => "tcp4",
            Self::Tcp4Reverse => "tcp4-reverse",
            Self::Udp64 => "udp64",
            Self::Udp1372 => "udp1372",
            Self::PingPong => "pingpong",
            Self::PingPongLoaded => "pingpong-loaded",
            Self::PingPongPaced => "pingpong-paced",
        }
    }

    /// Names the three figures of this case.
    pub(super) fn units(self) -> [&'static str; 3] {
        match self {
            Self::Tcp1 | Self::Tcp1Reverse | Self::Tcp4 | Self::Tcp4Reverse => {
                ["Gb/s", "Gbit per CPU-s", "retransmits"]
            }
            Self::Udp64 | Self::Udp1372 => ["kpps passed", "kpackets per CPU-s", "kpps read"],
            Self::PingPong => ["µs p50", "k round trips per CPU-s", "µs p99"],
            Self::PingPongLoaded | Self::PingPongPaced => {
                ["µs p50", "Gbit of the stream per CPU-s", "µs p99"]
            }
        }
    }

    /// Whether less is better.
    pub(super) fn is_latency(self) -> bool {
        matches!(
            self,
            Self::PingPong | Self::PingPongLoaded | Self::PingPongPaced
        )
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|case| case.name() == name);
        found.with_context(|| format!("`{name}` is not a case"))
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [value, per_cpu, beside] = self.case.units();
        let name = self.case.name();
        write!(
            f,
            "{name}: {:.2} {value}, {:.2} {per_cpu}, ",
            self.value, self.per_cpu
        )?;
        write!(f, "{:.1} {beside}, {:.1} MB", self.beside, self.memory)?;
        match self.load {
            Some(load) => write!(f, ", {load:.2} Gb/s meanwhile"),
            None => Ok(()),
        }
    }
}

/// Runs one case for about `seconds`.
pub(super) fn run(world: &World, case: Case, seconds: u32) -> Result<Measured> {
    let before = world.usage()?.cpu;
    let to = world.reached_at;
    let mut load = None;
    let (value, work, beside) = match case {
        Case::Tcp1 => tcp(to, seconds, &[])?,
        Case::Tcp1Reverse => tcp(to, seconds, &["-R"])?,
        Case::Tcp4 => tcp(to, seconds, &["-P", "4"])?,
        Case::Tcp4Reverse => tcp(to, seconds, &["-P", "4", "-R"])?,
        Case::Udp64 => udp(seconds, "64")?,
        Case::Udp1372 => udp(seconds, "1372")?,
        Case::PingPong => pingpong(seconds)?,
        Case::PingPongLoaded | Case::PingPongPaced => {
            let paced: &[&str] = &["-b", PACED];
            let more = if case == Case::PingPongPaced {
                paced
            } else {
                &[]
            };
            let (median, high, stream) = loaded(seconds, more)?;
            load = Some(stream.0);
            (median, stream.1, high)
        }
    };
    let after = world.usage()?;
    Ok(Measured {
        case,
        value,
        per_cpu: work / (after.cpu - before).max(0.01),
        beside,
        load,
        memory: after.memory,
    })
}

/// Starts a server for one client, because a server that a flood has confused ends.
fn serve() -> Result<Running> {
    let mut server = inside(SERVER, &["iperf3", "-s", "-1", "-B", TARGET]);
    server.stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running(server.spawn().context("start iperf3")?);
    thread::sleep(Duration::from_millis(300));
    Ok(server)
}

/// A program that ends with what it was started for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn iperf(to: &str, seconds: u32, more: &[&str]) -> Result<Value> {
    let _server = serve()?;
    let seconds = seconds.to_string();
    let words = ["iperf3", "-c", to, "-t", &seconds, "-J"];
    let output = inside(CLIENT, &words).args(more).output();
    let output = output.context("start iperf3")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("read iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    Ok(report)
}

fn number(report: &Value, path: &str) -> Result<f64> {
    let found = report.pointer(path).and_then(Value::as_f64);
    found.with_context(|| format!("iperf3 reports no {path}"))
}

fn tcp(to: &str, seconds: u32, more: &[&str]) -> Result<(f64, f64, f64)> {
    let report = iperf(to, seconds, &[&["-C", "cubic"], more].concat())?;
    let received = number(&report, "/end/sum_received/bits_per_second")?;
    let bytes = number(&report, "/end/sum_received/bytes")?;
    let retransmits = number(&report, "/end/sum_sent/retransmits").unwrap_or(0.0);
    Ok((received / 1e9, bytes * 8.0 / 1e9, retransmits))
}

/// Counts what the tunnel brought to iperf3's socket, and what iperf3 read before the buffer of
/// that socket, which is no part of the tunnel, was full.
fn udp(seconds: u32, length: &str) -> Result<(f64, f64, f64)> {
    let before = Overflows::read()?;
    let report = iperf(TARGET, seconds, &["-u", "-b", "0", "-l", length])?;
    let overflows = Overflows::read()?;
    let sent = number(&report, "/end/sum/packets")?;
    let lost = number(&report, "/end/sum/lost_packets")?;
    let time = number(&report, "/end/sum/seconds")?;
    let read = sent - lost;
    let passed = read + overflows.since(before);
    Ok((passed / time / 1e3, passed / 1e3, read / time / 1e3))
}

/// Datagrams for which sockets of the server's namespace had no room.
#[derive(Clone, Copy, Debug)]
struct Overflows {
    /// Of every socket that there was.
    all: u64,
    /// Of those that are open: of the tunnel's, while iperf3 does not run.
    open: u64,
}

impl Overflows {
    fn read() -> Result<Self> {
        let output = inside(SERVER, &["cat", "/proc/net/snmp", "/proc/net/udp"]).output()?;
        ensure!(output.status.success(), "cat failed");
        Self::parse(&String::from_utf8(output.stdout)?).context("read what sockets dropped")
    }

    /// Reads the table of counters and then that of sockets (`proc(5)`).
    fn parse(text: &str) -> Option<Self> {
        let mut counters = text.lines().filter(|line| line.starts_with("Udp: "));
        let (names, values) = (counters.next()?, counters.next()?);
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, all) = pairs.find(|(name, _)| *name == "RcvbufErrors")?;
        let mut sockets = text
            .lines()
            .skip_while(|line| !line.contains("local_address"));
        let columns = sockets.next()?;
        debug_assert!(columns.trim_end().ends_with("drops"));
        let drops = |line: &str| line.split_whitespace().last()?.parse::<u64>().ok();
        let open = sockets.map(drops).sum::<Option<u64>>()?;
        let all = all.parse().ok()?;
        Some(Self { all, open })
    }

    /// Returns how many were dropped at sockets that have been closed meanwhile.
    fn since(self, before: Self) -> f64 {
        let closed = (self.all - before.all).saturating_sub(self.open.saturating_sub(before.open));
        // Counts of a bench are far below 2^53.
        closed as f64
    }
}

fn pingpong(seconds: u32) -> Result<(f64, f64, f64)> {
    let program = std::env::current_exe().context("find our own program")?;
    let program = program.to_str().context("a path in UTF-8")?;
    let address = format!("{TARGET}:7007");
    let mut echo = inside(SERVER, &[program, "bench-echo", &address]);
    let _echo = Running(echo.spawn().context("start the echo server")?);
    thread::sleep(Duration::from_millis(200));
    let seconds = seconds.to_string();
    let output = inside(CLIENT, &[program, "bench-ping", &address, &seconds]).output();
    let output = output.context("start the ping-pong")?;
    ensure!(output.status.success(), "the ping-pong failed");
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
    let &[count, median, high] = figures.as_slice() else {
        bail!("the ping-pong printed `{text}`");
    };
    Ok((median, count / 1e3, high))
}

/// Returns the median and the 99th percentile of round trips beside one TCP stream, and the Gb/s
/// and gigabits of that.
fn loaded(seconds: u32, more: &'static [&str]) -> Result<(f64, f64, (f64, f64))> {
    let stream = thread::spawn(move || tcp(TARGET, seconds + 1, more));
    thread::sleep(Duration::from_millis(800));
    let (median, _, high) = pingpong(seconds)?;
    let stream = stream.join().ok().context("the stream failed")?;
    let (rate, gigabits, _) = stream.context("the stream beside")?;
    Ok((median, high, (rate, gigabits)))
}

/// What iperf3 takes for 0.25 Gb/s.
const PACED: &str = "250M";
