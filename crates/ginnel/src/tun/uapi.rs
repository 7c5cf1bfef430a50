//! The text of WireGuard's cross-platform userspace API: requests parsed, answers written.
//!
//! Source: <https://www.wireguard.com/xplatform/>, "Configuration Protocol"; where that is silent
//! wireguard-go is followed. A request is parsed whole before any of it is applied.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use os::tun::Offload;
use wireguard::{KEY, PeerStatus, Prefix, PresharedKey, PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What a client asks for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Request {
    /// Show everything.
    Get,
    /// Show what `wg` has no words for: an operation of our own, for `ginnel status`.
    Report,
    /// Send what passes the interface: an operation of our own, for `ginnel capture`. After the
    /// answer the connection belongs to the capture.
    Capture(Wanted),
    /// Change what is named.
    Set(Box<Settings>),
}

/// What a capture is to have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// Packets inside the tunnel.
    pub(crate) inner: bool,
    /// Datagrams.
    pub(crate) outer: bool,
    /// A filter in the language of `ginnel capture`, in one line.
    pub(crate) filter: Option<String>,
    /// The keys that open the datagrams.
    pub(crate) keys: bool,
    /// It has all after so many packets.
    pub(crate) packets_max: Option<u64>,
    /// The file has at most so many bytes.
    pub(crate) bytes_max: Option<u64>,
}

/// The answer's number: zero, or a negative error number of Linux.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Errno(pub(crate) i32);

/// Changes, in the order in which they are applied: the device's, then each peer's.
#[derive(Default, Eq, PartialEq)]
pub(crate) struct Settings {
    /// `Some(None)` removes the key. Boxed, as moves would leave copies behind.
    pub(crate) private_key: Option<Option<Box<StaticSecret>>>,
    /// Zero chooses a free one.
    pub(crate) listen_port: Option<u16>,
    /// Zero removes the mark.
    pub(crate) fwmark: Option<u32>,
    /// All peers go first.
    pub(crate) replace_peers: bool,
    /// One for each `public_key` line; a key may come twice.
    pub(crate) peers: Vec<PeerSettings>,
}

/// Changes of one peer.
#[derive(Eq, PartialEq)]
pub(crate) struct PeerSettings {
    pub(crate) public_key: PublicKey,
    pub(crate) remove: bool,
    /// A peer that is not there is not made.
    pub(crate) update_only: bool,
    /// 32 zeros remove the key.
    pub(crate) preshared_key: Option<Box<PresharedKey>>,
    pub(crate) endpoint: Option<Endpoint>,
    /// `Some(None)` switches it off.
    pub(crate) persistent_keepalive: Option<Option<NonZeroU16>>,
    /// All allowed IPs go before others are added.
    pub(crate) replace_allowed_ips: bool,
    pub(crate) allowed_ips: Vec<AllowedIp>,
}

/// Where a peer is; a link-local address may name its interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) zone: Option<String>,
}

/// An allowed IP to add, or to take away (a leading `-`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AllowedIp {
    Add(Prefix),
    Remove(Prefix),
}

/// What stands at the beginning of the bytes that a client has sent so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// More must come.
    Partial,
    /// A request of this length, with the empty line that ends it.
    Whole(usize),
    /// Longer than any request may be.
    TooLong,
}

/// Bytes of the longest request: more than 200,000 peers with keys, endpoint and two prefixes.
pub(crate) const REQUEST_MAX: usize = 64 << 20;

/// The operation that [`Request::Report`] is. Others than us close the connection at it.
pub(crate) const REPORT: &str = "ginnel_report=1";

/// The operation that [`Request::Capture`] is; others than us close the connection at it.
const CAPTURE: &str = "ginnel_capture=1";

/// Finds the end of the first request; `seen` bytes were looked at before.
pub(crate) fn frame(bytes: &[u8], seen: usize) -> Framing {
    let start = seen.saturating_sub(1);
    let end = bytes
        .get(start..)
        .and_then(|fresh| fresh.windows(2).position(|pair| pair == b"\n\n"));
    match end {
        Some(at) => Framing::Whole(start + at + 2),
        None if bytes.len() >= REQUEST_MAX => Framing::TooLong,
        // Nobody waits for the end of what is no operation.
        None => other_operation(bytes).map_or(Framing::Partial, Framing::Whole),
    }
}

