//! Tokens.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        CreatedToken, ErrorBody, ErrorCode, ListQuery, NewToken, Page, TOKEN_TTL_SECONDS_DEFAULT,
        TOKEN_TTL_SECONDS_MAX, Timestamp, TokenEntry,
    },
    id::TokenId,
    name::Label,
    token::Kind,
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, org_or_own, page,
    permission::{Access, Reach},
    rows_of_page, usable,
};
use crate::{
    Server,
    storage::{
        self, Touched,
        audit::Entry,
        org::Org,
        token::{Grant, Token},
        user::User,
    },
};

/// Most tokens that still enrol.
const TOKENS_MAX: u32 = 10_000;

/// Most uses of one token.
const USES_MAX: u32 = 1_000_000;

/// Lists the tokens that still work, without the tokens of nodes.
#[utoipa::path(get, path = "/v1/tokens", params(ListQuery),
    responses((status = 200, body = Page<TokenEntry>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<TokenEntry>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let tokens = storage::token::tokens(&mut read, server.now(), org, after, limit).await?;
    let mut items = Vec::new();
    for token in tokens {
        items.push(described(&mut read, token).await?);
    }
    Ok(Json(page(items, query.limit, |token| token.id.0)))
}

/// Shows a token that still works.
#[utoipa::path(get, path = "/v1/tokens/{token}", params(("token" = i64, Path)),
    responses((status = 200, body = TokenEntry), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<TokenId>,
) -> Result<Json<TokenEntry>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let token = listed(&mut read, id, server.now()).await?;
    access.reaches(token.org, token.node)?;
    Ok(Json(described(&mut read, token).await?))
}

