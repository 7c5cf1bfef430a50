//! Who may do what: one closed decision for every route.
//!
//! A route that is not in [`RULES`] answers nobody. What stands here is the whole decision: the
//! handlers only tell [`Access`] whose thing the request is about.

use axum::http::Method;
use model::{
    api::ErrorCode,
    id::{NodeId, OrgId},
    map::Role,
    token::{Kind, WrongKind},
};

use super::error::ApiError;
use crate::storage::{audit::Actor, node::Node, token::Token};

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
    ReadMap,
    LookUpKey,
    ReadOrg,
    ChangeOrg,
    ReadUser,
    ReadNode,
    ChangeNode,
    ReadToken,
    ChangeToken,
    ReadService,
    ChangeService,
    ReadPolicy,
    ChangePolicy,
    ReadAudit,
    CertifyUser,
    CertifyHost,
    ReadSshAuthority,
    ReadCertificate,
    ChangeSsh,
    ReportRefusal,
    RecordSession,
    ReadSession,
    ChangeSession,
}

/// Who asks, by the kind of the token and the role of its node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    Anyone,
    Admin,
    Join,
    Gateway,
    Session,
    Client,
    GatewayNode,
}

/// How far a permission goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach {
    Nothing,
    OwnNode,
    OwnOrg,
    Everything,
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
}

const fn rule(method: Method, path: &'static str, action: Action) -> Rule {
    Rule {
        method,
        path,
        action,
    }
}

/// Every route.
pub(crate) static RULES: [Rule; 48] = [
    rule(Method::GET, "/v1/health", Action::ReadHealth),
    rule(Method::GET, "/v1/openapi.json", Action::ReadDescription),
    rule(Method::GET, "/v1/whoami", Action::ReadSelf),
    rule(Method::POST, "/v1/join", Action::Join),
    rule(Method::POST, "/v1/login", Action::LogIn),
    rule(Method::POST, "/v1/gateways", Action::EnrolGateway),
    rule(Method::POST, "/v1/logout", Action::LogOut),
    rule(Method::GET, "/v1/map", Action::ReadMap),
    rule(Method::GET, "/v1/nodes/by-key/{key}", Action::LookUpKey),
    rule(Method::GET, "/v1/orgs", Action::ReadOrg),
    rule(Method::POST, "/v1/orgs", Action::ChangeOrg),
    rule(Method::GET, "/v1/orgs/{org}", Action::ReadOrg),
    rule(Method::DELETE, "/v1/orgs/{org}", Action::ChangeOrg),
    rule(Method::GET, "/v1/users", Action::ReadUser),
    rule(Method::GET, "/v1/nodes", Action::ReadNode),
    rule(Method::GET, "/v1/nodes/{node}", Action::ReadNode),
    rule(Method::PATCH, "/v1/nodes/{node}", Action::ChangeNode),
    rule(Method::DELETE, "/v1/nodes/{node}", Action::ChangeNode),
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
    rule(Method::GET, "/v1/rules", Action::ReadPolicy),
    rule(Method::POST, "/v1/rules", Action::ChangePolicy),
    rule(Method::GET, "/v1/rules/{rule}", Action::ReadPolicy),
    rule(Method::PATCH, "/v1/rules/{rule}", Action::ChangePolicy),
    rule(Method::DELETE, "/v1/rules/{rule}", Action::ChangePolicy),
    rule(Method::POST, "/v1/policy/questions", Action::ReadPolicy),
    rule(Method::GET, "/v1/audit", Action::ReadAudit),
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
];

/// Returns what the route of `method` and `path` does; `None` refuses.
pub(crate) fn action(method: &Method, path: &str) -> Option<Action> {
    let rule = RULES
        .iter()
        .find(|rule| rule.method == *method && rule.path == path)?;
    Some(rule.action)
}