/// Returns the length of the first line, once it is there, if it is none of the operations.
fn other_operation(bytes: &[u8]) -> Option<usize> {
    let length = bytes
        .iter()
        .take(OPERATION_MAX)
        .position(|byte| *byte == b'\n')?;
    let is_known = OPERATIONS
        .iter()
        .any(|known| known.as_bytes() == &bytes[..length]);
    (!is_known).then_some(length + 1)
}

/// Parses a whole request; `Ok(None)` is an operation that this protocol does not have, after
/// which the connection is of no use.
pub(crate) fn parse(request: &[u8]) -> Result<Option<Request>, Errno> {
    let text = str::from_utf8(request).map_err(|_| Errno::INVALID)?;
    // Not `lines`, which would take `\r` away.
    let mut lines = text.split('\n');
    match lines.next() {
        Some("get=1") if lines.all(str::is_empty) => Ok(Some(Request::Get)),
        Some(REPORT) if lines.all(str::is_empty) => Ok(Some(Request::Report)),
        Some("get=1" | REPORT) => Err(Errno::PROTOCOL),
        Some(CAPTURE) => {
            let wanted = parse_wanted(lines.take_while(|line| !line.is_empty()))?;
            Ok(Some(Request::Capture(wanted)))
        }
        Some("set=1") => {
            let settings = parse_settings(lines.take_while(|line| !line.is_empty()))?;
            Ok(Some(Request::Set(Box::new(settings))))
        }
        Some(_) | None => Ok(None),
    }
}

fn parse_wanted<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Wanted, Errno> {
    let mut wanted = Wanted::default();
    for line in lines {
        let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
        match key {
            "inner" => wanted.inner = parse_true(value)?,
            "outer" => wanted.outer = parse_true(value)?,
            "keys" => wanted.keys = parse_true(value)?,
            "filter" => wanted.filter = Some(value.to_owned()),
            "packets_max" => wanted.packets_max = Some(parse_number(value)?),
            "bytes_max" => wanted.bytes_max = Some(parse_number(value)?),
            _ => return Err(Errno::INVALID),
        }
    }
    Ok(wanted)
}

fn parse_settings<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Settings, Errno> {
    let mut settings = Settings::default();
    for line in lines {
        let (key, value) = line.split_once('=').ok_or(Errno::PROTOCOL)?;
        if key == "public_key" {
            let public_key = PublicKey(*parse_key(value)?);
            settings.peers.push(PeerSettings::new(public_key));
        } else if let Some(peer) = settings.peers.last_mut() {
            parse_peer_line(peer, key, value)?;
        } else {
            parse_device_line(&mut settings, key, value)?;
        }
    }
    Ok(settings)
}

fn parse_device_line(settings: &mut Settings, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "private_key" => {
            let key = parse_key(value)?;
            let absent = *key == [0; KEY];
            let secret = || Box::new(StaticSecret::new(*key));
            settings.private_key = Some((!absent).then(secret));
        }
        "listen_port" => settings.listen_port = Some(parse_number(value)?),
        // An empty mark means none, as in wireguard-go.
        "fwmark" if value.is_empty() => settings.fwmark = Some(0),
        "fwmark" => settings.fwmark = Some(parse_number(value)?),
        "replace_peers" => settings.replace_peers = parse_true(value)?,
        _ => return Err(Errno::INVALID),
    }
    Ok(())
}

fn parse_peer_line(peer: &mut PeerSettings, key: &str, value: &str) -> Result<(), Errno> {
    match key {
        "remove" => peer.remove = parse_true(value)?,
        "update_only" => peer.update_only = parse_true(value)?,
        "preshared_key" => {
            let key = PresharedKey::new(*parse_key(value)?);
            peer.preshared_key = Some(Box::new(key));
        }
        "endpoint" => peer.endpoint = Some(value.parse()?),
        "persistent_keepalive_interval" => {
            peer.persistent_keepalive = Some(NonZeroU16::new(parse_number(value)?));
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = parse_true(value)?;
            // Lines before this one are replaced too.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(value.parse()?),
        "protocol_version" if value == "1" => {}
        _ => return Err(Errno::INVALID),
    }
    Ok(())
}

fn parse_key(value: &str) -> Result<Zeroizing<[u8; KEY]>, Errno> {
    let mut key = Zeroizing::new([0; KEY]);
    let digits = value.as_bytes();
    if digits.len() != 2 * KEY {
        return Err(Errno::INVALID);
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = parse_digit(pair[0])? << 4 | parse_digit(pair[1])?;
    }
    Ok(key)
}

fn parse_digit(digit: u8) -> Result<u8, Errno> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Errno::INVALID),
    }
}

