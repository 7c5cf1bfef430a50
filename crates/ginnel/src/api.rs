//! The one HTTP client: typed requests to a control plane, errors that name the hop that failed.
//!
//! Every request opens a connection of its own: requests are few, and a connection that is kept
//! would have to be found dead first after a machine slept or moved.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use model::{
    api::{
        Answers, AuditChain, AuditEntry, AuditQuery, BegunSignIn, CreatedToken, CreatedUser,
        EnrolRequest, Enrolled, ErrorBody, ErrorCode, GatewayEnrolled, GatewayRequest, Health,
        ListQuery, LoggedIn, MAP_WAIT_SECONDS_MAX, NewExpiry, NewKey, NewOrg, NewPeer, NewProvider,
        NewRule, NewService, NewSignIn, NewSite, NewToken, NewUser, Node, NodeByKey, NodeChange,
        Org, Page, Peer, PeerConfiguration, PeerExport, PendingSignIn, Provider, Questions, Rule,
        RuleChange, Service, SignIn, Site, SiteChange, SiteHealth, TokenEntry, TunnelReport, User,
        UserChange, WhoAmI,
    },
    id::{NodeId, RuleId, ServiceId, SessionId, SiteId, TokenId, UserId},
    key::PublicKey,
    map::{NetworkMap, Told},
    name::Label,
    ssh::{
        AuthorityView, BegunSession, Certificate, HostCertificateRequest, IssuedCertificate,
        NewRecording, NewSession, Piece, RefusedLogin, Revocation, Revoked, Rotation, Session,
        SessionEnd, UserCertificateRequest,
    },
    token::{Pin, Token},
};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{InvalidDnsNameError, ServerName},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use pin::{PinMismatch, PinVerifier};

mod capture;
mod pin;
#[cfg(test)]
mod tests;

pub(crate) use capture::CaptureFile;

/// How long to look up a name, to connect to one address, and to shake hands, each.
const HOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reply may take after the request was sent, apart from waiting for a map.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// The largest reply: a gateway's map of all nodes, at about 200 bytes each.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A control plane, as one token sees it.
#[derive(Clone)]
pub(crate) struct Client {
    host: String,
    port: u16,
    name: ServerName<'static>,
    connector: TlsConnector,
    token: Option<Token>,
}

/// Why a request got no reply that it can use, named after the hop that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{0}` is not the URL of a server: it has the form https://HOST or https://HOST:PORT")]
    Url(String),
    #[error("DNS: `{host}` has no address")]
    Dns { host: String, source: io::Error },
    #[error("TCP: {address} does not answer")]
    Connect { address: String, source: io::Error },
    #[error("TLS: {}", fault.reason)]
    Tls { fault: TlsFault, source: io::Error },
    #[error("system roots: {0}")]
    Roots(String),
    #[error("HTTP: the connection to {address} broke")]
    Broken {
        address: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("HTTP: the server at {address} took too long")]
    Slow { address: String },
    #[error("{}: {body} (request {})", hop(body.code), body.request_id)]
    Refused { status: StatusCode, body: ErrorBody },
    #[error("HTTP: {address} answered {status}, but not as a ginnel server does")]
    Foreign { address: String, status: StatusCode },
}

/// What a failed TLS handshake means, and what to do about it.
#[derive(Debug)]
pub(crate) struct TlsFault {
    reason: String,
    remedy: String,
    kind: TlsFaultKind,
}

/// What a failed TLS handshake has to do with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TlsFaultKind {
    /// The time: the certificate is not valid yet, or no more.
    Clock,
    /// Whoever answers: it is not the server that is meant.
    Server,
    /// The path: nobody answered in time.
    Path,
}

