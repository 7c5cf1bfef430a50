//! Who may do what: one closed decision for every route.
//!
//! A route that is not in [`RULES`] answers nobody. What stands here is the whole decision: the
//! handlers only tell [`Access`] whose thing the request is about.

use axum::http::Method;
use model::{
    api::ErrorCode,
    id::{NodeId, OrgId},
    map::{self, State},
    policy::Role,
    token::{Kind, WrongKind},
};

use super::error::ApiError;
use crate::storage::{audit::Actor, node::Node, token::Token, user::User};

/// What a route does, independent of its path.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Action {
    ReadHealth,
    ReadDescription,
    ReadSelf,
    Join,
    LogIn,
    EnrolGateway,
    LogOut,
    SignIn,
    LogOutByProvider,
    ReadMap,
    LookUpKey,
    ReportTunnels,
    ReadOrg,
    ChangeOrg,
    ReadUser,
    ChangeUser,
    ReadNode,
    ChangeNode,
    ApproveNode,
    ExpireNode,
    ReplaceKey,
    ReadToken,
    ChangeToken,
    ReadService,
    ChangeService,
    ReadSite,
    ChangeSite,
    ReportSite,
    ReadPeer,
    ChangePeer,
    ReadPolicy,
    ChangePolicy,
    ReadProvider,
    ChangeProvider,
    ReadAudit,
    ReadAuditChain,
    CertifyUser,
    CertifyHost,
    ReadSshAuthority,
    ReadCertificate,
    ChangeSsh,
    ReportRefusal,
    RecordSession,
    ReadSession,
    ChangeSession,
    CaptureNode,
    CaptureKeys,
    SendCapture,
    EndCapture,
}

/// Who asks, by the kind of the token and the role of its person or node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    Anyone,
    Login,
    Join,
    Gateway,
    /// A person who keeps the installation.
    Operator,
    /// A person in an organisation.
    Person(Role),
    Client,
    GatewayNode,
}

/// How far a permission goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Not at all.
    Nothing,
    /// To what belongs to the asking node or device.
    OwnNode,
    /// To what belongs to the organisation of the asker.
    OwnOrg,
    /// To everything in the installation.
    Everything,
}

/// One line of the table of permissions: a route, and how far who has signed in may go with it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Permission {
    /// The method of the route.
    pub method: String,
    /// The path of the route.
    pub path: &'static str,
    /// A person who keeps the installation.
    pub operator: Reach,
    /// An administrator of an organisation.
    pub admin: Reach,
    /// A developer.
    pub developer: Reach,
    /// A guest.
    pub guest: Reach,
    /// A machine, or a device without its person.
    pub node: Reach,
    /// A gateway.
    pub gateway: Reach,
}

/// One route and what it does.
pub(crate) struct Rule {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) action: Action,
}

/// An authenticated request that its route's rule lets in.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) reach: Reach,
    pub(crate) token: Option<Token>,
    pub(crate) node: Option<Node>,
    pub(crate) user: Option<User>,
}

const fn rule(method: Method, path: &'static str, action: Action) -> Rule {
    Rule {
        method,
        path,
        action,
    }
}

