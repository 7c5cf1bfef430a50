//! What is said over the control plane's API under `/v1`: requests, replies and errors.
//!
//! Tokens travel in the `Authorization: Bearer` header. Lists come in pages.

use std::{fmt, net::Ipv6Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    address::OrgPrefix,
    id::{NodeId, OrgId, ServiceId, TokenId, UserId},
    key::PublicKey,
    map::{self, NetworkMap},
    name::Label,
    policy::Role,
    token::{self, Token},
};

mod audit;
mod capture;
mod oidc;
mod peer;
mod policy;
mod site;

pub use audit::{AuditChain, AuditEntry, AuditHash, AuditLink, AuditQuery, MalformedAuditHash};
pub use capture::{
    AskedCapture, CAPTURE_BLOCKS_BYTES_MAX, CAPTURE_BYTES_MAX, CAPTURE_COMPLETE,
    CAPTURE_END_TRAILER, CAPTURE_FILTER_LENGTH_MAX, CAPTURE_ID_HEADER, CAPTURE_REASON_LENGTH_MAX,
    CAPTURE_REPORT_SECONDS_MAX, CAPTURE_SECONDS_MAX, CaptureEnd, NewCapture, SentBlocks,
};
pub use oidc::{
    AuthorizationResponse, BegunSignIn, NewProvider, NewSignIn, OIDC_CALLBACK_PATH, OIDC_ROLES_MAX,
    OIDC_SCOPES_MAX, OIDC_TEXT_LENGTH_MAX, PendingSignIn, Provider, Secret, SignIn,
};
pub use peer::{KeyHolder, NewPeer, Peer, PeerConfiguration, PeerExport};
pub use policy::{
    Answer, Answers, Example, NewRule, QUESTIONS_MAX, Questions, Rule, RuleChange, Verdict,
};
pub use site::{NewSite, SITE_PREFIXES_MAX, Site, SiteChange, SiteHealth, SiteNode};

/// The longest that `GET /v1/map` waits for a change, in seconds.
pub const MAP_WAIT_SECONDS_MAX: u64 = 55;

/// Most items in a page, and how many come if the request does not say.
pub const PAGE_ITEMS_MAX: u32 = 500;

/// How long a new token is valid if the request does not say.
pub const TOKEN_TTL_SECONDS_DEFAULT: u64 = 60 * 60;

/// The longest that a token is valid.
pub const TOKEN_TTL_SECONDS_MAX: u64 = 365 * 24 * 60 * 60;

/// The longest host and port that a gateway or a service may name, in bytes (RFC 1035, 2.3.4).
pub const ENDPOINT_LENGTH_MAX: usize = 253 + 6;

/// A point in time: seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// The body of every reply that is not a success.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong, for programs; stable.
    pub code: ErrorCode,
    /// What went wrong, for people.
    pub message: String,
    /// Finds the request in the server's log.
    pub request_id: String,
}

/// What went wrong, for programs.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request has no meaning (400).
    MalformedRequest,
    /// The token's time of validity is zero or too long (400).
    TtlOutOfRange,
    /// The name has a meaning of its own and cannot be given (400).
    NameReserved,
    /// No token came with the request (401).
    TokenRequired,
    /// The token is not of this server, or its text was damaged (401).
    TokenUnknown,
    /// The token's time is over (401).
    TokenExpired,
    /// The token was revoked (401).
    TokenRevoked,
    /// The token has been used as often as it may (401).
    TokenUsed,
    /// The node was removed (401).
    NodeRemoved,
    /// The identity provider, or what it said, does not sign the person in (401).
    SignInRefused,
    /// The token is of another kind than the request needs (403).
    WrongTokenKind,
    /// The request is for others to make (403).
    NotPermitted,
    /// The node waits for approval (403).
    NodePending,
    /// The node's time is over (403).
    NodeExpired,
    /// It does not exist, or is none of the asker's business (404).
    NotFound,
    /// The path takes other methods (405).
    MethodNotAllowed,
    /// Another has the name (409).
    NameTaken,
    /// The public key is enrolled already (409).
    KeyTaken,
    /// The node offers another service at the port (409).
    PortTaken,
    /// Another site has addresses of the prefix, and one of both is routed (409).
    PrefixTaken,
    /// The organisation still has nodes (409).
    OrgNotEmpty,
    /// Nobody would be left to keep the installation (409).
    LastOperator,
    /// The organisation cannot grow further (409).
    LimitReached,
    /// The body is too large (413).
    TooLarge,
    /// The server failed; its log has the cause under the request id (500).
    Internal,
    /// The identity provider does not answer as one does (502).
    ProviderFailed,
    /// The server has too much to do; try again (503).
    Unavailable,
    /// The database does not answer, or its disk fails; a change that was refused so may have been
    /// made if the database went away at its very end (503).
    StorageFailed,
    /// The disk of the database is full, so that nothing was changed (507; RFC 4918, 11.5).
    StorageFull,
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items, ordered by id.
    pub items: Vec<T>,
    /// The `after` of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<i64>,
}

