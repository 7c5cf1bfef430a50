//! Sites.

mod claim;

use axum::{Json, extract::State, http::StatusCode};
use model::{
    api::{
        self, ErrorBody, ErrorCode, ListQuery, NewSite, Page, SiteChange, SiteHealth, Timestamp,
    },
    id::{NodeId, OrgId, SiteId},
    site::{Alias, Ipv4Prefix, SITE_NODES_MAX, SitePrefix},
};

use self::claim::Claim;
use super::{
    error::ApiError,
    extract::{Asked, Body, Named},
    org_of_list, page,
    permission::Access,
    rows_of_page,
};
use crate::{
    Server,
    storage::{self, Error, Touched, audit::Entry, node::Part, site::Site},
};

/// Most sites of an organisation: every node carries them all.
const SITES_PER_ORG_MAX: u32 = 256;

/// Lists the sites that the asker may know.
#[utoipa::path(get, path = "/v1/sites", params(ListQuery),
    responses((status = 200, body = Page<api::Site>), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(server): State<Server>,
    access: Access,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Page<api::Site>>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let org = org_of_list(&mut read, &access, query.org.as_ref()).await?;
    let (after, limit) = (query.after.unwrap_or(0), rows_of_page(query.limit));
    let sites = storage::site::sites(&mut read, org, query.name.as_ref(), after, limit).await?;
    let mut items = Vec::new();
    for site in sites {
        items.push(described(&server, &mut read, site).await?);
    }
    Ok(Json(page(items, query.limit, |site| site.id.0)))
}

/// Shows a site.
#[utoipa::path(get, path = "/v1/sites/{site}", params(("site" = i64, Path)),
    responses((status = 200, body = api::Site), (status = "4XX", body = ErrorBody)))]
pub(super) async fn show(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SiteId>,
) -> Result<Json<api::Site>, ApiError> {
    let mut read = server.inner.store.read().await?;
    let site = storage::site::site(&mut read, id).await?;
    let site = site.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(site.org), None)?;
    Ok(Json(described(&server, &mut read, site).await?))
}

/// Adds a site behind a node; until a rule names it, nobody reaches its hosts.
#[utoipa::path(post, path = "/v1/sites", request_body = NewSite,
    responses((status = 201, body = api::Site), (status = "4XX", body = ErrorBody)))]
pub(super) async fn add(
    State(server): State<Server>,
    access: Access,
    Body(request): Body<NewSite>,
) -> Result<(StatusCode, Json<api::Site>), ApiError> {
    let name = &request.name;
    let refuse = |code, message: String| Err(ApiError::new(code, message));
    if name.is_reserved() {
        let message = format!("`{name}` has a meaning of its own and cannot name a site");
        return refuse(ErrorCode::NameReserved, message);
    }
    if let Some(fault) = Claim::of_new(&request).fault() {
        return refuse(ErrorCode::MalformedRequest, fault);
    }
    let mut change = server.change().await?;
    let connection = change.connection();
    let mut nodes = vec![request.node];
    nodes.extend(&request.standbys);
    let org = org_of(connection, &access, &nodes).await?;
    let same = storage::site::sites(connection, Some(org), Some(name), 0, 1).await?;
    if let Some(other) = same.first() {
        let message = format!(
            "there is a site `{name}` behind `{}` already",
            other.node_name
        );
        return refuse(ErrorCode::NameTaken, message);
    }
    let claim = Claim::of_new(&request);
    for other in storage::site::sites_of(connection, org).await? {
        let other = Claim::of(&other);
        let clash = claim.clash_of_aliases(other);
        if let Some(clash) = clash.or_else(|| claim.clash_of_prefixes(other)) {
            return refuse(ErrorCode::PrefixTaken, clash);
        }
    }
    if storage::site::count_of(connection, org).await? >= SITES_PER_ORG_MAX {
        let message = format!("an organisation has at most {SITES_PER_ORG_MAX} sites");
        return refuse(ErrorCode::LimitReached, message);
    }
    let now = change.now();
    let connection = change.connection();
    let id = storage::site::insert(connection, now, org, &request).await?;
    let site = storage::site::site(connection, id).await?;
    let site = site.ok_or_else(ApiError::not_found)?;
    let entry = Entry {
        actor: access.actor(),
        action: "site_added",
        subject: in_words(&site),
        org: Some(org),
    };
    let described = described(&server, change.connection(), site).await?;
    server.commit(change, entry, Touched::Org(org)).await?;
    Ok((StatusCode::CREATED, Json(described)))
}

