//! Why something in a tunnel failed, for programs and for people.

use serde::{Deserialize, Serialize};

use crate::advised::advise;

/// Why a request failed: a code to branch on, a sentence and a remedy for people.
#[derive(Clone, Debug, Deserialize, Serialize, thiserror::Error)]
#[error("{}: {message}", .code.hop())]
pub struct Failure {
    /// What happened.
    pub code: Code,
    /// The sentence, without the hop.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// What happened, in a closed list.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
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
    /// The remote port broke an open connection off.
    ConnectionReset,
    /// A router said that the address cannot be reached.
    Unreachable,
    /// A rule of the network, or a firewall behind it, forbids it.
    Prohibited,
    /// The tunnel works, the remote machine did not answer.
    RemoteSilent,
    /// Something that has a bound is full.
    TooMany,
    /// The agent takes no more requests.
    Draining,
    /// The configuration was edited while the agent is busy with the older one.
    ConfigurationChanged,
    /// The node's key cannot be replaced.
    KeyNotReplaced,
    /// The request could not be read or does not fit this agent.
    Misunderstood,
}

impl Code {
    /// Names the part of the way that failed.
    pub fn hop(self) -> &'static str {
        match self {
            Self::NameUnknown
            | Self::ResolverSilent
            | Self::NameRefused
            | Self::EndpointUnknown => "DNS",
            Self::NoRoute => "allowed IPs",
            Self::HandshakeUnanswered => "handshake",
            Self::ConnectionRefused | Self::ConnectionReset => "remote port",
            Self::Unreachable | Self::RemoteSilent => "remote machine",
            Self::Prohibited => "policy",
            Self::TooMany | Self::Draining | Self::KeyNotReplaced | Self::Misunderstood => {
                "local agent"
            }
            Self::ConfigurationChanged => "configuration",
        }
    }
}

impl Failure {
    /// Makes a failure.
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Turns it into an error that is printed with its remedy.
    pub fn into_error(self) -> anyhow::Error {
        advise(&self, self.remedy.clone())
    }
}