/// Asks for one page of a list, in the query.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only what belongs to this organisation; all that the asker may see if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Only what bears this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub name: Option<Label>,
    /// Only what comes after this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
    /// How many items at most; 500 if absent or larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The server is alive.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The server's version.
    pub version: String,
    /// The server's clock; an older server does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

/// For whom the token of the request speaks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct WhoAmI {
    /// The kind of the token.
    pub kind: token::Kind,
    /// The organisation, if the token is bound to one.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The node, if the token is bound to one.
    pub node: Option<NodeId>,
    /// The node's name.
    #[schema(value_type = Option<String>)]
    pub node_name: Option<Label>,
    /// The person, if the token is a person's.
    pub user: Option<UserId>,
    /// The person's name.
    #[schema(value_type = Option<String>)]
    pub user_name: Option<Label>,
    /// What the person may be.
    pub role: Option<Role>,
    /// When the token ends; absent for a node, whose token lives as long as the node.
    pub expires: Option<Timestamp>,
}

/// Enrols a machine (`POST /v1/join`) or a person's device (`POST /v1/login`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct EnrolRequest {
    /// The name, unique in the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// The public key; its private key stays on the device.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
}

/// A machine or device is enrolled.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Enrolled {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// Its address, fixed for its life.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// Its credential, shown once.
    #[schema(value_type = String)]
    pub node_token: Token,
    /// All that it must know.
    #[schema(value_type = Object)]
    pub map: NetworkMap,
}

/// A person has signed in on a device.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct LoggedIn {
    /// The person.
    pub user: UserId,
    /// The person's name.
    #[schema(value_type = String)]
    pub user_name: Label,
    /// The person's credential, shown once.
    #[schema(value_type = String)]
    pub session_token: Token,
    /// When the session ends.
    pub session_expires: Timestamp,
    /// The device.
    pub device: Enrolled,
}

/// Enrols a gateway (`POST /v1/gateways`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct GatewayRequest {
    /// The name, unique among gateways.
    #[schema(value_type = String)]
    pub name: Label,
    /// The public key; its private key stays on the gateway.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// `HOST:PORT` of its WireGuard socket, as nodes reach it.
    pub endpoint: String,
}

/// A gateway is enrolled.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct GatewayEnrolled {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its credential, shown once.
    #[schema(value_type = String)]
    pub node_token: Token,
    /// All that it must know.
    #[schema(value_type = Object)]
    pub map: NetworkMap,
}

/// Asks for a map, in the query of `GET /v1/map`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MapQuery {
    /// The serial of the map that the asker has; the reply waits until there is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// How long to wait, in seconds; 55 if absent or larger. After that the reply is 204.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
    /// Whether the reply may be what changed after the asker's map; its status is 226 then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub differences: bool,
}

/// The node of a public key, for a gateway that met the key in a handshake.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NodeByKey {
    /// Its organisation.
    pub org: OrgId,
    /// Its id.
    pub id: NodeId,
    /// The node as it stands in the gateway's map.
    #[schema(value_type = Object)]
    pub node: map::Node,
}

/// Makes an organisation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewOrg {
    /// Its name, unique in the installation.
    #[schema(value_type = String)]
    pub name: Label,
}