/// Parses digits only: `from_str` alone would take a sign.
fn parse_number<T: FromStr>(value: &str) -> Result<T, Errno> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|_| digits);
    number.ok_or(Errno::INVALID)
}

fn parse_true(value: &str) -> Result<bool, Errno> {
    if value == "true" {
        Ok(true)
    } else {
        Err(Errno::INVALID)
    }
}

impl Wanted {
    /// Writes the request.
    pub(crate) fn emit(&self) -> String {
        let mut text = format!("{CAPTURE}\n");
        let switches = [
            ("inner", self.inner),
            ("outer", self.outer),
            ("keys", self.keys),
        ];
        for (key, _) in switches.iter().filter(|(_, wanted)| *wanted) {
            text += &format!("{key}=true\n");
        }
        let numbers = [
            ("packets_max", self.packets_max),
            ("bytes_max", self.bytes_max),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                text += &format!("{key}={number}\n");
            }
        }
        if let Some(filter) = &self.filter {
            // To the filter every space is as good as another.
            let line = filter.replace(char::is_whitespace, " ");
            text += &format!("filter={line}\n");
        }
        text + "\n"
    }
}

impl PeerSettings {
    fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Settings {{ {} peers, .. }}", self.peers.len())
    }
}

impl FromStr for Endpoint {
    type Err = Errno;

    fn from_str(text: &str) -> Result<Self, Errno> {
        if let Ok(address) = text.parse() {
            return Ok(Self {
                address,
                zone: None,
            });
        }
        // `[fe80::1%eth0]:51820`: the standard library takes only numbers for the zone.
        let (host, port) = text.rsplit_once("]:").ok_or(Errno::INVALID)?;
        let (address, zone) = host
            .strip_prefix('[')
            .and_then(|host| host.split_once('%'))
            .ok_or(Errno::INVALID)?;
        let address: std::net::Ipv6Addr = address.parse().map_err(|_| Errno::INVALID)?;
        if zone.is_empty() {
            return Err(Errno::INVALID);
        }
        Ok(Self {
            address: (address, parse_number(port)?).into(),
            zone: Some(zone.to_owned()),
        })
    }
}

impl FromStr for AllowedIp {
    type Err = Errno;

    fn from_str(text: &str) -> Result<Self, Errno> {
        let (text, remove) = match text.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (address, bits) = text.split_once('/').ok_or(Errno::INVALID)?;
        let address: IpAddr = address.parse().map_err(|_| Errno::INVALID)?;
        let prefix = Prefix::new(address, parse_number(bits)?).ok_or(Errno::INVALID)?;
        Ok(if remove {
            Self::Remove(prefix)
        } else {
            Self::Add(prefix)
        })
    }
}

impl Errno {
    /// Done.
    pub(crate) const NONE: Self = Self(0);
    /// A key, a value or a line that makes no sense (EINVAL).
    pub(crate) const INVALID: Self = Self(-22);
    /// Not lines of `key=value` (EPROTO).
    pub(crate) const PROTOCOL: Self = Self(-71);
    /// One runs already (EBUSY).
    pub(crate) const BUSY: Self = Self(-16);
    /// No more peers fit (ENOSPC).
    pub(crate) const FULL: Self = Self(-28);
    /// An error of the system without a number (EIO).
    pub(crate) const IO: Self = Self(-5);
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        error
            .raw_os_error()
            .map_or(Self::IO, |number| Self(-number))
    }
}

/// What the interface does with large packets, and what it did not deliver.
pub(crate) struct Report<'a> {
    /// What passes the TUN.
    pub(crate) tun: Offload,
    /// Received packets are joined before they are written to the TUN.
    pub(crate) joins: bool,
    /// Datagrams leave in runs.
    pub(crate) sends_runs: bool,
    /// Datagrams arrive in runs; `None` where that could not be tried.
    pub(crate) receives_runs: Option<bool>,
    /// By reason.
    pub(crate) discarded: Vec<(&'a str, u64)>,
    /// Datagrams, by reason.
    pub(crate) not_sent: Vec<(&'a str, u64)>,
    /// Packets that the TUN did not take.
    pub(crate) not_taken: u64,
    /// Whether the capture that runs has keys; `None` when none runs.
    pub(crate) capture_keys: Option<bool>,
}

impl Report<'_> {
    /// Writes the answer to [`Request::Report`].
    pub(crate) fn emit(&self) -> String {
        let word = |yes| if yes { "yes" } else { "no" };
        let mut text = format!(
            "offload_tun={}\noffload_joined={}\noffload_runs_sent={}\noffload_runs_received={}\n",
            self.tun,
            word(self.joins),
            word(self.sends_runs),
            self.receives_runs.map_or("unknown", word),
        );
        for (key, counts) in [("discarded", &self.discarded), ("not_sent", &self.not_sent)] {
            for (reason, count) in counts.iter().filter(|(_, count)| *count > 0) {
                writeln!(text, "{key}={count} {reason}").expect("a string takes everything");
            }
        }
        writeln!(text, "not_taken={}", self.not_taken).expect("a string takes everything");
        if let Some(keys) = self.capture_keys {
            let what = if keys { "with keys" } else { "without keys" };
            writeln!(text, "capture={what}").expect("a string takes everything");
        }
        text + "errno=0\n\n"
    }
}