impl Error {
    /// Returns the server's code if it was the server that refused.
    pub(crate) fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { body, .. } => Some(body.code),
            Self::Url(_)
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Roots(_)
            | Self::Broken { .. }
            | Self::Slow { .. }
            | Self::Foreign { .. } => None,
        }
    }

    /// Tells whether the server says that the node is not one of its own any more.
    pub(crate) fn is_removed(&self) -> bool {
        matches!(
            self.code(),
            Some(ErrorCode::NodeRemoved | ErrorCode::TokenUnknown | ErrorCode::TokenRevoked)
        )
    }

    /// Returns what a failed TLS handshake has to do with.
    pub(crate) fn tls_fault(&self) -> Option<TlsFaultKind> {
        match self {
            Self::Tls { fault, .. } => Some(fault.kind),
            Self::Url(_)
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::Roots(_)
            | Self::Broken { .. }
            | Self::Slow { .. }
            | Self::Refused { .. }
            | Self::Foreign { .. } => None,
        }
    }

    /// Returns what to do about it, in one line.
    pub(crate) fn remedy(&self) -> &str {
        match self {
            Self::Url(_) => "give the URL as the server printed it",
            Self::Dns { .. } => "check the URL and this machine's resolver",
            Self::Connect { .. } => "check that the server runs and that no firewall is between",
            Self::Tls { fault, .. } => &fault.remedy,
            Self::Roots(_) => "use a token that carries the server's pin, or --pin",
            Self::Broken { .. } => "try again",
            Self::Slow { .. } => "try again, or look into the server's log",
            Self::Refused { body, .. } => remedy_of_refusal(body.code),
            Self::Foreign { .. } => "check the URL",
        }
    }
}

/// Names the hop at which a server refused.
fn hop(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::TokenRequired
        | ErrorCode::TokenUnknown
        | ErrorCode::TokenExpired
        | ErrorCode::TokenRevoked
        | ErrorCode::TokenUsed
        | ErrorCode::NodeRemoved
        | ErrorCode::SignInRefused
        | ErrorCode::ProviderFailed
        | ErrorCode::WrongTokenKind => "sign-in",
        ErrorCode::NotPermitted | ErrorCode::NodePending | ErrorCode::NodeExpired => "policy",
        ErrorCode::MalformedRequest
        | ErrorCode::TtlOutOfRange
        | ErrorCode::NameReserved
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::NameTaken
        | ErrorCode::KeyTaken
        | ErrorCode::PortTaken
        | ErrorCode::PrefixTaken
        | ErrorCode::OrgNotEmpty
        | ErrorCode::LastOperator
        | ErrorCode::LimitReached
        | ErrorCode::TooLarge
        | ErrorCode::Internal
        | ErrorCode::Unavailable
        | ErrorCode::StorageFailed
        | ErrorCode::StorageFull => "server",
    }
}

fn remedy_of_refusal(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::MalformedRequest | ErrorCode::TooLarge => "correct what the message names",
        ErrorCode::TtlOutOfRange => "choose a time within these bounds",
        ErrorCode::NameReserved => "choose another name",
        ErrorCode::TokenRequired => "sign in first: `ginnel login URL`",
        ErrorCode::TokenUnknown => {
            "see that URL and token are of the same server, or ask an administrator for a new token"
        }
        ErrorCode::TokenExpired | ErrorCode::TokenRevoked | ErrorCode::TokenUsed => {
            "ask an administrator for a new one: `ginnel token add`, or `ginnel server \
             --admin-token` at the server"
        }
        ErrorCode::NodeRemoved => "run `ginnel logout --force`, then enrol again",
        ErrorCode::SignInRefused => "run `ginnel login` again, or ask whoever keeps the accounts",
        ErrorCode::ProviderFailed => {
            "see that the identity provider runs; an administrator sets it by `ginnel oidc set`"
        }
        ErrorCode::WrongTokenKind => {
            "a join token is for `ginnel join`, a login token for `ginnel login`, a gateway \
             token for `ginnel gateway`"
        }
        ErrorCode::NotPermitted => "ask an administrator to do it",
        ErrorCode::NodePending => "ask an administrator for `ginnel node approve NAME`",
        ErrorCode::NodeExpired => "ask an administrator for `ginnel node expire NAME --never`",
        ErrorCode::NotFound => "see what there is with `list`",
        ErrorCode::MethodNotAllowed => "use the same version of ginnel as the server",
        ErrorCode::NameTaken => "choose another name, or remove the other one first",
        ErrorCode::KeyTaken => "remove that node first, or enrol with another --state DIR",
        ErrorCode::PortTaken => "choose another --port, or withdraw the other service first",
        ErrorCode::PrefixTaken => {
            "use --mode auto or masquerade for both, which tell their hosts apart; nodes that lead \
             to one LAN belong to one site: `ginnel site set NAME --node A --node B`"
        }
        ErrorCode::OrgNotEmpty => "remove its nodes first",
        ErrorCode::LastOperator => {
            "let another one enter first: `ginnel server --admin-token` at the server"
        }
        ErrorCode::LimitReached => "remove what is not used any more",
        ErrorCode::Internal => "look for the request id in the server's log",
        ErrorCode::Unavailable => "try again in some seconds",
        ErrorCode::StorageFailed => {
            "try again in some seconds; if that does not help, look for the request id in the \
             server's log: what runs goes on meanwhile"
        }
        ErrorCode::StorageFull => {
            "free space on the disk of the server's database, then try again: the server need not \
             be restarted, and what runs goes on meanwhile"
        }
    }
}

