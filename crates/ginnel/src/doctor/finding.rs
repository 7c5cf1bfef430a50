//! What can be wrong: a closed list, each with why and what to do.

use serde::Serialize;
use tunnel::{Code, Failure};

use crate::remedy;

/// What is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Finding {
    /// For programs; stable.
    pub(super) code: Cause,
    /// Why, in one sentence.
    pub(super) message: String,
    /// What to do about it.
    pub(super) remedy: String,
}

/// Everything that can be wrong, in the order of the way.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    /// This machine belongs to no network.
    NotEnrolled,
    /// The control plane does not know this node any more.
    SignInRefused,
    /// This node waits for approval.
    NotApproved,
    /// The time of this node is over.
    Expired,
    /// The control plane knows this node by another key than the one that it has.
    KeyMismatch,
    /// The control plane does not answer.
    ControlAway,
    /// Something else answers where the control plane should.
    ControlReplaced,
    /// The clock of this machine is wrong.
    ClockSkew,
    /// This machine is a gateway, whose peers come to it.
    Gateway,
    /// The local agent does not work.
    Agent,
    /// The organisation has no gateway.
    NoGateway,
    /// The name of the gateway has no address.
    EndpointUnknown,
    /// The machine of the gateway, or of another peer, says that nobody listens at its UDP port.
    GatewayDown,
    /// Initiations get no answer at all.
    UdpUnanswered,
    /// A session was made, and nothing comes back through it.
    OneWay,
    /// Small packets pass, large ones do not.
    MtuBlackHole,
    /// The resolver of the network does not answer.
    ResolverSilent,
    /// What programs of this machine ask the resolver of the network, something else answers.
    DnsCaptured,
    /// Addresses of the network are routed elsewhere on this machine.
    RouteConflict,
    /// What devices of a site behind this node answer to other sites does not come back.
    NoReturnRoute,
    /// The same, because a router sees one direction only and drops what it takes for invalid.
    Triangle,
    /// This machine does not forward what devices of its site send.
    NotForwarding,
    /// A site shall be routed, and this node cannot.
    NotRouted,
    /// There is no such name.
    NoSuchName,
    /// The network has no such address.
    NoRoute,
    /// A rule forbids it, or none allows it.
    Prohibited,
    /// The node that leads to the site does not answer.
    SiteNodeDown,
    /// A router on the way, or the gateway, says that the machine is not there.
    Unreachable,
    /// The machine does not answer.
    Silent,
    /// Nobody listens at the remote port.
    PortClosed,
}

impl Cause {
    /// Tells whether packets are kept from passing by it; they pass without a control plane, with a
    /// wrong clock, and where programs do not learn names.
    pub(super) fn is_of_network(self) -> bool {
        let others = [
            Self::ControlAway,
            Self::ControlReplaced,
            Self::ClockSkew,
            Self::DnsCaptured,
        ];
        !others.contains(&self)
    }
}

impl Finding {
    pub(super) fn new(code: Cause, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// Takes over an error with its remedy.
    pub(super) fn of_error(code: Cause, error: &anyhow::Error) -> Self {
        let remedy = remedy::remedy_of(error).unwrap_or_default();
        Self::new(code, format!("{error:#}"), remedy)
    }
}

impl From<Failure> for Finding {
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            Code::NameUnknown => Cause::NoSuchName,
            Code::ResolverSilent | Code::NameRefused => Cause::ResolverSilent,
            Code::EndpointUnknown => Cause::EndpointUnknown,
            Code::NoRoute => Cause::NoRoute,
            Code::HandshakeUnanswered => Cause::UdpUnanswered,
            Code::ConnectionRefused | Code::ConnectionReset => Cause::PortClosed,
            Code::Unreachable => Cause::Unreachable,
            Code::Prohibited => Cause::Prohibited,
            Code::RemoteSilent => Cause::Silent,
            Code::TooMany
            | Code::Draining
            | Code::ConfigurationChanged
            | Code::KeyNotReplaced
            | Code::Misunderstood => Cause::Agent,
        };
        Self::new(code, failure.to_string(), failure.remedy)
    }
}
