//! What commands and the agent say to each other over the Unix socket.
//!
//! ```text
//! one connection, one request:
//!   command: u32 length (big endian) | JSON Envelope
//!   agent:   u32 length              | JSON Answer        (Ping, Trace: one each, then Done)
//! after Dial     the connection is a byte pipe, closed in each direction by itself; Ending asks
//!                whether that was a reset, which a Unix socket cannot tell
//! after Capture  blocks of a pcapng file until the agent closes; the command closes its direction
//!                when it has had enough
//! after Events   a JSON Occurrence a line until the command closes
//! after Udp      frames: u32 length | datagram header of RFC 1928, section 7 | payload
//! ```

use std::net::{IpAddr, SocketAddr};

use model::whois::Whois;
use serde::{Deserialize, Serialize};
pub(crate) use tunnel::{Code, Failure, Record, RecordKind};

/// Grows when an older agent could misread a request.
pub(crate) const PROTOCOL: u16 = 1;

/// The longest frame with a datagram: the largest UDP payload and the longest header.
pub(crate) const FRAME_MAX: usize = 65_535 + crate::socks::MESSAGE_MAX;

/// A request and who sends it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Envelope {
    /// [`PROTOCOL`] of the command.
    pub(crate) protocol: u16,
    /// Version of the command's program.
    pub(crate) version: String,
    /// Digest of the profile as the command sees it: another one means an edited configuration.
    pub(crate) fingerprint: String,
    /// What is asked for.
    pub(crate) request: Request,
}

/// What a command asks for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Are you there, and which version are you?
    Hello,
    /// Open a TCP connection and become its byte pipe.
    Dial {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// How long name, handshake and connection may take together.
        timeout_ms: u64,
    },
    /// Relay datagrams, framed.
    Udp,
    /// Look a name up.
    Resolve {
        /// The name.
        name: String,
        /// Which records.
        kinds: Vec<RecordKind>,
    },
    /// Send echo requests until `count`, or until the command goes away.
    Ping {
        /// Name or address.
        host: String,
        /// How many; `None` has no end.
        count: Option<u16>,
        /// Time between requests.
        interval_ms: u64,
        /// Payload in bytes.
        size: u16,
    },
    /// Ask every hop on the way to a host.
    Trace(Trace),
    /// Write what passes the tunnel as a capture file.
    Capture(Capture),
    /// Tell everything about one WireGuard peer.
    Peer {
        /// Its name or public key; or a name or address that is reached through it.
        name: String,
    },
    /// Tell whose an address is.
    Whois(Sought),
    /// Tell what happens from now on.
    Events,
    /// How did that connection of `Dial` end, whose pipe has ended?
    Ending {
        /// Its number in `Connected`.
        connection: u64,
    },
    /// What goes on?
    Status,
    /// Take no more requests, exit when the open connections have ended.
    Drain,
}

/// Whom to trace, and how often.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Trace {
    /// Name or address.
    pub(crate) host: String,
    /// TCP port to open connections to.
    pub(crate) port: Option<u16>,
    /// How often each hop is asked.
    pub(crate) count: u16,
    /// Time between two rounds.
    pub(crate) interval_ms: u64,
}

/// Whom a command asks for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sought {
    /// Who has this address.
    Address(IpAddr),
    /// Who is at the other end of a connection to a program of this machine.
    Connection {
        /// The other end, as the program sees it.
        client: SocketAddr,
        /// The program's own end.
        server: SocketAddr,
    },
}

/// Which packets a capture shall have, and when it ends by itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Capture {
    /// Packets inside the tunnel.
    pub(crate) inner: bool,
    /// Datagrams.
    pub(crate) outer: bool,
    /// An expression of `packet::pcap_filter`; `None` for all.
    pub(crate) filter: Option<String>,
    /// Keys that open the datagrams.
    pub(crate) keys: bool,
    /// After so long.
    pub(crate) duration_ms: Option<u64>,
    /// After so many packets.
    pub(crate) packets_max: Option<u64>,
    /// Before the file is longer.
    pub(crate) bytes_max: Option<u64>,
}

/// A peer, and how the way to it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ShownPeer {
    /// What the node knows of it.
    #[serde(flatten)]
    pub(crate) details: model::status::PeerDetails,
    /// What carries its datagrams; an older agent does not say, and has UDP only.
    #[serde(default = "udp")]
    pub(crate) transport: String,
    /// What a few echo requests found; `None` without a session, or when nobody is known there who
    /// would answer.
    #[serde(default)]
    pub(crate) path: Option<Path>,
}

/// What echo requests through a tunnel found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Path {
    /// Who was asked.
    pub(crate) target: IpAddr,
    /// Requests.
    pub(crate) sent: u64,
    /// Answers.
    pub(crate) answered: u64,
    /// How long answers took; `None` without any.
    pub(crate) round_trip_us: Option<RoundTrips>,
    /// A packet of so many bytes, the largest that is tried, was answered; `None` if not.
    pub(crate) carries_bytes: Option<u16>,
}

/// How long answers took, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct RoundTrips {
    pub(crate) min: u64,
    pub(crate) avg: u64,
    pub(crate) max: u64,
}

pub(crate) fn udp() -> String {
    "udp".to_owned()
}