/// Every route.
pub(crate) static RULES: [Rule; 78] = [
    rule(Method::GET, "/v1/health", Action::ReadHealth),
    rule(Method::GET, "/v1/openapi.json", Action::ReadDescription),
    rule(Method::GET, "/v1/whoami", Action::ReadSelf),
    rule(Method::POST, "/v1/join", Action::Join),
    rule(Method::POST, "/v1/login", Action::LogIn),
    rule(Method::POST, "/v1/gateways", Action::EnrolGateway),
    rule(Method::POST, "/v1/logout", Action::LogOut),
    rule(Method::GET, "/v1/map", Action::ReadMap),
    rule(Method::GET, "/v1/nodes/by-key/{key}", Action::LookUpKey),
    rule(Method::POST, "/v1/tunnels", Action::ReportTunnels),
    rule(Method::GET, "/v1/orgs", Action::ReadOrg),
    rule(Method::POST, "/v1/orgs", Action::ChangeOrg),
    rule(Method::GET, "/v1/orgs/{org}", Action::ReadOrg),
    rule(Method::DELETE, "/v1/orgs/{org}", Action::ChangeOrg),
    rule(Method::GET, "/v1/users", Action::ReadUser),
    rule(Method::POST, "/v1/users", Action::ChangeUser),
    rule(Method::GET, "/v1/users/{user}", Action::ReadUser),
    rule(Method::PATCH, "/v1/users/{user}", Action::ChangeUser),
    rule(Method::DELETE, "/v1/users/{user}", Action::ChangeUser),
    rule(Method::GET, "/v1/nodes", Action::ReadNode),
    rule(Method::GET, "/v1/nodes/{node}", Action::ReadNode),
    rule(Method::PATCH, "/v1/nodes/{node}", Action::ChangeNode),
    rule(Method::DELETE, "/v1/nodes/{node}", Action::ChangeNode),
    rule(
        Method::POST,
        "/v1/nodes/{node}/approval",
        Action::ApproveNode,
    ),
    rule(Method::PUT, "/v1/nodes/{node}/expiry", Action::ExpireNode),
    rule(Method::PUT, "/v1/nodes/{node}/key", Action::ReplaceKey),
    rule(Method::GET, "/v1/tokens", Action::ReadToken),
    rule(Method::POST, "/v1/tokens", Action::ChangeToken),
    rule(Method::GET, "/v1/tokens/{token}", Action::ReadToken),
    rule(Method::DELETE, "/v1/tokens/{token}", Action::ChangeToken),
    rule(Method::GET, "/v1/services", Action::ReadService),
    rule(Method::POST, "/v1/services", Action::ChangeService),
    rule(Method::GET, "/v1/services/{service}", Action::ReadService),
    rule(
        Method::DELETE,
        "/v1/services/{service}",
        Action::ChangeService,
    ),
    rule(Method::GET, "/v1/sites", Action::ReadSite),
    rule(Method::POST, "/v1/sites", Action::ChangeSite),
    rule(Method::GET, "/v1/sites/{site}", Action::ReadSite),
    rule(Method::PATCH, "/v1/sites/{site}", Action::ChangeSite),
    rule(Method::DELETE, "/v1/sites/{site}", Action::ChangeSite),
    rule(Method::PUT, "/v1/sites/{site}/health", Action::ReportSite),
    rule(Method::GET, "/v1/peers", Action::ReadPeer),
    rule(Method::POST, "/v1/peers", Action::ChangePeer),
    rule(Method::GET, "/v1/peers/{peer}", Action::ReadPeer),
    rule(Method::DELETE, "/v1/peers/{peer}", Action::ChangePeer),
    rule(Method::POST, "/v1/peers/{peer}/export", Action::ChangePeer),
    rule(Method::GET, "/v1/rules", Action::ReadPolicy),
    rule(Method::POST, "/v1/rules", Action::ChangePolicy),
    rule(Method::GET, "/v1/rules/{rule}", Action::ReadPolicy),
    rule(Method::PATCH, "/v1/rules/{rule}", Action::ChangePolicy),
    rule(Method::DELETE, "/v1/rules/{rule}", Action::ChangePolicy),
    rule(Method::POST, "/v1/policy/questions", Action::ReadPolicy),
    rule(Method::GET, "/v1/oidc/provider", Action::ReadProvider),
    rule(Method::PUT, "/v1/oidc/provider", Action::ChangeProvider),
    rule(Method::DELETE, "/v1/oidc/provider", Action::ChangeProvider),
    rule(Method::POST, "/v1/oidc/sign-ins", Action::SignIn),
    rule(Method::POST, "/v1/oidc/sessions", Action::SignIn),
    rule(
        Method::POST,
        "/v1/oidc/logout/{org}",
        Action::LogOutByProvider,
    ),
    rule(Method::GET, "/v1/audit", Action::ReadAudit),
    rule(Method::GET, "/v1/audit/chain", Action::ReadAuditChain),
    rule(
        Method::POST,
        "/v1/ssh/user-certificate",
        Action::CertifyUser,
    ),
    rule(
        Method::POST,
        "/v1/ssh/host-certificate",
        Action::CertifyHost,
    ),
    rule(Method::GET, "/v1/ssh/certificates", Action::ReadCertificate),
    rule(Method::GET, "/v1/ssh/authority", Action::ReadSshAuthority),
    rule(Method::POST, "/v1/ssh/rotation", Action::ChangeSsh),
    rule(Method::POST, "/v1/ssh/revocations", Action::ChangeSsh),
    rule(Method::PUT, "/v1/ssh/recording", Action::ChangeSsh),
    rule(Method::POST, "/v1/ssh/refusals", Action::ReportRefusal),
    rule(Method::GET, "/v1/ssh/sessions", Action::ReadSession),
    rule(Method::POST, "/v1/ssh/sessions", Action::RecordSession),
    rule(
        Method::GET,
        "/v1/ssh/sessions/{session}",
        Action::ReadSession,
    ),
    rule(
        Method::DELETE,
        "/v1/ssh/sessions/{session}",
        Action::ChangeSession,
    ),
    rule(
        Method::GET,
        "/v1/ssh/sessions/{session}/pieces",
        Action::ReadSession,
    ),
    rule(
        Method::POST,
        "/v1/ssh/sessions/{session}/pieces",
        Action::RecordSession,
    ),
    rule(
        Method::POST,
        "/v1/ssh/sessions/{session}/end",
        Action::RecordSession,
    ),
    rule(
        Method::POST,
        "/v1/nodes/{node}/capture",
        Action::CaptureNode,
    ),
    rule(
        Method::POST,
        "/v1/nodes/{node}/capture/keys",
        Action::CaptureKeys,
    ),
    rule(
        Method::POST,
        "/v1/captures/{capture}/blocks",
        Action::SendCapture,
    ),
    rule(
        Method::POST,
        "/v1/captures/{capture}/end",
        Action::EndCapture,
    ),
];