impl Client {
    /// Makes a client of the server at `url`, `https://HOST[:PORT]`. It trusts the authority of
    /// `pin`, or without one the system's roots. Nothing is sent yet.
    pub(crate) fn new(url: &str, pin: Option<Pin>, token: Option<Token>) -> Result<Self, Error> {
        let (host, port) = parse_url(url).ok_or_else(|| Error::Url(url.to_owned()))?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_: InvalidDnsNameError| Error::Url(url.to_owned()))?;
        Ok(Self {
            host,
            port,
            name,
            connector: TlsConnector::from(Arc::new(configuration(pin)?)),
            token,
        })
    }

    /// Makes a client that trusts the pin of its token.
    pub(crate) fn with_token(url: &str, token: Token) -> Result<Self, Error> {
        Self::new(url, token.pin(), Some(token))
    }

    /// Asks whether the server is alive, which anybody may.
    pub(crate) async fn health(&self) -> Result<Health, Error> {
        self.get("/v1/health").await
    }

    /// Asks for whom the token speaks.
    pub(crate) async fn whoami(&self) -> Result<WhoAmI, Error> {
        self.get("/v1/whoami").await
    }

    /// Enrols this machine, with a join token.
    pub(crate) async fn join(&self, request: &EnrolRequest) -> Result<Enrolled, Error> {
        self.send(Method::POST, "/v1/join", request).await
    }

    /// Signs a person in on this device, with a login token.
    pub(crate) async fn login(&self, request: &EnrolRequest) -> Result<LoggedIn, Error> {
        self.send(Method::POST, "/v1/login", request).await
    }

    /// Begins a sign-in by the identity provider of an organisation.
    pub(crate) async fn begin_sign_in(&self, request: &NewSignIn) -> Result<BegunSignIn, Error> {
        self.send(Method::POST, "/v1/oidc/sign-ins", request).await
    }

    /// Ends a sign-in; the inner error says after how many seconds to ask again, because the
    /// person has not decided yet.
    pub(crate) async fn end_sign_in(
        &self,
        request: &SignIn,
    ) -> Result<Result<LoggedIn, u64>, Error> {
        let body = serde_json::to_vec(request).expect("requests are plain data");
        let path = "/v1/oidc/sessions";
        let exchange = self.exchange(Method::POST, path, Some(body.into()), REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        if status == StatusCode::ACCEPTED {
            let pending: PendingSignIn = self.parse(status, &body)?;
            return Ok(Err(pending.interval_seconds));
        }
        self.parse(status, &body).map(Ok)
    }

    /// Shows the identity provider of an organisation; the own one if none is named.
    pub(crate) async fn provider(&self, org: Option<&Label>) -> Result<Provider, Error> {
        self.get(&provider_path(org)).await
    }

    /// Sets the identity provider of an organisation.
    pub(crate) async fn set_provider(&self, request: &NewProvider) -> Result<Provider, Error> {
        self.send(Method::PUT, "/v1/oidc/provider", request).await
    }

    /// Removes the identity provider of an organisation.
    pub(crate) async fn remove_provider(&self, org: Option<&Label>) -> Result<(), Error> {
        self.send_for_nothing(Method::DELETE, &provider_path(org))
            .await
    }

    /// Enrols this gateway, with a gateway token.
    pub(crate) async fn enrol_gateway(
        &self,
        request: &GatewayRequest,
    ) -> Result<GatewayEnrolled, Error> {
        self.send(Method::POST, "/v1/gateways", request).await
    }

    /// Removes this device or machine, with its session or node token.
    pub(crate) async fn logout(&self) -> Result<(), Error> {
        self.send_for_nothing(Method::POST, "/v1/logout").await
    }

    /// Returns the map of the token's node.
    pub(crate) async fn map(&self) -> Result<NetworkMap, Error> {
        self.get("/v1/map").await
    }

    /// Tells how the map of the token's node is another than the one with serial `after`, and
    /// waits for that up to `wait`, at most 55 seconds.
    pub(crate) async fn map_after(&self, after: u64, wait: Duration) -> Result<Told, Error> {
        let wait = wait.as_secs().min(MAP_WAIT_SECONDS_MAX);
        let path = format!("/v1/map?after={after}&wait={wait}&differences=true");
        let wait = REPLY_TIMEOUT + Duration::from_secs(wait);
        let (status, body) = self.exchange(Method::GET, &path, None, wait).await?;
        match status {
            StatusCode::NO_CONTENT => Ok(Told::Same),
            StatusCode::IM_USED => self.parse(status, &body).map(Told::Difference),
            _ => match self.parse(status, &body) {
                Ok(map) => Ok(Told::Map(map)),
                Err(error) if error.is_removed() => Ok(Told::Removed),
                Err(error) => Err(error),
            },
        }
    }

    /// Returns the client of a public key, with a gateway's node token; `None` if there is none.
    pub(crate) async fn node_by_key(&self, key: PublicKey) -> Result<Option<NodeByKey>, Error> {
        let path = format!("/v1/nodes/by-key/{}", percent_encoded(&key.to_string()));
        match self.get(&path).await {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists organisations.
    pub(crate) async fn orgs(&self, query: &ListQuery) -> Result<Page<Org>, Error> {
        self.list("/v1/orgs", query).await
    }

    /// Shows an organisation.
    pub(crate) async fn org(&self, name: &Label) -> Result<Org, Error> {
        self.get(&format!("/v1/orgs/{name}")).await
    }

    /// Adds an organisation.
    pub(crate) async fn add_org(&self, request: &NewOrg) -> Result<Org, Error> {
        self.send(Method::POST, "/v1/orgs", request).await
    }

    /// Removes an organisation without nodes.
    pub(crate) async fn remove_org(&self, name: &Label) -> Result<(), Error> {
        let path = format!("/v1/orgs/{name}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists people.
    pub(crate) async fn users(&self, query: &ListQuery) -> Result<Page<User>, Error> {
        self.list("/v1/users", query).await
    }

    /// Shows a person.
    pub(crate) async fn user(&self, id: UserId) -> Result<User, Error> {
        self.get(&format!("/v1/users/{id}")).await
    }

    /// Adds a person.
    pub(crate) async fn add_user(&self, request: &NewUser) -> Result<CreatedUser, Error> {
        self.send(Method::POST, "/v1/users", request).await
    }

    /// Changes a person's name or role.
    pub(crate) async fn change_user(
        &self,
        id: UserId,
        request: &UserChange,
    ) -> Result<User, Error> {
        let path = format!("/v1/users/{id}");
        self.send(Method::PATCH, &path, request).await
    }

    /// Removes a person with her devices, sessions and certificates.
    pub(crate) async fn remove_user(&self, id: UserId) -> Result<(), Error> {
        let path = format!("/v1/users/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists nodes.
    pub(crate) async fn nodes(&self, query: &ListQuery) -> Result<Page<Node>, Error> {
        self.list("/v1/nodes", query).await
    }

    /// Changes a node's name or tags.
    pub(crate) async fn change_node(
        &self,
        id: NodeId,
        request: &NodeChange,
    ) -> Result<Node, Error> {
        let path = format!("/v1/nodes/{id}");
        self.send(Method::PATCH, &path, request).await
    }

    /// Lets a node that waits for approval into the network.
    pub(crate) async fn approve_node(&self, id: NodeId) -> Result<Node, Error> {
        let path = format!("/v1/nodes/{id}/approval");
        self.send(Method::POST, &path, &serde_json::json!({})).await
    }

    /// Says when a node's time is over.
    pub(crate) async fn expire_node(&self, id: NodeId, request: &NewExpiry) -> Result<Node, Error> {
        let path = format!("/v1/nodes/{id}/expiry");
        self.send(Method::PUT, &path, request).await
    }

    /// Replaces the key of this node; the same key again changes nothing.
    pub(crate) async fn replace_key(&self, id: NodeId, request: &NewKey) -> Result<(), Error> {
        let path = format!("/v1/nodes/{id}/key");
        self.tell(Method::PUT, &path, request).await
    }

    /// Removes a node everywhere.
    pub(crate) async fn remove_node(&self, id: NodeId) -> Result<(), Error> {
        let path = format!("/v1/nodes/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists tokens that still work.
    pub(crate) async fn tokens(&self, query: &ListQuery) -> Result<Page<TokenEntry>, Error> {
        self.list("/v1/tokens", query).await
    }

    /// Shows a token that still works.
    pub(crate) async fn token(&self, id: TokenId) -> Result<TokenEntry, Error> {
        self.get(&format!("/v1/tokens/{id}")).await
    }

    /// Makes a token.
    pub(crate) async fn add_token(&self, request: &NewToken) -> Result<CreatedToken, Error> {
        self.send(Method::POST, "/v1/tokens", request).await
    }

    /// Revokes a token.
    pub(crate) async fn remove_token(&self, id: TokenId) -> Result<(), Error> {
        let path = format!("/v1/tokens/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists services.
    pub(crate) async fn services(&self, query: &ListQuery) -> Result<Page<Service>, Error> {
        self.list("/v1/services", query).await
    }

    /// Publishes a port.
    pub(crate) async fn add_service(&self, request: &NewService) -> Result<Service, Error> {
        self.send(Method::POST, "/v1/services", request).await
    }

    /// Withdraws a service.
    pub(crate) async fn remove_service(&self, id: ServiceId) -> Result<(), Error> {
        let path = format!("/v1/services/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists plain WireGuard clients.
    pub(crate) async fn peers(&self, query: &ListQuery) -> Result<Page<Peer>, Error> {
        self.list("/v1/peers", query).await
    }

    /// Adds a plain WireGuard client.
    pub(crate) async fn add_peer(&self, request: &NewPeer) -> Result<Peer, Error> {
        self.send(Method::POST, "/v1/peers", request).await
    }

    /// Returns what the configuration of a plain WireGuard client says.
    pub(crate) async fn export_peer(
        &self,
        id: NodeId,
        request: &PeerExport,
    ) -> Result<PeerConfiguration, Error> {
        let path = format!("/v1/peers/{id}/export");
        self.send(Method::POST, &path, request).await
    }

    /// Removes a plain WireGuard client.
    pub(crate) async fn remove_peer(&self, id: NodeId) -> Result<(), Error> {
        let path = format!("/v1/peers/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists sites.
    pub(crate) async fn sites(&self, query: &ListQuery) -> Result<Page<Site>, Error> {
        self.list("/v1/sites", query).await
    }

    /// Adds a site.
    pub(crate) async fn add_site(&self, request: &NewSite) -> Result<Site, Error> {
        self.send(Method::POST, "/v1/sites", request).await
    }

    /// Gives a site other nodes.
    pub(crate) async fn change_site(
        &self,
        id: SiteId,
        request: &SiteChange,
    ) -> Result<Site, Error> {
        let path = format!("/v1/sites/{id}");
        self.send(Method::PATCH, &path, request).await
    }

    /// Tells what this gateway has found out about the nodes of a site.
    pub(crate) async fn report_site(&self, id: SiteId, request: &SiteHealth) -> Result<(), Error> {
        let path = format!("/v1/sites/{id}/health");
        self.tell(Method::PUT, &path, request).await
    }

    /// Removes a site.
    pub(crate) async fn remove_site(&self, id: SiteId) -> Result<(), Error> {
        let path = format!("/v1/sites/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Lists rules.
    pub(crate) async fn rules(&self, query: &ListQuery) -> Result<Page<Rule>, Error> {
        self.list("/v1/rules", query).await
    }

    /// Shows a rule.
    pub(crate) async fn rule(&self, id: RuleId) -> Result<Rule, Error> {
        self.get(&format!("/v1/rules/{id}")).await
    }

    /// Adds a rule.
    pub(crate) async fn add_rule(&self, request: &NewRule) -> Result<Rule, Error> {
        self.send(Method::POST, "/v1/rules", request).await
    }

    /// Changes a rule.
    pub(crate) async fn change_rule(
        &self,
        id: RuleId,
        request: &RuleChange,
    ) -> Result<Rule, Error> {
        let path = format!("/v1/rules/{id}");
        self.send(Method::PATCH, &path, request).await
    }

    /// Removes a rule.
    pub(crate) async fn remove_rule(&self, id: RuleId) -> Result<(), Error> {
        let path = format!("/v1/rules/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    /// Asks who may reach what.
    pub(crate) async fn answers(&self, request: &Questions) -> Result<Answers, Error> {
        self.send(Method::POST, "/v1/policy/questions", request)
            .await
    }

    /// Lists changes, oldest first.
    pub(crate) async fn audit(&self, query: &AuditQuery) -> Result<Page<AuditEntry>, Error> {
        let mut parts = url::form_urlencoded::Serializer::new(String::new());
        for (key, value) in [
            ("org", query.org.as_ref().map(Label::to_string)),
            ("actor", query.actor.clone()),
            ("action", query.action.clone()),
            ("since", query.since.map(|since| since.to_string())),
            ("after", query.after.map(|after| after.to_string())),
            ("limit", query.limit.map(|limit| limit.to_string())),
        ] {
            if let Some(value) = value {
                parts.append_pair(key, &value);
            }
        }
        self.get(&format!("/v1/audit?{}", parts.finish())).await
    }

    /// Shows the ends of the chain of all changes.
    pub(crate) async fn audit_chain(&self) -> Result<AuditChain, Error> {
        self.get("/v1/audit/chain").await
    }

    /// Has a key of the person who has signed in certified.
    pub(crate) async fn certify_user(
        &self,
        request: &UserCertificateRequest,
    ) -> Result<IssuedCertificate, Error> {
        self.send(Method::POST, "/v1/ssh/user-certificate", request)
            .await
    }

    /// Has this node's host key certified, with its node token.
    pub(crate) async fn certify_host(
        &self,
        request: &HostCertificateRequest,
    ) -> Result<IssuedCertificate, Error> {
        self.send(Method::POST, "/v1/ssh/host-certificate", request)
            .await
    }

    /// Lists certificates, oldest first.
    pub(crate) async fn certificates(&self, query: &ListQuery) -> Result<Page<Certificate>, Error> {
        self.list("/v1/ssh/certificates", query).await
    }

    /// Shows the SSH keys that an organisation trusts; the own one if none is named.
    pub(crate) async fn ssh_authority(&self, org: Option<&Label>) -> Result<AuthorityView, Error> {
        let query = ListQuery {
            org: org.cloned(),
            ..ListQuery::default()
        };
        self.list("/v1/ssh/authority", &query).await
    }

    /// Takes the next step of a rotation of SSH keys.
    pub(crate) async fn rotate_ssh(&self, request: &Rotation) -> Result<AuthorityView, Error> {
        self.send(Method::POST, "/v1/ssh/rotation", request).await
    }

    /// Takes certificates back.
    pub(crate) async fn revoke_certificates(&self, request: &Revocation) -> Result<Revoked, Error> {
        self.send(Method::POST, "/v1/ssh/revocations", request)
            .await
    }

    /// Says which sessions are recorded.
    pub(crate) async fn record_ssh(&self, request: &NewRecording) -> Result<AuthorityView, Error> {
        self.send(Method::PUT, "/v1/ssh/recording", request).await
    }

    /// Tells that this node refused a login, with its node token.
    pub(crate) async fn report_refusal(&self, refused: &RefusedLogin) -> Result<(), Error> {
        self.tell(Method::POST, "/v1/ssh/refusals", refused).await
    }

    /// Tells how the tunnels of nodes stand at this gateway.
    pub(crate) async fn report_tunnels(&self, report: &TunnelReport) -> Result<(), Error> {
        self.tell(Method::POST, "/v1/tunnels", report).await
    }

    /// Begins the record of a session at this node, with its node token.
    pub(crate) async fn begin_session(&self, session: &NewSession) -> Result<BegunSession, Error> {
        self.send(Method::POST, "/v1/ssh/sessions", session).await
    }

    /// Appends to the record of a session at this node.
    pub(crate) async fn append_piece(&self, id: SessionId, piece: &Piece) -> Result<(), Error> {
        let path = format!("/v1/ssh/sessions/{id}/pieces");
        self.tell(Method::POST, &path, piece).await
    }

    /// Ends the record of a session at this node.
    pub(crate) async fn end_session(&self, id: SessionId, end: &SessionEnd) -> Result<(), Error> {
        let path = format!("/v1/ssh/sessions/{id}/end");
        self.tell(Method::POST, &path, end).await
    }

    /// Lists recorded sessions, oldest first.
    pub(crate) async fn sessions(&self, query: &ListQuery) -> Result<Page<Session>, Error> {
        self.list("/v1/ssh/sessions", query).await
    }

    /// Shows a recorded session.
    pub(crate) async fn session(&self, id: SessionId) -> Result<Session, Error> {
        self.get(&format!("/v1/ssh/sessions/{id}")).await
    }

    /// Reads pieces of a record.
    pub(crate) async fn pieces(
        &self,
        id: SessionId,
        query: &ListQuery,
    ) -> Result<Page<Piece>, Error> {
        let path = format!("/v1/ssh/sessions/{id}/pieces");
        self.list(&path, query).await
    }

    /// Removes a recorded session.
    pub(crate) async fn remove_session(&self, id: SessionId) -> Result<(), Error> {
        let path = format!("/v1/ssh/sessions/{id}");
        self.send_for_nothing(Method::DELETE, &path).await
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, query: &ListQuery) -> Result<T, Error> {
        let mut path = path.to_owned();
        let parts = [
            ("org", query.org.as_ref().map(Label::to_string)),
            ("name", query.name.as_ref().map(Label::to_string)),
            ("after", query.after.map(|after| after.to_string())),
            ("limit", query.limit.map(|limit| limit.to_string())),
        ];
        let mut separator = '?';
        for (key, value) in parts {
            if let Some(value) = value {
                path.push(separator);
                path.push_str(&format!("{key}={value}"));
                separator = '&';
            }
        }
        self.get(&path).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let exchange = self.exchange(Method::GET, path, None, REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        self.parse(status, &body)
    }

    async fn send<Q: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &Q,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(request).expect("requests are plain data");
        let exchange = self.exchange(method, path, Some(body.into()), REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        self.parse(status, &body)
    }

    /// Sends what is answered by nothing.
    async fn tell(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(request).expect("requests are plain data");
        let exchange = self.exchange(method, path, Some(body.into()), REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        Err(self.refusal(status, &body))
    }

    async fn send_for_nothing(&self, method: Method, path: &str) -> Result<(), Error> {
        let exchange = self.exchange(method, path, None, REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        Err(self.refusal(status, &body))
    }

    fn parse<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, Error> {
        if !status.is_success() {
            return Err(self.refusal(status, body));
        }
        serde_json::from_slice(body).map_err(|_| self.foreign(status))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        match serde_json::from_slice(body) {
            Ok(body) => Error::Refused { status, body },
            Err(_) => self.foreign(status),
        }
    }

    fn foreign(&self, status: StatusCode) -> Error {
        let address = self.address();
        Error::Foreign { address, status }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        reply_time_max: Duration,
    ) -> Result<(StatusCode, Bytes), Error> {
        let stream = self.connect().await?;
        let request = self.request(method, path, body)?;
        let reply = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let answered = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), REPLY_BYTES_MAX);
                Ok((status, body.collect().await?.to_bytes()))
            };
            // The connection moves the bytes; its own error comes out of the answer.
            let mut answered = std::pin::pin!(answered);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                answer = &mut answered => answer,
                _ = &mut connection => answered.await,
            }
        };
        let address = self.address();
        match timeout(reply_time_max, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(source)) => Err(Error::Broken { address, source }),
            Err(_) => Err(Error::Slow { address }),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let url = || Error::Url(path.to_owned());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address());
        if let Some(token) = &self.token {
            let text = Zeroizing::new(format!("Bearer {}", token.emit().as_str()));
            let mut value = HeaderValue::from_str(&text).map_err(|_| url())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(body.unwrap_or_default());
        request.body(body).map_err(|_| url())
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, Error> {
        let stream = self.connect_tcp().await?;
        let connected = self.connector.connect(self.name.clone(), stream);
        let shaken = timeout(HOP_TIMEOUT, connected).await.map_err(too_late);
        shaken.and_then(|connected| connected).map_err(|source| {
            let fault = tls_fault(&self.address(), &self.host, &source);
            Error::Tls { fault, source }
        })
    }

    async fn connect_tcp(&self) -> Result<TcpStream, Error> {
        let dns = |source| Error::Dns {
            host: self.host.clone(),
            source,
        };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = timeout(HOP_TIMEOUT, found).await.map_err(too_late);
        let addresses = found.and_then(|found| found).map_err(dns)?;
        let addresses: Vec<SocketAddr> = addresses.take(ADDRESSES_MAX).collect();
        let mut failed = dns(io::ErrorKind::NotFound.into());
        for address in addresses {
            let connected = timeout(HOP_TIMEOUT, TcpStream::connect(address)).await;
            match connected.map_err(too_late).and_then(|connected| connected) {
                Ok(stream) => {
                    // Only a delay would be lost with it.
                    stream.set_nodelay(true).ok();
                    return Ok(stream);
                }
                Err(source) => {
                    let address = address.to_string();
                    failed = Error::Connect { address, source };
                }
            }
        }
        Err(failed)
    }

    fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn provider_path(org: Option<&Label>) -> String {
    let query = org.map(|org| format!("?org={org}"));
    format!("/v1/oidc/provider{}", query.unwrap_or_default())
}

fn parse_url(url: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix("https://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@']) {
        return None;
    }
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (rest, 443),
    };
    let host = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn configuration(pin: Option<Pin>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for both versions");
    let mut configuration = match pin {
        Some(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinVerifier::new(pin, provider)))
            .with_no_client_auth(),
        None => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                let reason = found.errors.first().map(ToString::to_string);
                let reason = reason.unwrap_or_else(|| "this machine has none".to_owned());
                return Err(Error::Roots(reason));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(configuration)
}

/// Says what a failed TLS handshake means for the person who waits for it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is rustls' and may grow"
)]
fn tls_fault(address: &str, host: &str, error: &io::Error) -> TlsFault {
    let fault_of = |kind, reason: String, remedy: &str| TlsFault {
        reason,
        remedy: remedy.to_owned(),
        kind,
    };
    if error.kind() == io::ErrorKind::TimedOut {
        return fault_of(
            TlsFaultKind::Path,
            format!("{address} did not end the handshake in 5 seconds"),
            "check that nothing between here and the server holds back large packets",
        );
    }
    let fault = |reason, remedy: &str| fault_of(TlsFaultKind::Server, reason, remedy);
    let error = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(certificate)) = error else {
        return fault(
            format!("{address} does not speak TLS as a ginnel server does"),
            "check the port",
        );
    };
    match certificate {
        CertificateError::Other(other) if other.0.is::<PinMismatch>() => fault(
            format!("{address} is not the server that made the token"),
            "check the URL, or get a new token of that server",
        ),
        CertificateError::UnknownIssuer => fault(
            format!(
                "the certificate of {address} comes from an authority that this machine does \
                 not know"
            ),
            "use a token that carries the server's pin, or --pin",
        ),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => fault_of(
            TlsFaultKind::Clock,
            format!("the certificate of {address} is not valid now"),
            "check this machine's clock",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            fault(
                format!("the certificate of {address} is not for `{host}`"),
                &format!(
                    "use the URL that the server printed, or start it with `--public {address}`"
                ),
            )
        }
        other => fault(
            format!("the certificate of {address} is not accepted: {other}"),
            "check the URL, and the certificate that the server was given",
        ),
    }
}

fn too_late(_: Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Encodes a key for a path (RFC 3986, 2.1): base64 has letters that a path gives a meaning.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&HEXLOWER.encode(&[byte]));
        }
    }
    encoded
}