/// What the agent says.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To `Hello`.
    Hello {
        /// Version of the agent's program.
        version: String,
        /// Its process id.
        pid: u32,
    },
    /// To `Dial`: the pipe begins behind this message.
    Connected {
        /// Our end inside the tunnel.
        local: SocketAddr,
        /// The other end, its name resolved.
        remote: SocketAddr,
        /// Names it to `Ending`; an older agent gives none.
        #[serde(default)]
        connection: Option<u64>,
    },
    /// To `Ending`: what broke the connection off; `None` when both sides have finished.
    Ended(Option<Failure>),
    /// To `Udp`: frames begin behind this message.
    Relaying,
    /// To `Resolve`.
    Records(Vec<Record>),
    /// To `Peer`.
    Peer(Box<ShownPeer>),
    /// To `Whois`; `None` when it is nobody in the organisation.
    Whois(Option<Whois>),
    /// To `Events`: an [`Occurrence`] a line begins behind this message.
    Following,
    /// To `Capture`: the file begins behind this message.
    Capturing,
    /// To `Ping`: whom the name means.
    Pinging(IpAddr),
    /// To `Ping`: one answer, or that there was none in time.
    Echo {
        /// Of the request, from 1.
        sequence: u16,
        /// `None` when nothing came in time.
        round_trip_us: Option<u64>,
        /// What a router said instead of an answer.
        error: Option<String>,
        /// Whether it said that it is forbidden; an older agent does not tell.
        #[serde(default)]
        prohibited: bool,
    },
    /// To `Trace`: where the way leads.
    Tracing(Way),
    /// To `Trace`: what one request found.
    Traced(Traced),
    /// To `Ping` and `Trace`: there will be no more.
    Done,
    /// To `Status`.
    Status(Box<Status>),
    /// To `Drain`: how many connections are still open.
    Draining {
        /// The number.
        connections: usize,
    },
    /// The agent is older, or its configuration was edited; it has nothing to do and exits now.
    Retired,
    /// The request failed.
    Failed(Failure),
}

/// Whom a traced name means, and who is on the way.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Way {
    /// Whom the name means.
    pub(crate) address: IpAddr,
    /// Address of the gateway inside the network; `None` with a plain configuration.
    pub(crate) gateway: Option<IpAddr>,
    /// Name of the WireGuard peer through which packets go.
    pub(crate) peer: Option<model::name::Label>,
    /// Where it is.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// What was asked, and what came back.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Traced {
    /// A hop inside the tunnel, by an echo request.
    Hop(Probe),
    /// The port, by a connection.
    Port(Probe),
}

/// What one request found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Probe {
    /// Its hop limit; zero for a port.
    pub(crate) hop: u8,
    /// Of the round, from 1.
    pub(crate) sequence: u16,
    /// Who answered; `None` when nobody did in time.
    pub(crate) from: Option<IpAddr>,
    /// How long that took.
    pub(crate) round_trip_us: Option<u64>,
    /// What it said.
    pub(crate) outcome: Outcome,
}

/// What an answer says.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The request had to go on, and its hop limit was reached.
    TimeExceeded,
    /// It is there; a port: it accepts connections.
    Reply,
    /// Nothing came in time.
    Silent,
    /// A rule of the network forbids it.
    Prohibited,
    /// There is nobody.
    Unreachable,
    /// Nothing listens at the port.
    Refused,
}

impl Outcome {
    /// Tells whether requests that may go further would find nothing else.
    pub(crate) fn is_end(self) -> bool {
        match self {
            Self::Reply | Self::Prohibited | Self::Unreachable | Self::Refused => true,
            Self::TimeExceeded | Self::Silent => false,
        }
    }
}

/// Something that happened, and when.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Occurrence {
    /// The time of day (RFC 3339).
    pub(crate) time: String,
    /// What.
    #[serde(flatten)]
    pub(crate) event: model::event::Event,
}

/// What goes on in an agent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Status {
    /// Version of the agent's program.
    pub(crate) version: String,
    /// Its process id.
    pub(crate) pid: u32,
    /// The profile, for people.
    pub(crate) profile: String,
    /// Name of the network interface; `None` in user mode.
    #[serde(default)]
    pub(crate) interface: Option<String>,
    /// What passes as one; `None` from an older agent.
    #[serde(default)]
    pub(crate) offload: Option<model::status::Offload>,
    /// Seconds since it started.
    pub(crate) uptime_seconds: u64,
    /// Whether it takes no more requests.
    pub(crate) draining: bool,
    /// Open connections of commands, without this one.
    pub(crate) connections: usize,
    /// The capture that runs.
    #[serde(default)]
    pub(crate) capture: Option<Capturing>,
    /// Whether a capture gave the node's key away that is still in use.
    #[serde(default)]
    pub(crate) key_exposed: bool,
    /// How it stands with the control plane; `None` with a plain configuration.
    #[serde(default)]
    pub(crate) control: Option<Control>,
    /// TCP connections in user mode; `None` from an older agent.
    #[serde(default)]
    pub(crate) tcp: Option<Vec<model::status::Connection>>,
    /// The sites behind the node.
    #[serde(default)]
    pub(crate) sites: Vec<model::status::Site>,
    /// Which addresses of other sites are not routed into the interface, and why.
    #[serde(default)]
    pub(crate) site_conflicts: Vec<String>,
    /// The node: addresses, peers, discards, problems.
    pub(crate) node: model::status::Status,
}

/// A capture that runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Capturing {
    /// Whether it writes keys.
    pub(crate) keys: bool,
    /// Who asked for it from elsewhere; `None` for a command at this machine.
    #[serde(default)]
    pub(crate) by: Option<String>,
    /// The filter of one from elsewhere.
    #[serde(default)]
    pub(crate) filter: Option<String>,
}

/// How it stands with the control plane. The serial of the map is the node's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Control {
    /// Where it is.
    pub(crate) url: String,
    /// Whether it answered last; `None` before its first answer.
    pub(crate) reached: Option<bool>,
    /// For how long it has not answered.
    pub(crate) away_seconds: Option<u64>,
    /// Why it was not reached last.
    pub(crate) error: Option<String>,
}