/// Returns the whole table of permissions.
pub fn permissions() -> Vec<Permission> {
    let permission = |rule: &Rule| {
        let reach = |who| reach(rule.action, who);
        Permission {
            method: rule.method.to_string(),
            path: rule.path,
            operator: reach(Who::Operator),
            admin: reach(Who::Person(Role::Admin)),
            developer: reach(Who::Person(Role::Developer)),
            guest: reach(Who::Person(Role::Guest)),
            node: reach(Who::Client),
            gateway: reach(Who::GatewayNode),
        }
    };
    RULES.iter().map(permission).collect()
}

/// Returns what the route of `method` and `path` does; `None` refuses.
pub(crate) fn action(method: &Method, path: &str) -> Option<Action> {
    let rule = RULES
        .iter()
        .find(|rule| rule.method == *method && rule.path == path)?;
    Some(rule.action)
}

/// Decides how far `who` may go with `action`.
pub(crate) fn reach(action: Action, who: Who) -> Reach {
    let is_person = matches!(who, Who::Operator | Who::Person(_));
    let is_node = matches!(who, Who::Client | Who::GatewayNode);
    match action {
        Action::ReadHealth | Action::ReadDescription => Reach::Everything,
        // What the identity provider signed decides, not a token of ours.
        Action::SignIn | Action::LogOutByProvider => Reach::Everything,
        Action::ReadSelf => own_node(who != Who::Anyone),
        Action::Join => only(who, Who::Join),
        Action::LogIn => only(who, Who::Login),
        Action::EnrolGateway => only(who, Who::Gateway),
        Action::LogOut => own_node(is_person || is_node),
        Action::ReadMap | Action::SendCapture => own_node(is_node),
        Action::EndCapture => match who {
            // Its node has ended it; others ask for that.
            Who::Client | Who::GatewayNode => Reach::OwnNode,
            Who::Anyone
            | Who::Login
            | Who::Join
            | Who::Gateway
            | Who::Operator
            | Who::Person(_) => by_role(who, Reach::Nothing, Reach::Nothing, Reach::Nothing),
        },
        Action::LookUpKey | Action::ReportTunnels | Action::ReportSite => {
            only(who, Who::GatewayNode)
        }
        // A certificate speaks for the person or the node of the token, whoever else may do more.
        Action::CertifyUser => own_node(is_person),
        Action::ReplaceKey
        | Action::CertifyHost
        | Action::ReportRefusal
        | Action::RecordSession => own_node(who == Who::Client),
        Action::ReadOrg
        | Action::ReadNode
        | Action::ReadService
        | Action::ReadSite
        | Action::ReadPolicy => by_role(who, Reach::OwnOrg, Reach::Nothing, Reach::OwnOrg),
        Action::ReadSshAuthority => by_role(who, Reach::OwnOrg, Reach::OwnOrg, Reach::OwnOrg),
        Action::ChangeService => by_role(who, Reach::OwnNode, Reach::Nothing, Reach::OwnNode),
        Action::ReadUser
        | Action::ChangeUser
        | Action::ChangeNode
        | Action::ApproveNode
        | Action::ExpireNode
        | Action::ReadToken
        | Action::ChangeToken
        | Action::ChangeSite
        | Action::ReadPeer
        | Action::ChangePeer
        | Action::ChangePolicy
        | Action::ReadProvider
        | Action::ChangeProvider
        | Action::ReadCertificate
        | Action::ChangeSsh
        | Action::ReadSession
        | Action::ChangeSession
        | Action::CaptureNode
        | Action::CaptureKeys
        | Action::ReadAudit => by_role(who, Reach::Nothing, Reach::Nothing, Reach::Nothing),
        Action::ChangeOrg | Action::ReadAuditChain => only(who, Who::Operator),
    }
}

