//! Rules, and questions about them.

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        self, Answers, ErrorBody, ErrorCode, ListQuery, NewRule, Page, QUESTIONS_MAX, Questions,
        RuleChange, Timestamp,
    },
    id::RuleId,
    name::is_deceptive,
    policy::{Selector, Traffic},
};

use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, org_or_own, page,
    permission::Access,
    rows_of_page,
};
use crate::{
    Server,
    policy::{Judge, Parties},
    storage::{
        self, Touched,
        audit::Entry,
        policy::{Rule, Terms},
    },
};

/// Most rules of an organisation: every node carries its numbers of them.
const RULES_PER_ORG_MAX: u32 = 500;

/// Most selectors at one side of a rule, and most items of its traffic.
const TERMS_MAX: usize = 64;

/// The longest comment, in bytes.
const COMMENT_LENGTH_MAX: usize = 255;

/// Lists the rules that the asker may know.
#[utoipa::path(get, path = "/v1/rules", params(ListQuery),
    responses((status = 200, body = Page<api::Rule>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Rule>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let mut items = Vec::new();
    for rule in storage::policy::rules(&mut read, org, after, limit).await? {
        items.push(described(&mut read, rule).await?);
    }
    Ok(Json(page(items, query.limit, |rule| rule.id.0)))
}

/// Shows a rule.
#[utoipa::path(get, path = "/v1/rules/{rule}", params(("rule" = i64, Path)),
    responses((status = 200, body = api::Rule), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<RuleId>,
) -> Result<Json<api::Rule>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let rule = rule_of(&mut read, &access, id).await?;
    Ok(Json(described(&mut read, rule).await?))
}

/// Adds a rule.
#[utoipa::path(post, path = "/v1/rules", request_body = NewRule,
    responses((status = 201, body = api::Rule), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewRule>,
) -> Result<(StatusCode, Json<api::Rule>), ApiError> {
    let terms = Terms {
        from: request.from,
        to: request.to,
        traffic: request.traffic.unwrap_or_else(|| vec![Traffic::All]),
        comment: request.comment,
    };
    check(&terms)?;
    let mut change = server.change().await?;
    let org = org_or_own(change.connection(), &access, request.org.as_ref()).await?;
    if storage::policy::count_of(change.connection(), org.id).await? >= RULES_PER_ORG_MAX {
        let message = format!("an organisation has at most {RULES_PER_ORG_MAX} rules");
        return Err(ApiError::new(ErrorCode::LimitReached, message));
    }
    let now = change.now();
    let id = storage::policy::insert(change.connection(), now, org.id, &terms).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "rule_added",
        subject: format!("rule:{id} {}", in_words(&terms)),
        org: Some(org.id),
    };
    server.commit(change, entry, Touched::Org(org.id)).await?;
    let rule = Rule {
        id,
        org: org.id,
        terms,
        created: now,
    };
    let mut read = server.inner.store.read().await?;
    Ok((StatusCode::CREATED, Json(described(&mut read, rule).await?)))
}

/// Changes a rule: what it no longer allows is cut.
#[utoipa::path(patch, path = "/v1/rules/{rule}", params(("rule" = i64, Path)),
    request_body = RuleChange,
    responses((status = 200, body = api::Rule), (status = "4XX", body = ErrorBody)))]
pub(super) async fn set(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<RuleId>,
    Body(request): Body<RuleChange>,
) -> Result<Json<api::Rule>, ApiError> {
    let mut change = server.change().await?;
    let mut rule = rule_of(change.connection(), &access, id).await?;
    let before = rule.terms.clone();
    let terms = &mut rule.terms;
    terms.from = request.from.unwrap_or_else(|| before.from.clone());
    terms.to = request.to.unwrap_or_else(|| before.to.clone());
    terms.traffic = request.traffic.unwrap_or_else(|| before.traffic.clone());
    terms.comment = request.comment.unwrap_or_else(|| before.comment.clone());
    check(terms)?;
    storage::policy::update(change.connection(), id, terms).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "rule_changed",
        subject: format!("rule:{id} {} was {}", in_words(terms), in_words(&before)),
        org: Some(rule.org),
    };
    let touched = Touched::Org(rule.org);
    server.commit(change, entry, touched).await?;
    let mut read = server.inner.store.read().await?;
    Ok(Json(described(&mut read, rule).await?))
}