/// Makes a token that enrols or signs in; the reply shows it once.
#[utoipa::path(post, path = "/v1/tokens", request_body = NewToken,
    responses((status = 201, body = CreatedToken), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let lifetime = lifetime(request.ttl_seconds)?;
    let uses_max = request.uses_max.unwrap_or(1);
    if !(1..=USES_MAX).contains(&uses_max) {
        let message = format!("a token may be used 1 to {USES_MAX} times");
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    let mut change = server.change().await?;
    let now = change.now();
    if storage::token::count(change.connection(), now).await? >= TOKENS_MAX {
        let message = "no more tokens fit here; revoke some that are not used";
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let grant = grant(&mut change, &access, &request).await?;
    let token = server.mint(request.kind);
    let expires = now + lifetime;
    let hash = crate::secret::hash(&token);
    let (uses_max, expires) = (Some(uses_max), Some(expires));
    let id =
        storage::token::insert(change.connection(), now, hash, grant, uses_max, expires).await?;
    let row = storage::token::token(change.connection(), id).await?;
    let row = row.ok_or_else(ApiError::not_found)?;
    let entry = Entry {
        actor: access.actor(),
        action: "token_added",
        subject: match request.approval {
            true => format!("token:{id} {} approval", request.kind),
            false => format!("token:{id} {}", request.kind),
        },
        org: row.org,
    };
    let described = described(change.connection(), row).await?;
    server.commit(change, entry, Touched::Nobody).await?;
    let created = CreatedToken {
        entry: described,
        token,
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revokes a token; a session ends with it, and nodes that it enrolled stay.
#[utoipa::path(delete, path = "/v1/tokens/{token}", params(("token" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<TokenId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let now = change.now();
    let token = listed(change.connection(), id, now).await?;
    access.reaches(token.org, token.node)?;
    storage::token::revoke(change.connection(), now, id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "token_revoked",
        subject: format!("token:{id} {}", token.kind),
        org: token.org,
    };
    server.commit(change, entry, Touched::Nobody).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn lifetime(asked: Option<u64>) -> Result<i64, ApiError> {
    let seconds = asked.unwrap_or(TOKEN_TTL_SECONDS_DEFAULT);
    let in_range = (1..=TOKEN_TTL_SECONDS_MAX).contains(&seconds);
    let seconds = i64::try_from(seconds).ok().filter(|_| in_range);
    seconds.ok_or_else(|| {
        let message = "a token is valid for at least one second and at most one year";
        ApiError::new(ErrorCode::TtlOutOfRange, message)
    })
}

async fn grant(
    change: &mut storage::Change,
    access: &Access,
    request: &NewToken,
) -> Result<Grant, ApiError> {
    let refuse = |message: &str| Err(ApiError::new(ErrorCode::MalformedRequest, message));
    if request.approval && request.kind != Kind::Join {
        return refuse("only who joins by a join token waits for approval");
    }
    match request.kind {
        Kind::Gateway if request.org.is_some() => {
            refuse("a gateway serves every organisation; its token takes none")
        }
        Kind::Gateway if access.reach != Reach::Everything => {
            let message = "a gateway serves every organisation; only one who keeps the \
                           installation may enrol it";
            Err(ApiError::new(ErrorCode::NotPermitted, message))
        }
        Kind::Gateway => Ok(Grant::Gateway),
        Kind::Join | Kind::Login => {
            let org = org_or_own(change.connection(), access, request.org.as_ref()).await?;
            if request.kind == Kind::Join {
                let (org, approval) = (org.id, request.approval);
                return Ok(Grant::Join { org, approval });
            }
            let user = person(change, access, &org, request.user.as_ref()).await?;
            access.may_change(&user)?;
            Ok(Grant::Login {
                org: org.id,
                user: user.id,
            })
        }
        Kind::Session | Kind::Node => {
            refuse("tokens of this kind are made by signing in and by enrolling")
        }
    }
}

/// Returns the person of a name in `org`; without a name whoever asks. One who keeps the
/// installation is made known to an organisation that does not know her yet.
async fn person(
    change: &mut storage::Change,
    access: &Access,
    org: &Org,
    name: Option<&Label>,
) -> Result<User, ApiError> {
    let now = change.now();
    let connection = change.connection();
    if let Some(name) = name {
        let known = storage::user::user_named(connection, org.id, name).await?;
        return known.ok_or_else(|| {
            let message = format!("organisation `{}` has no person `{name}`", org.name);
            ApiError::new(ErrorCode::NotFound, message)
        });
    }
    let asker = access.user.as_ref().ok_or_else(ApiError::not_found)?;
    if asker.org == org.id {
        return Ok(asker.clone());
    }
    let (name, role) = (&asker.name, asker.role);
    match storage::user::user_named(connection, org.id, name).await? {
        Some(known) if known.operator => Ok(known),
        Some(_) => {
            let message = format!(
                "`{name}` is somebody else in organisation `{}`; say whom to sign in",
                org.name
            );
            Err(ApiError::new(ErrorCode::NameTaken, message))
        }
        None => {
            let id = storage::user::insert(connection, now, org.id, name, role, true).await?;
            let user = storage::user::user(connection, id).await?;
            user.ok_or_else(ApiError::not_found)
        }
    }
}

/// Returns a token that stands in the list.
async fn listed(
    connection: &mut storage::Connection,
    id: TokenId,
    now: i64,
) -> Result<Token, ApiError> {
    let token = storage::token::token(connection, id).await?;
    token
        .filter(|token| token.kind != Kind::Node && usable(token, now).is_ok())
        .ok_or_else(ApiError::not_found)
}

async fn described(
    connection: &mut storage::Connection,
    token: Token,
) -> Result<TokenEntry, ApiError> {
    let org = match token.org {
        Some(org) => storage::org::org(connection, org).await?,
        None => None,
    };
    let expires = token.expires.ok_or_else(ApiError::not_found)?;
    Ok(TokenEntry {
        id: token.id,
        kind: token.kind,
        org: org.map(|org| org.name),
        uses: token.uses,
        uses_max: token.uses_max,
        approval: token.approval,
        created: Timestamp(token.created),
        expires: Timestamp(expires),
    })
}