/// Gives a site other nodes or aliases; its own addresses and what rules say of it stay.
#[utoipa::path(patch, path = "/v1/sites/{site}", params(("site" = i64, Path)),
    request_body = SiteChange,
    responses((status = 200, body = api::Site), (status = "4XX", body = ErrorBody)))]
pub(super) async fn set(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SiteId>,
    Body(request): Body<SiteChange>,
) -> Result<Json<api::Site>, ApiError> {
    let mut change = server.change().await?;
    let connection = change.connection();
    let site = storage::site::site(connection, id).await?;
    let site = site.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(site.org), None)?;
    if request.nodes.is_none() && request.aliases.is_none() {
        let message = "name what shall change: `nodes` or `aliases`";
        return Err(ApiError::new(ErrorCode::MalformedRequest, message));
    }
    if let Some(nodes) = &request.nodes {
        if org_of(connection, &access, nodes).await? != site.org {
            return Err(ApiError::not_found());
        }
        if let Some((first, standbys)) = nodes.split_first() {
            storage::site::update_nodes(connection, id, *first, standbys).await?;
        }
    }
    if let Some(aliases) = &request.aliases {
        fit(connection, &site, aliases).await?;
        storage::site::update_aliases(connection, id, aliases).await?;
    }
    let site = storage::site::site(connection, id).await?;
    let site = site.ok_or_else(ApiError::not_found)?;
    let org = site.org;
    let entry = Entry {
        actor: access.actor(),
        action: "site_changed",
        subject: in_words(&site),
        org: Some(org),
    };
    let described = described(&server, connection, site).await?;
    server.commit(change, entry, Touched::Org(org)).await?;
    Ok(Json(described))
}