/// Removes a rule: what only it allowed is cut.
#[utoipa::path(delete, path = "/v1/rules/{rule}", params(("rule" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<RuleId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let rule = rule_of(change.connection(), &access, id).await?;
    storage::policy::delete(change.connection(), id).await?;
    let entry = Entry {
        actor: access.actor(),
        action: "rule_removed",
        subject: format!("rule:{id} {}", in_words(&rule.terms)),
        org: Some(rule.org),
    };
    let touched = Touched::Org(rule.org);
    server.commit(change, entry, touched).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells who may reach what, and by which rule, as the nodes themselves decide it.
#[utoipa::path(post, path = "/v1/policy/questions", request_body = Questions,
    responses((status = 200, body = Answers), (status = "4XX", body = ErrorBody)))]
pub(super) async fn answer(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<Questions>,
) -> Result<Json<Answers>, ApiError> {
    if request.questions.len() > QUESTIONS_MAX {
        let message = format!("a request has at most {QUESTIONS_MAX} questions");
        return Err(ApiError::new(ErrorCode::TooLarge, message));
    }
    let mut read = server.inner.store.read().await?;
    let org = org_or_own(&mut read, &access, request.org.as_ref()).await?;
    let shared = server.inner.maps.org(&mut read, server.now(), &org).await?;
    let parties = Parties::of(&mut read, org.id).await?;
    let nodes = storage::node::nodes_of(&mut read, org.id).await?;
    let judge = Judge {
        org: &shared,
        parties: nodes
            .iter()
            .map(|node| (node.id, parties.party(node)))
            .collect(),
    };
    let answers = request.questions.iter().map(|question| {
        judge.answer(question).ok_or_else(|| {
            let message = format!(
                "`{}` to `{}` is about too many unlike nodes; ask about fewer",
                question.from, question.to
            );
            ApiError::new(ErrorCode::TooLarge, message)
        })
    });
    let answers = answers.collect::<Result<_, _>>()?;
    Ok(Json(Answers { answers }))
}

async fn rule_of(
    connection: &mut storage::Connection,
    access: &Access,
    id: RuleId,
) -> Result<Rule, ApiError> {
    let rule = storage::policy::rule(connection, id).await?;
    let rule = rule.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(rule.org), None)?;
    Ok(rule)
}

/// Refuses terms without meaning.
fn check(terms: &Terms) -> Result<(), ApiError> {
    let refuse = |message: String| Err(ApiError::new(ErrorCode::MalformedRequest, message));
    let lengths = [
        ("from", terms.from.len()),
        ("to", terms.to.len()),
        ("traffic", terms.traffic.len()),
    ];
    for (field, length) in lengths {
        if !(1..=TERMS_MAX).contains(&length) {
            return refuse(format!("`{field}` of a rule has 1 to {TERMS_MAX} items"));
        }
    }
    let is_only_reached = |selector: &&Selector| matches!(selector, Selector::Service(_));
    if let Some(reached) = terms.from.iter().find(is_only_reached) {
        return refuse(format!("`{reached}` is reached and sends nothing"));
    }
    let comment = &terms.comment;
    if comment.len() > COMMENT_LENGTH_MAX || comment.chars().any(is_deceptive) {
        return refuse(format!(
            "a comment has at most {COMMENT_LENGTH_MAX} bytes and no control characters"
        ));
    }
    Ok(())
}

/// Writes a rule for the audit.
fn in_words(terms: &Terms) -> String {
    let from: Vec<_> = terms.from.iter().map(ToString::to_string).collect();
    let to: Vec<_> = terms.to.iter().map(ToString::to_string).collect();
    let traffic: Vec<_> = terms.traffic.iter().map(ToString::to_string).collect();
    let (from, to, traffic) = (from.join(","), to.join(","), traffic.join(","));
    format!("from {from} to {to} allow {traffic}")
}

async fn described(
    connection: &mut storage::Connection,
    rule: Rule,
) -> Result<api::Rule, ApiError> {
    let org = storage::org::org(connection, rule.org).await?;
    let terms = rule.terms;
    Ok(api::Rule {
        id: rule.id,
        org: org.ok_or_else(ApiError::not_found)?.name,
        from: terms.from,
        to: terms.to,
        traffic: terms.traffic,
        comment: terms.comment,
        created: Timestamp(rule.created),
    })
}