/// What the answer to `get=1` says about the device.
pub(crate) struct DeviceStatus<'a> {
    pub(crate) private_key: Option<&'a StaticSecret>,
    /// Zero: none.
    pub(crate) listen_port: u16,
    /// Zero: none.
    pub(crate) fwmark: u32,
}

/// The answer to `get=1` while it is written. It holds the private key.
pub(crate) struct Status(Answer);

impl Status {
    /// Begins with the device.
    pub(crate) fn begin(device: &DeviceStatus<'_>) -> Self {
        let mut text = Answer(Zeroizing::new(String::with_capacity(4096)));
        if let Some(key) = device.private_key {
            text.line("private_key", Hex(key.expose()));
        }
        if device.listen_port != 0 {
            text.line("listen_port", device.listen_port);
        }
        if device.fwmark != 0 {
            text.line("fwmark", device.fwmark);
        }
        Self(text)
    }

    /// Adds a peer.
    pub(crate) fn push(&mut self, peer: &PeerStatus<'_>) {
        emit_peer(&mut self.0, peer);
    }

    /// Ends the answer.
    pub(crate) fn finish(mut self) -> Zeroizing<String> {
        self.0.line("errno", 0);
        self.0.0.push('\n');
        self.0.0
    }
}

fn emit_peer(text: &mut Answer, peer: &PeerStatus<'_>) {
    text.line("public_key", Hex(&peer.public_key.0));
    let preshared = peer.preshared_key.map_or(&[0; KEY], PresharedKey::expose);
    text.line("preshared_key", Hex(preshared));
    text.line("protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        text.line("endpoint", endpoint);
    }
    let since_epoch = peer
        .last_handshake_wall
        .unwrap_or(UNIX_EPOCH)
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    text.line("last_handshake_time_sec", since_epoch.as_secs());
    text.line("last_handshake_time_nsec", since_epoch.subsec_nanos());
    text.line("tx_bytes", peer.traffic.sent_bytes);
    text.line("rx_bytes", peer.traffic.received_bytes);
    let seconds = peer.persistent_keepalive.map_or(0, NonZeroU16::get);
    text.line("persistent_keepalive_interval", seconds);
    for prefix in peer.allowed_ips {
        let (address, bits) = (prefix.address(), prefix.bits());
        text.line("allowed_ip", format_args!("{address}/{bits}"));
    }
}

/// Writes the answer to a request that was applied or refused.
pub(crate) fn emit_errno(errno: Errno) -> String {
    format!("errno={}\n\n", errno.0)
}

/// Text that holds secrets: it never moves to a larger buffer without erasing the smaller one.
struct Answer(Zeroizing<String>);

impl Answer {
    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        if self.0.capacity() - self.0.len() < LINE_MAX {
            let mut larger = Zeroizing::new(String::with_capacity(2 * self.0.capacity()));
            larger.push_str(&self.0);
            self.0 = larger;
        }
        writeln!(self.0, "{key}={value}").expect("a string takes everything");
    }
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8; KEY]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