/// Takes what a gateway has found out about the nodes of a site. Only the gateway that the site's
/// organisation uses is believed.
#[utoipa::path(put, path = "/v1/sites/{site}/health", params(("site" = i64, Path)),
    request_body = SiteHealth,
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn report(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SiteId>,
    Body(request): Body<SiteHealth>,
) -> Result<StatusCode, ApiError> {
    if !(1..=SITE_NODES_MAX).contains(&request.nodes.len()) {
        return Err(number_of_nodes());
    }
    let gateway = access.node.as_ref().ok_or_else(ApiError::not_found)?.id;
    server.learn_site(gateway, id, &request.nodes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a site; rules that name it stay and have no effect.
#[utoipa::path(delete, path = "/v1/sites/{site}", params(("site" = i64, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
pub(super) async fn remove(
    State(server): State<Server>,
    access: Access,
    Named(id): Named<SiteId>,
) -> Result<StatusCode, ApiError> {
    let mut change = server.change().await?;
    let site = storage::site::site(change.connection(), id).await?;
    let site = site.ok_or_else(ApiError::not_found)?;
    access.reaches(Some(site.org), None)?;
    storage::site::delete(change.connection(), id).await?;
    server.inner.carriers.forget(id);
    let entry = Entry {
        actor: access.actor(),
        action: "site_removed",
        subject: in_words(&site),
        org: Some(site.org),
    };
    let touched = Touched::Org(site.org);
    server.commit(change, entry, touched).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the organisation of nodes that shall lead to one site.
async fn org_of(
    connection: &mut storage::Connection,
    access: &Access,
    nodes: &[NodeId],
) -> Result<OrgId, ApiError> {
    let refuse = |message: String| Err(ApiError::new(ErrorCode::MalformedRequest, message));
    if !(1..=SITE_NODES_MAX).contains(&nodes.len()) {
        return Err(number_of_nodes());
    }
    let mut found = None;
    for (at, id) in nodes.iter().enumerate() {
        let node = storage::node::node(connection, *id).await?;
        let node = node
            .filter(|node| node.removed.is_none())
            .ok_or_else(ApiError::not_found)?;
        access.reaches(node.org(), Some(*id))?;
        if nodes[..at].contains(id) {
            return refuse(format!("the node {} is named twice", node.name));
        }
        let Part::Client { org, .. } = node.part else {
            let message = "a gateway leads to no site: name a node behind which it lies";
            return refuse(message.to_owned());
        };
        if found.is_some_and(|found| found != org) {
            return Err(ApiError::not_found());
        }
        if nodes.len() > 1 && storage::peer::peer(connection, *id).await?.is_some() {
            let name = node.name;
            let message = format!("{name} is a plain WireGuard client and answers no probes");
            return refuse(message);
        }
        found = Some(org);
    }
    found.ok_or_else(ApiError::not_found)
}

fn number_of_nodes() -> ApiError {
    let message = format!("a site has 1 to {SITE_NODES_MAX} nodes");
    ApiError::new(ErrorCode::MalformedRequest, message)
}

/// Refuses aliases of a site that mean something else already, or without which its hosts would not
/// be told apart any more.
async fn fit(
    connection: &mut storage::Connection,
    site: &Site,
    aliases: &[Alias],
) -> Result<(), ApiError> {
    let former = Claim::of(site);
    let claim = former.with(aliases);
    if let Some(fault) = claim.fault() {
        return Err(ApiError::new(ErrorCode::MalformedRequest, fault));
    }
    let others = storage::site::sites_of(connection, site.org).await?;
    for other in others.iter().filter(|other| other.id != site.id) {
        let other = Claim::of(other);
        // Sites that were not told apart before become so one after the other.
        let before = former.clash_of_prefixes(other);
        let lost = claim.clash_of_prefixes(other).filter(|_| before.is_none());
        if let Some(clash) = claim.clash_of_aliases(other).or(lost) {
            return Err(ApiError::new(ErrorCode::PrefixTaken, clash));
        }
    }
    Ok(())
}

/// Writes a site for the audit.
fn in_words(site: &Site) -> String {
    let written = |prefix: &Ipv4Prefix| {
        let mut aliases = site.aliases.iter();
        let alias = aliases.find(|alias| alias.prefix() == *prefix);
        alias.map_or_else(|| prefix.to_string(), ToString::to_string)
    };
    let prefixes: Vec<_> = site.prefixes.iter().map(written).collect();
    let prefixes = prefixes.join(",");
    let nodes: Vec<_> = site.nodes().map(|node| format!("node:{node}")).collect();
    let nodes = nodes.join(",");
    format!(
        "site:{} {} {nodes} {prefixes} {}",
        site.id, site.name, site.mode
    )
}

async fn described(
    server: &Server,
    connection: &mut storage::Connection,
    site: Site,
) -> Result<api::Site, ApiError> {
    let network = SitePrefix::new(site.org_prefix, site.id);
    let mut nodes = Vec::new();
    for node in site.nodes() {
        let node_name = if node == site.node {
            site.node_name.clone()
        } else {
            let row = storage::node::node(connection, node).await?;
            row.ok_or(Error::Corrupt("standbys"))?.name
        };
        let told = server.inner.carriers.of(server.now(), site.id, node);
        nodes.push(api::SiteNode {
            node,
            node_name,
            carries: told.map(|told| told.carries),
            health: told.map(|told| told.health),
        });
    }
    Ok(api::Site {
        id: site.id,
        name: site.name,
        org: site.org_name,
        node: site.node,
        node_name: site.node_name,
        nodes,
        prefixes: site.prefixes,
        aliases: site.aliases,
        mode: site.mode,
        network: network.ok_or(Error::Corrupt("id"))?,
        created: Timestamp(site.created),
    })
}