/// An organisation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its addresses.
    #[schema(value_type = String)]
    pub prefix: OrgPrefix,
    /// The gateway that forwards for it.
    pub gateway: Option<NodeId>,
    /// How many nodes it has.
    pub nodes: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// A person in an organisation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The name, unique in the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// The organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// What the person may be in it.
    pub role: Role,
    /// Whether the person keeps the installation, and so acts in every organisation.
    pub operator: bool,
    /// When the person was added.
    pub created: Timestamp,
}

/// Adds a person to an organisation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewUser {
    /// The organisation; that of the asking device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The name, unique in the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// What the person may be.
    pub role: Role,
    /// How long the invitation is valid, in seconds; one hour if absent, one year at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A person was added.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CreatedUser {
    /// The person.
    pub user: User,
    /// Signs her in on one device; shown once.
    #[schema(value_type = String)]
    pub token: Token,
    /// When the token ends.
    pub expires: Timestamp,
}

/// Changes a person; what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct UserChange {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Label>,
    /// What the person may be from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A node as administrators see it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its part in the network.
    #[schema(value_type = String)]
    pub role: map::Role,
    /// Its organisation; a gateway has none.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Its address; a gateway has none.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv6Addr>,
    /// Its public key.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// The endpoint of a gateway.
    pub endpoint: Option<String>,
    /// Whose device it is; a machine has no person.
    pub user: Option<UserId>,
    /// Its tags, by which rules of the policy find it.
    #[schema(value_type = Vec<String>)]
    pub tags: Vec<Label>,
    /// Whether others know it: `active`, `pending` until somebody approves it, or `expired`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub state: map::State,
    /// When its time is over; absent when it stays.
    #[serde(default)]
    pub expires: Option<Timestamp>,
    /// When it was enrolled.
    pub created: Timestamp,
    /// When it last asked for its map since the server started.
    pub seen: Option<Timestamp>,
    /// The tunnel between it and a gateway; `None` while no gateway has told of one since the
    /// server started.
    #[serde(default)]
    pub tunnel: Option<GatewayTunnel>,
}

/// The tunnel between a node and a gateway, as the gateway sees it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct GatewayTunnel {
    /// When the newest session was made.
    pub handshake: Timestamp,
    /// What carries it.
    pub transport: Transport,
    /// Bytes that the gateway received from the node since it started, with all headers of
    /// WireGuard.
    pub received_bytes: u64,
    /// Bytes that it sent to the node.
    pub sent_bytes: u64,
}

/// What carries the datagrams of a tunnel.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// UDP over IPv4.
    UdpIpv4,
    /// UDP over IPv6.
    UdpIpv6,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UdpIpv4 => "UDP over IPv4",
            Self::UdpIpv6 => "UDP over IPv6",
        })
    }
}

/// Most tunnels of one [`TunnelReport`].
pub const TUNNELS_MAX: usize = 1_000;

/// What a gateway tells of the tunnels in which something happened since it last told of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TunnelReport {
    /// At most [`TUNNELS_MAX`].
    pub tunnels: Vec<NodeTunnel>,
}

/// The tunnel of one node.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NodeTunnel {
    /// The key of the node, in Base64.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// How it stands.
    #[serde(flatten)]
    pub tunnel: GatewayTunnel,
}

/// Changes a node; what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NodeChange {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Label>,
    /// All tags that it has from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub tags: Option<Vec<Label>>,
}

/// The longest that a node's time may last from now on, in seconds: ten years.
pub const NODE_TTL_SECONDS_MAX: u64 = 10 * TOKEN_TTL_SECONDS_MAX;

/// Says when a node's time is over: at a point in time, after a while, or with neither never.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewExpiry {
    /// At this time, which lies ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// In so many seconds; 0 is at once, ten years at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// Replaces a node's key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewKey {
    /// The public half of the new one, in Base64.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
}

/// Makes a token.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewToken {
    /// `join`, `gateway` or `login`; the other kinds are made by enrolling and signing in.
    pub kind: token::Kind,
    /// The organisation that a join or login token leads into; that of the asking device if
    /// absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Whom a login token signs in; whoever asks for it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub user: Option<Label>,
    /// How often it may be used; once if absent.
    #[serde(default)]
    pub uses_max: Option<u32>,
    /// How long it is valid, in seconds; one hour if absent, one year at most.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Whether a machine that joins by it waits until somebody approves it; of a join token alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