const OPERATIONS: &[&str] = &["get=1", "set=1", REPORT, CAPTURE];
/// Longer than any operation.
const OPERATION_MAX: usize = 64;
/// Longer than any line of an answer.
const LINE_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const KEY_A: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    fn set(lines: &str) -> Result<Settings, Errno> {
        match parse(format!("set=1\n{lines}\n").as_bytes())? {
            Some(Request::Set(settings)) => Ok(*settings),
            other => panic!("not a set: {other:?}"),
        }
    }

    #[track_caller]
    fn check_refused(lines: &str, expected: Errno) {
        assert_eq!(set(lines).map(drop), Err(expected), "{lines}");
    }

    #[test]
    fn a_capture_is_asked_for_by_what_it_is_to_have() {
        let wanted = Wanted {
            inner: true,
            outer: true,
            filter: Some("tcp port 22\n\nor udp".to_owned()),
            keys: true,
            packets_max: Some(9),
            bytes_max: Some(u64::MAX),
        };
        let text = wanted.emit();
        assert_eq!(
            frame(text.as_bytes(), 0),
            Framing::Whole(text.len()),
            "{text}"
        );
        let parsed = parse(text.as_bytes());
        let filter = Some("tcp port 22  or udp".to_owned());
        let expected = Wanted { filter, ..wanted };
        assert_eq!(parsed, Ok(Some(Request::Capture(expected))));
        let nothing = Wanted::default();
        let parsed = parse(nothing.emit().as_bytes());
        assert_eq!(parsed, Ok(Some(Request::Capture(nothing))));
        for line in ["inner=yes", "packets_max=-1", "duration=1"] {
            let request = format!("{CAPTURE}\n{line}\n\n");
            assert_eq!(parse(request.as_bytes()), Err(Errno::INVALID), "{line}");
        }
    }

    #[test]
    fn a_whole_configuration_is_taken_as_written() {
        let settings = set(&format!(
            "private_key={KEY_A}\nlisten_port=12912\nfwmark=7\nreplace_peers=true\n\
             public_key={KEY_A}\nupdate_only=true\npreshared_key={KEY_A}\n\
             endpoint=[abcd:23::33%2]:51820\npersistent_keepalive_interval=65535\n\
             replace_allowed_ips=true\nallowed_ip=192.168.4.4/24\nallowed_ip=-fd00::/8\n\
             protocol_version=1\npublic_key={KEY_A}\nremove=true\n"
        ))
        .unwrap();
        assert!(settings.private_key.is_some_and(|key| key.is_some()));
        assert_eq!(settings.listen_port, Some(12912));
        assert_eq!(settings.fwmark, Some(7));
        assert!(settings.replace_peers);
        let [first, second] = &settings.peers[..] else {
            panic!("two peers")
        };
        assert!(first.update_only && first.replace_allowed_ips && !first.remove);
        assert!(first.preshared_key.is_some());
        let endpoint = first.endpoint.as_ref().unwrap();
        assert_eq!(endpoint.address.to_string(), "[abcd:23::33%2]:51820");
        assert_eq!(first.persistent_keepalive, Some(NonZeroU16::new(65535)));
        let v4 = Prefix::new("192.168.4.0".parse().unwrap(), 24).unwrap();
        let v6 = Prefix::new("fd00::".parse().unwrap(), 8).unwrap();
        assert_eq!(
            first.allowed_ips,
            [AllowedIp::Add(v4), AllowedIp::Remove(v6)]
        );
        assert!(second.remove);
    }

    #[test]
    fn zeros_and_nothing_switch_off() {
        let zeros = "0".repeat(64);
        let settings = set(&format!("private_key={zeros}\nfwmark=\nlisten_port=0\n")).unwrap();
        assert!(settings.private_key.is_some_and(|key| key.is_none()));
        assert_eq!(settings.fwmark, Some(0));
        let settings = set(&format!(
            "public_key={KEY_A}\npersistent_keepalive_interval=0\n"
        ));
        assert_eq!(settings.unwrap().peers[0].persistent_keepalive, Some(None));
    }

    #[test]
    fn what_makes_no_sense_is_invalid_and_what_is_no_line_breaks_the_protocol() {
        for lines in [
            "listen_port=65536",
            "listen_port=x",
            "listen_port=",
            "listen_port=+5",
            "listen_port=-1",
            "fwmark=4294967296",
            "replace_peers=false",
            "private_key=00",
            "foo=1",
            "allowed_ip=10.0.0.0/8",
        ] {
            check_refused(&format!("{lines}\n"), Errno::INVALID);
        }
        let long = "0".repeat(65);
        let odd = "0".repeat(63) + "g";
        let keys = [
            format!("public_key={long}\n"),
            format!("public_key={odd}\n"),
        ];
        for lines in keys {
            check_refused(&lines, Errno::INVALID);
        }
        for line in [
            "allowed_ip=10.0.0.0/33",
            "allowed_ip=10.0.0.0",
            "allowed_ip=10.0.0.0/+8",
            "allowed_ip=--10.0.0.0/8",
            "endpoint=10.0.0.1",
            "endpoint=host:1",
            "endpoint=[fe80::1%]:1",
            "endpoint=[fe80::1%eth0]:65536",
            "persistent_keepalive_interval=65536",
            "remove=1",
            "protocol_version=2",
            "listen_port=1",
        ] {
            check_refused(&format!("public_key={KEY_A}\n{line}\n"), Errno::INVALID);
        }
        check_refused("listen_port\n", Errno::PROTOCOL);
        assert_eq!(parse(b"set=1\n\xff=1\n\n").map(drop), Err(Errno::INVALID));
        assert_eq!(parse(b"get=1\nx\n\n").map(drop), Err(Errno::PROTOCOL));
        assert_eq!(
            parse(b"set=1\nfwmark=5\r\n\n").map(drop),
            Err(Errno::INVALID)
        );
        assert_eq!(parse(b"set=1\r\n\n"), Ok(None));
        assert_eq!(parse(b"get=2\n\n"), Ok(None));
        assert_eq!(parse(b""), Ok(None));
    }

    #[test]
    fn a_link_local_endpoint_names_its_interface() {
        let endpoint: Endpoint = "[fe80::1%eth0]:51820".parse().unwrap();
        assert_eq!(endpoint.zone.as_deref(), Some("eth0"));
        assert_eq!(endpoint.address, "[fe80::1]:51820".parse().unwrap());
    }

    #[test]
    fn a_request_ends_at_the_first_empty_line_however_it_is_cut() {
        let bytes = b"get=1\n\nset=1\nlisten_port=5\n\n";
        assert_eq!(frame(bytes, 0), Framing::Whole(7));
        for cut in 0..7 {
            assert_eq!(frame(&bytes[..cut], 0), Framing::Partial);
            assert_eq!(frame(bytes, cut), Framing::Whole(7), "seen {cut}");
        }
        assert_eq!(frame(&vec![b'x'; REQUEST_MAX], 0), Framing::TooLong);
        assert_eq!(frame(b"get=2\nx", 0), Framing::Whole(6));
        assert_eq!(frame(b"\n", 0), Framing::Whole(1));
        assert_eq!(frame(b"get=2", 0), Framing::Partial);
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let seed = format!(
            "set=1\nprivate_key={KEY_A}\npublic_key={KEY_A}\nendpoint=[fe80::1%e]:1\n\
             allowed_ip=-10.0.0.0/8\n\n"
        );
        for _ in 0..20_000 {
            let mut bytes = seed.clone().into_bytes();
            for _ in 0..4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let place = usize::try_from(state % u64::try_from(bytes.len()).unwrap()).unwrap();
                bytes[place] = state.to_le_bytes()[7];
            }
            if let Framing::Whole(length) = frame(&bytes, 0) {
                let _parsed = parse(&bytes[..length]);
            }
        }
    }

    #[test]
    fn the_status_says_what_wg_reads() {
        let secret = StaticSecret::new([7; KEY]);
        let device = DeviceStatus {
            private_key: Some(&secret),
            listen_port: 51820,
            fwmark: 0,
        };
        let mut world = wireguard::Device::new(
            os::clock::Clock::start().now(),
            UNIX_EPOCH,
            Box::new(tunnel::OsRandom),
        );
        let now = os::clock::Clock::start().now();
        let id = world.add_peer(now, PublicKey([0x12; KEY])).unwrap();
        world.set_endpoint(id, Some("[::1]:7".parse().unwrap()));
        let allowed: BTreeSet<_> = [Prefix::new("10.0.0.0".parse().unwrap(), 8).unwrap()].into();
        let mut status = world.status(id).unwrap();
        status.allowed_ips = &allowed;
        status.last_handshake_wall = Some(UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5));
        let mut text = Status::begin(&device);
        text.push(&status);
        let text = text.finish();
        let mut key = [7; KEY];
        (key[0], key[31]) = (0, 0x47);
        let expected = format!(
            "private_key={}\nlisten_port=51820\npublic_key={}\npreshared_key={}\n\
             protocol_version=1\nendpoint=[::1]:7\nlast_handshake_time_sec=1700000000\n\
             last_handshake_time_nsec=5\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n\
             allowed_ip=10.0.0.0/8\nerrno=0\n\n",
            Hex(&key),
            "12".repeat(32),
            "0".repeat(64)
        );
        assert_eq!(*text, expected);
    }
}