/// Decides how far `who` may go with `action`.
pub(crate) fn reach(action: Action, who: Who) -> Reach {
    match action {
        Action::ReadHealth | Action::ReadDescription => Reach::Everything,
        Action::ReadSelf => match who {
            Who::Anyone => Reach::Nothing,
            Who::Admin
            | Who::Join
            | Who::Gateway
            | Who::Session
            | Who::Client
            | Who::GatewayNode => Reach::OwnNode,
        },
        Action::Join => only(who, Who::Join),
        Action::LogIn => only(who, Who::Admin),
        Action::EnrolGateway => only(who, Who::Gateway),
        Action::LogOut => match who {
            Who::Session | Who::Client | Who::GatewayNode => Reach::OwnNode,
            Who::Anyone | Who::Admin | Who::Join | Who::Gateway => Reach::Nothing,
        },
        Action::ReadMap => match who {
            Who::Client | Who::GatewayNode => Reach::OwnNode,
            Who::Anyone | Who::Admin | Who::Join | Who::Gateway | Who::Session => Reach::Nothing,
        },
        Action::LookUpKey => only(who, Who::GatewayNode),
        // A certificate speaks for the person or the node of the token, whoever else may do more.
        Action::CertifyUser => own(who, Who::Session),
        Action::CertifyHost | Action::ReportRefusal | Action::RecordSession => {
            own(who, Who::Client)
        }
        Action::ReadOrg
        | Action::ReadNode
        | Action::ReadService
        | Action::ReadPolicy
        | Action::ReadSshAuthority => client(who, Reach::OwnOrg),
        Action::ChangeService => client(who, Reach::OwnNode),
        Action::ChangeOrg
        | Action::ReadUser
        | Action::ChangeNode
        | Action::ReadToken
        | Action::ChangeToken
        | Action::ChangePolicy
        | Action::ReadCertificate
        | Action::ChangeSsh
        | Action::ReadSession
        | Action::ChangeSession
        | Action::ReadAudit => only(who, Who::Session),
    }
}

/// Returns the kind of token to name when `action` is refused.
pub(crate) fn needed(action: Action) -> Kind {
    match action {
        Action::Join => Kind::Join,
        Action::LogIn => Kind::Admin,
        Action::EnrolGateway => Kind::Gateway,
        Action::ReadMap
        | Action::LookUpKey
        | Action::CertifyHost
        | Action::ReportRefusal
        | Action::RecordSession => Kind::Node,
        Action::ReadHealth
        | Action::ReadDescription
        | Action::ReadSelf
        | Action::LogOut
        | Action::ReadOrg
        | Action::ChangeOrg
        | Action::ReadUser
        | Action::ReadNode
        | Action::ChangeNode
        | Action::ReadToken
        | Action::ChangeToken
        | Action::ReadService
        | Action::ChangeService
        | Action::ReadPolicy
        | Action::ChangePolicy
        | Action::CertifyUser
        | Action::ReadSshAuthority
        | Action::ReadCertificate
        | Action::ChangeSsh
        | Action::ReadSession
        | Action::ChangeSession
        | Action::ReadAudit => Kind::Session,
    }
}

impl Who {
    /// Returns who holds a token; a token of a node speaks by the node's role.
    pub(crate) fn of(token: &Token, node: Option<&Node>) -> Self {
        match token.kind {
            Kind::Admin => Self::Admin,
            Kind::Join => Self::Join,
            Kind::Gateway => Self::Gateway,
            Kind::Session => Self::Session,
            Kind::Node => match node.map(Node::role) {
                Some(Role::Client) => Self::Client,
                Some(Role::Gateway) => Self::GatewayNode,
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
    ) -> Result<Self, ApiError> {
        let who = token
            .as_ref()
            .map_or(Who::Anyone, |token| Who::of(token, node.as_ref()));
        let reach = reach(action, who);
        if reach != Reach::Nothing {
            return Ok(Self { reach, token, node });
        }
        let needed = needed(action);
        Err(match token {
            None => ApiError::new(
                ErrorCode::TokenRequired,
                "this request needs a token in its `Authorization` header",
            ),
            Some(token) if token.kind == needed => ApiError::new(
                ErrorCode::NotPermitted,
                "this node's role does not permit the request",
            ),
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
            Reach::OwnOrg => own.and_then(Node::org).is_some_and(|own| Some(own) == org),
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
        let own = self.own()?.org().ok_or_else(ApiError::not_found)?;
        if asked.is_some_and(|asked| asked != own) {
            return Err(ApiError::not_found());
        }
        Ok(Some(own))
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
                (Kind::Admin | Kind::Join | Kind::Gateway | Kind::Session | Kind::Node, ..) => {
                    Actor::Token(token.id)
                }
            },
            (None, _) => Actor::Server,
        }
    }
}

fn only(who: Who, permitted: Who) -> Reach {
    if who == permitted {
        Reach::Everything
    } else {
        Reach::Nothing
    }
}

/// Only `permitted`, about its own node.
fn own(who: Who, permitted: Who) -> Reach {
    if who == permitted {
        Reach::OwnNode
    } else {
        Reach::Nothing
    }
}

/// A session may do it anywhere, a client within its own reach.
fn client(who: Who, own: Reach) -> Reach {
    match who {
        Who::Session => Reach::Everything,
        Who::Client => own,
        Who::Anyone | Who::Admin | Who::Join | Who::Gateway | Who::GatewayNode => Reach::Nothing,
    }
}