/// Returns the reach of what an operator may do anywhere and an administrator in her organisation.
fn by_role(who: Who, developer: Reach, guest: Reach, client: Reach) -> Reach {
    match who {
        Who::Operator => Reach::Everything,
        Who::Person(Role::Admin) => Reach::OwnOrg,
        Who::Person(Role::Developer) => developer,
        Who::Person(Role::Guest) => guest,
        Who::Client => client,
        Who::Anyone | Who::Login | Who::Join | Who::Gateway | Who::GatewayNode => Reach::Nothing,
    }
}

fn own_node(permitted: bool) -> Reach {
    if permitted {
        Reach::OwnNode
    } else {
        Reach::Nothing
    }
}

/// Passes unless the asking node waits for approval or its time is over. Such a node hears of its
/// state, keeps its key, sends what is captured of it and may leave.
pub(crate) fn admits(action: Action, state: State) -> Result<(), ApiError> {
    match action {
        Action::ReadHealth
        | Action::ReadDescription
        | Action::ReadSelf
        | Action::ReadMap
        | Action::ReplaceKey
        | Action::SendCapture
        | Action::EndCapture
        | Action::LogOut
        | Action::SignIn
        | Action::LogOutByProvider
        | Action::Join
        | Action::LogIn
        | Action::EnrolGateway => Ok(()),
        // These are refused where the audit hears of it.
        Action::CertifyUser | Action::CertifyHost => Ok(()),
        Action::LookUpKey
        | Action::ReportTunnels
        | Action::ReportSite
        | Action::ReadOrg
        | Action::ChangeOrg
        | Action::ReadUser
        | Action::ChangeUser
        | Action::ReadNode
        | Action::ChangeNode
        | Action::ApproveNode
        | Action::ExpireNode
        | Action::ReadToken
        | Action::ChangeToken
        | Action::ReadService
        | Action::ChangeService
        | Action::ReadSite
        | Action::ChangeSite
        | Action::ReadPeer
        | Action::ChangePeer
        | Action::ReadPolicy
        | Action::ChangePolicy
        | Action::ReadProvider
        | Action::ChangeProvider
        | Action::ReadAudit
        | Action::ReadAuditChain
        | Action::ReadSshAuthority
        | Action::ReadCertificate
        | Action::ChangeSsh
        | Action::ReportRefusal
        | Action::RecordSession
        | Action::ReadSession
        | Action::ChangeSession
        | Action::CaptureNode
        | Action::CaptureKeys => is_active(state),
    }
}

