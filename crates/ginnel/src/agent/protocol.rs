//! What commands and the agent say to each other over the Unix socket.
//!
//! ```text
//! one connection, one request:
//!   command: u32 length (big endian) | JSON Envelope
//!   agent:   u32 length              | JSON Answer        (Ping: one for each echo, then Done)
//! after Dial     the connection is a byte pipe, closed in each direction by itself
//! after Udp      frames: u32 length | datagram header of RFC 1928, section 7 | payload
//! ```

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

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
    /// What goes on?
    Status,
    /// Take no more requests, exit when the open connections have ended.
    Drain,
}

/// A record type that can be asked for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
pub(crate) enum RecordKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    #[serde(rename = "AAAA")]
    Aaaa,
    /// Texts.
    #[serde(rename = "TXT")]
    Txt,
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
    },
    /// To `Udp`: frames begin behind this message.
    Relaying,
    /// To `Resolve`.
    Records(Vec<Record>),
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
    },
    /// To `Ping`: there will be no more.
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

/// One record.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// The name that has it, behind aliases and search domains.
    pub(crate) name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) kind: RecordKind,
    /// Seconds for which it may be kept.
    pub(crate) ttl: u32,
    /// The address or text.
    pub(crate) value: String,
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
    /// Seconds since it started.
    pub(crate) uptime_seconds: u64,
    /// Whether it takes no more requests.
    pub(crate) draining: bool,
    /// Open connections of commands, without this one.
    pub(crate) connections: usize,
    /// How it stands with the control plane; `None` with a plain configuration.
    #[serde(default)]
    pub(crate) control: Option<Control>,
    /// The node: addresses, peers, discards, problems.
    pub(crate) node: model::status::Status,
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

/// Why a request failed: a code to branch on, a sentence and a remedy for people.
#[derive(Clone, Debug, Deserialize, Serialize, thiserror::Error)]
#[error("{}: {message}", .code.hop())]
pub(crate) struct Failure {
    /// What happened.
    pub(crate) code: Code,
    /// The sentence, without the hop.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

/// What happened, in a closed list.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// The name does not exist, or has no address.
    NameUnknown,
    /// The resolver did not answer, or there is none.
    ResolverSilent,
    /// The resolver answers, but not for this name.
    NameRefused,
    /// The name of a peer's endpoint has no address.
    EndpointUnknown,
    /// No peer's allowed IPs hold the address.
    NoRoute,
    /// The peer did not answer our handshake initiation.
    HandshakeUnanswered,
    /// The remote port refused.
    ConnectionRefused,
    /// A router said that the address cannot be reached.
    Unreachable,
    /// The tunnel works, the remote machine did not answer.
    RemoteSilent,
    /// Something that has a bound is full.
    TooMany,
    /// The agent takes no more requests.
    Draining,
    /// The configuration was edited while the agent is busy with the older one.
    ConfigurationChanged,
    /// The request could not be read or does not fit this agent.
    Misunderstood,
}

impl Code {
    /// Names the part of the way that failed.
    pub(crate) fn hop(self) -> &'static str {
        match self {
            Self::NameUnknown
            | Self::ResolverSilent
            | Self::NameRefused
            | Self::EndpointUnknown => "DNS",
            Self::NoRoute => "allowed IPs",
            Self::HandshakeUnanswered => "handshake",
            Self::ConnectionRefused => "remote port",
            Self::Unreachable | Self::RemoteSilent => "remote machine",
            Self::TooMany | Self::Draining | Self::Misunderstood => "local agent",
            Self::ConfigurationChanged => "configuration",
        }
    }
}

impl Failure {
    /// Makes a failure.
    pub(crate) fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Turns it into an error that the top prints with its remedy.
    pub(crate) fn into_error(self) -> anyhow::Error {
        crate::remedy::advise(&self, self.remedy.clone())
    }
}