/// A token was made.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CreatedToken {
    /// What is stored of it.
    pub entry: TokenEntry,
    /// The token, shown once.
    #[schema(value_type = String)]
    pub token: Token,
}

/// What is stored of a token: all but the secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct TokenEntry {
    /// Its id.
    pub id: TokenId,
    /// What it is for.
    pub kind: token::Kind,
    /// The organisation that it leads into.
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// How often it was used.
    pub uses: u32,
    /// How often it may be used; absent for sessions.
    pub uses_max: Option<u32>,
    /// Whether a machine that joins by it waits until somebody approves it.
    #[serde(default)]
    pub approval: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// Publishes a port of a node under a name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewService {
    /// The name; nodes that offer the same name stand for each other.
    #[schema(value_type = String)]
    pub name: Label,
    /// The node; the asking node if absent.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// The TCP port at the node's address.
    pub port: u16,
    /// `HOST:PORT` that the node connects to; `127.0.0.1` and the port if absent.
    #[serde(default)]
    pub target: Option<String>,
}

/// A port that a node publishes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Label,
    /// Its organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// The node that offers it.
    pub node: NodeId,
    /// The node's name.
    #[schema(value_type = String)]
    pub node_name: Label,
    /// The TCP port at the node's address.
    pub port: u16,
    /// `HOST:PORT` that the node connects to; told to administrators and to the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 29] = [
        Self::MalformedRequest,
        Self::TtlOutOfRange,
        Self::NameReserved,
        Self::TokenRequired,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::TokenUsed,
        Self::NodeRemoved,
        Self::SignInRefused,
        Self::WrongTokenKind,
        Self::NotPermitted,
        Self::NodePending,
        Self::NodeExpired,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::NameTaken,
        Self::KeyTaken,
        Self::PortTaken,
        Self::PrefixTaken,
        Self::OrgNotEmpty,
        Self::LastOperator,
        Self::LimitReached,
        Self::TooLarge,
        Self::Internal,
        Self::ProviderFailed,
        Self::Unavailable,
        Self::StorageFailed,
        Self::StorageFull,
    ];

    /// Returns the HTTP status that goes with the code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::MalformedRequest | Self::TtlOutOfRange | Self::NameReserved => 400,
            Self::TokenRequired
            | Self::TokenUnknown
            | Self::TokenExpired
            | Self::TokenRevoked
            | Self::TokenUsed
            | Self::NodeRemoved
            | Self::SignInRefused => 401,
            Self::WrongTokenKind | Self::NotPermitted | Self::NodePending | Self::NodeExpired => {
                403
            }
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NameTaken
            | Self::KeyTaken
            | Self::PortTaken
            | Self::PrefixTaken
            | Self::OrgNotEmpty
            | Self::LastOperator
            | Self::LimitReached => 409,
            Self::TooLarge => 413,
            Self::Internal => 500,
            Self::ProviderFailed => 502,
            Self::Unavailable | Self::StorageFailed => 503,
            Self::StorageFull => 507,
        }
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_that_never_change() {
        let words: Vec<String> = ErrorCode::ALL
            .iter()
            .map(|code| serde_json::to_string(code).expect("a code is a word"))
            .collect();
        assert_eq!(words[8], "\"node_removed\"");
        let mut distinct = words.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), words.len());
    }

    #[test]
    fn a_reply_with_tokens_does_not_print_them() {
        let created = CreatedToken {
            entry: TokenEntry {
                id: TokenId(1),
                kind: token::Kind::Join,
                org: None,
                uses: 0,
                uses_max: Some(1),
                approval: false,
                created: Timestamp(0),
                expires: Timestamp(1),
            },
            token: Token::new(token::Kind::Join, [0; token::SECRET_LENGTH], None),
        };
        assert!(!format!("{created:?}").contains("aaaa"));
        let text = serde_json::to_string(&created).expect("plain data");
        assert!(text.contains("ginnel-join-aaaa"));
    }
}