/// Passes if others know a node, and says else what keeps it.
pub(crate) fn is_active(state: State) -> Result<(), ApiError> {
    match state {
        State::Active => Ok(()),
        State::Pending => {
            let message = "this node waits for approval";
            Err(ApiError::new(ErrorCode::NodePending, message))
        }
        State::Expired => {
            let message = "this node's time is over";
            Err(ApiError::new(ErrorCode::NodeExpired, message))
        }
    }
}

/// Returns the kind of token to name when `action` is refused.
pub(crate) fn needed(action: Action) -> Kind {
    match action {
        Action::Join => Kind::Join,
        Action::LogIn => Kind::Login,
        Action::EnrolGateway => Kind::Gateway,
        Action::ReadMap
        | Action::LookUpKey
        | Action::ReportTunnels
        | Action::ReportSite
        | Action::ReplaceKey
        | Action::CertifyHost
        | Action::ReportRefusal
        | Action::RecordSession
        | Action::SendCapture => Kind::Node,
        Action::ReadHealth
        | Action::ReadDescription
        | Action::ReadSelf
        | Action::LogOut
        | Action::SignIn
        | Action::LogOutByProvider
        | Action::ReadProvider
        | Action::ChangeProvider
        | Action::ReadOrg
        | Action::ChangeOrg
        | Action::ReadUser
        | Action::ChangeUser
        | Action::ReadNode
        | Action::ChangeNode
        | Action::ApproveNode
        | Action::ExpireNode
        | Action::ReadToken
        | Action::ChangeToken
        | Action::ReadService
        | Action::ChangeService
        | Action::ReadSite
        | Action::ChangeSite
        | Action::ReadPeer
        | Action::ChangePeer
        | Action::ReadPolicy
        | Action::ChangePolicy
        | Action::CertifyUser
        | Action::ReadSshAuthority
        | Action::ReadCertificate
        | Action::ChangeSsh
        | Action::ReadSession
        | Action::ChangeSession
        | Action::CaptureNode
        | Action::CaptureKeys
        | Action::EndCapture
        | Action::ReadAudit
        | Action::ReadAuditChain => Kind::Session,
    }
}

impl Who {
    /// Returns who holds a token; one of a node or a person speaks by the role of these. A person
    /// without a token has signed in at a browser.
    pub(crate) fn of(token: Option<&Token>, node: Option<&Node>, user: Option<&User>) -> Self {
        match token.map(|token| token.kind) {
            Some(Kind::Login) => Self::Login,
            Some(Kind::Join) => Self::Join,
            Some(Kind::Gateway) => Self::Gateway,
            Some(Kind::Session) | None => match user {
                Some(User { operator: true, .. }) => Self::Operator,
                Some(user) => Self::Person(user.role),
                None => Self::Anyone,
            },
            Some(Kind::Node) => match node.map(Node::role) {
                Some(map::Role::Client) => Self::Client,
                Some(map::Role::Gateway) => Self::GatewayNode,
                None => Self::Anyone,
            },
        }
    }
}

impl Access {
    /// Lets a request in, or says which token it needs.
    pub(crate) fn new(
        action: Action,
        token: Option<Token>,
        node: Option<Node>,
        user: Option<User>,
    ) -> Result<Self, ApiError> {
        let who = Who::of(token.as_ref(), node.as_ref(), user.as_ref());
        let reach = reach(action, who);
        if reach != Reach::Nothing {
            return Ok(Self {
                reach,
                token,
                node,
                user,
            });
        }
        let needed = needed(action);
        Err(match token {
            None if user.is_none() => ApiError::new(
                ErrorCode::TokenRequired,
                "this request needs a token in its `Authorization` header",
            ),
            None => not_permitted(who),
            Some(token) if token.kind == needed => not_permitted(who),
            Some(token) => {
                let found = token.kind;
                ApiError::new(
                    ErrorCode::WrongTokenKind,
                    WrongKind { found, needed }.to_string(),
                )
            }
        })
    }

    /// Passes if the asker may do this to a thing of `org` that belongs to `node`; what lies
    /// outside of its reach does not exist for it.
    pub(crate) fn reaches(&self, org: Option<OrgId>, node: Option<NodeId>) -> Result<(), ApiError> {
        let own = self.node.as_ref();
        let reached = match self.reach {
            Reach::Nothing => false,
            Reach::OwnNode => own.is_some_and(|own| Some(own.id) == node),
            Reach::OwnOrg => self.org().is_some_and(|own| Some(own) == org),
            Reach::Everything => true,
        };
        if reached {
            Ok(())
        } else {
            Err(ApiError::not_found())
        }
    }

    /// Returns the organisation that a list is limited to; `None` is all of them.
    pub(crate) fn visible_org(&self, asked: Option<OrgId>) -> Result<Option<OrgId>, ApiError> {
        if self.reach == Reach::Everything {
            return Ok(asked);
        }
        let own = self.org().ok_or_else(ApiError::not_found)?;
        if asked.is_some_and(|asked| asked != own) {
            return Err(ApiError::not_found());
        }
        Ok(Some(own))
    }

    /// Passes if the asker may act on a person: on one who keeps the installation only another.
    pub(crate) fn may_change(&self, user: &User) -> Result<(), ApiError> {
        self.reaches(Some(user.org), None)?;
        if user.operator && self.reach != Reach::Everything {
            let message = "only one who keeps the installation may act on another";
            return Err(ApiError::new(ErrorCode::NotPermitted, message));
        }
        Ok(())
    }

    /// Returns the organisation of the asking node, or of a person at a browser.
    pub(crate) fn org(&self) -> Option<OrgId> {
        let of_node = self.node.as_ref().and_then(Node::org);
        of_node.or_else(|| self.user.as_ref().map(|user| user.org))
    }

    /// Returns the node that the token is bound to.
    pub(crate) fn own(&self) -> Result<&Node, ApiError> {
        self.node.as_ref().ok_or_else(ApiError::not_found)
    }

    /// Returns the token of a route that needs one.
    pub(crate) fn token(&self) -> Result<&Token, ApiError> {
        self.token.as_ref().ok_or_else(ApiError::not_found)
    }

    /// Returns whom the audit names.
    pub(crate) fn actor(&self) -> Actor {
        match (&self.token, &self.node) {
            (Some(token), node) => match (token.kind, token.user, node) {
                (Kind::Session, Some(user), _) => Actor::User(user),
                (Kind::Node, _, Some(node)) => Actor::Node(node.id),
                (Kind::Login | Kind::Join | Kind::Gateway | Kind::Session | Kind::Node, ..) => {
                    Actor::Token(token.id)
                }
            },
            (None, _) => self
                .user
                .as_ref()
                .map_or(Actor::Server, |user| Actor::User(user.id)),
        }
    }
}

fn not_permitted(who: Who) -> ApiError {
    let message = match who {
        Who::Person(role) => format!("the role {role} does not permit the request"),
        Who::Client | Who::GatewayNode => "this node's role does not permit the request".to_owned(),
        Who::Anyone | Who::Login | Who::Join | Who::Gateway | Who::Operator => {
            "this is for a device to request, not for a browser".to_owned()
        }
    };
    ApiError::new(ErrorCode::NotPermitted, message)
}

fn only(who: Who, permitted: Who) -> Reach {
    if who == permitted {
        Reach::Everything
    } else {
        Reach::Nothing
    }
}
