//! The web page: who sees what, what its forms do, and what hostile text does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use model::{
    api::{AuditEntry, BegunSignIn, Enrolled, Page, Peer, Provider as Settings, Rule, Site},
    key::PublicKey,
    policy::Role,
    ssh::IssuedCertificate,
    token::Token,
};
use serde_json::json;
use url::form_urlencoded;

use crate::{
    provider::{CLIENT, Provider, SECRET},
    world::{World, label},
};

/// A browser with its cookies, which goes where a page sends it.
struct Browser<'a> {
    world: &'a World,
    cookies: BTreeMap<String, String>,
    /// What the forms of the last page carry.
    proof: String,
}

struct Shown {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

/// An Ed25519 public key.
const SSH_KEY: &str = "ssh-ed25519 \
                       AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

const SESSION: &str = "__Host-ginnel-session";

impl<'a> Browser<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            cookies: BTreeMap::new(),
            proof: String::new(),
        }
    }

    /// Signs in by a login token.
    async fn signed_in(world: &'a World, token: &Token) -> Self {
        let mut browser = Self::new(world);
        browser.get("/ui/sign-in").await.is(200);
        let token = token.emit();
        let shown = browser
            .post("/ui/sign-in/token", &[("token", &token)])
            .await;
        shown.leads_to("/ui");
        browser.get("/ui").await.is(200);
        browser
    }

    async fn get(&mut self, path: &str) -> Shown {
        self.send(Method::GET, path, String::new()).await
    }

    /// Sends a form that the last page gave.
    async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Shown {
        let proof = self.proof.clone();
        self.post_with(path, fields, &proof).await
    }

    async fn post_with(&mut self, path: &str, fields: &[(&str, &str)], proof: &str) -> Shown {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("proof", proof).extend_pairs(fields);
        self.send(Method::POST, path, form.finish()).await
    }

    async fn send(&mut self, method: Method, path: &str, body: String) -> Shown {
        let cookies: Vec<_> = self
            .cookies
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::COOKIE, cookies.join("; "))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(body))
            .expect("a well-formed request");
        let router = TowerToHyperService::new(self.world.server.router());
        let response = router.call(request).await.expect("a router always answers");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.expect("a whole body");
        let text = String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8");
        for cookie in headers.get_all(header::SET_COOKIE) {
            let cookie = cookie.to_str().expect("text");
            let (pair, attributes) = cookie.split_once("; ").expect("attributes");
            let (name, value) = pair.split_once('=').expect("a value");
            assert!(
                attributes.ends_with("Secure; HttpOnly; SameSite=Lax"),
                "{cookie}"
            );
            assert!(attributes.starts_with("Path=/; Max-Age="), "{cookie}");
            if attributes.contains("Max-Age=0;") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        if let Some((_, rest)) = text.split_once("name=\"proof\" value=\"") {
            let proof = rest.split('"').next().expect("a value");
            proof.clone_into(&mut self.proof);
        }
        let shown = Shown {
            status,
            headers,
            text,
        };
        shown.is_safe();
        shown
    }
}

impl Shown {
    #[track_caller]
    fn is(&self, status: u16) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
    }

    #[track_caller]
    fn leads_to(&self, path: &str) {
        self.is(303);
        assert_eq!(self.headers[header::LOCATION], path);
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        self.is(200);
        assert!(self.text.contains(text), "no `{text}` in {}", self.text);
    }

    #[track_caller]
    fn lacks(&self, text: &str) {
        self.is(200);
        assert!(!self.text.contains(text), "`{text}` in {}", self.text);
    }

    /// Asserts what holds for every page.
    #[track_caller]
    fn is_safe(&self) {
        let policy = &self.headers[header::CONTENT_SECURITY_POLICY];
        let policy = policy.to_str().expect("text");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(self.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(self.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let is_page = self.text.starts_with("<!DOCTYPE html>");
        assert!(is_page || self.status == StatusCode::SEE_OTHER || self.status == 200);
        if !is_page {
            return;
        }
        assert_eq!(self.text.matches("<script").count(), 1, "{}", self.text);
        for forbidden in ["<img", "<style", " style=\"", "href=\"javascript:", "<b>"] {
            assert!(!self.text.contains(forbidden), "{forbidden}: {}", self.text);
        }
    }
}

/// Text that breaks out of what does not escape it.
pub(crate) fn hostile() -> Vec<String> {
    let mut texts: Vec<_> = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "</textarea></title><script>",
        "$(id)`id`",
        "-rf",
        "a\nb\r\nSet-Cookie: x=y",
        "\u{0}\u{1b}[2J",
        "xn--80ak6aa92e",
        "\u{202e}gnp.exe",
        "javascript:alert(1)",
        "{\"a\":1}",
        "../../v1/orgs",
        "%00%ff",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("a".repeat(255));
    texts.push("é".repeat(1_000));
    texts
}

/// A world with a node of its own and of another organisation.
struct Stage {
    world: World,
    admin: Token,
    web: Enrolled,
    user: i64,
    site: i64,
    rule: i64,
    peer: i64,
    serial: u64,
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        world.add_org(&admin, "other").await;
        let web = world.join(&admin, None, "web", 1).await;
        world.join(&admin, Some("other"), "theirs", 2).await;
        world.gateway(&admin, "edge", 5).await;
        let user = world.invite(&admin, None, "newcomer", Role::Guest).await;
        let body = json!({
            "name": "paris", "node": web.id, "prefixes": ["192.168.1.0/24"],
            "aliases": ["192.168.1.0/24=172.30.1.0/24"]
        });
        let site: Site = world.post("/v1/sites", &admin, &body).await.parse();
        let body = json!({"name": "phone", "public_key": PublicKey([30; 32])});
        let peer: Peer = world.post("/v1/peers", &admin, &body).await.parse();
        let rules = world.get("/v1/rules?org=default", &admin).await;
        let body = json!({"public_key": SSH_KEY});
        let path = "/v1/ssh/user-certificate";
        let issued: IssuedCertificate = world.post(path, &admin, &body).await.parse();
        Self {
            user: user.user.id.0,
            site: site.id.0,
            rule: rules.parse::<Page<Rule>>().items[0].id.0,
            peer: peer.id.0,
            serial: issued.serial.0,
            world,
            admin,
            web,
        }
    }

    /// Returns a path about the things of this stage.
    fn path(&self, path: &str) -> String {
        path.replace("{node}", &self.web.id.to_string())
            .replace("{user}", &self.user.to_string())
            .replace("{site}", &self.site.to_string())
            .replace("{rule}", &self.rule.to_string())
            .replace("{peer}", &self.peer.to_string())
            .replace("{serial}", &self.serial.to_string())
    }

    /// Signs somebody in at a browser: nobody, an operator, one of a role, or a stranger.
    async fn browser(&self, who: &str) -> Browser<'_> {
        let (org, role) = match who {
            "anyone" => return Browser::new(&self.world),
            "operator" => {
                let token = self.world.server.admin_token().await.expect("a token");
                return Browser::signed_in(&self.world, &token.token).await;
            }
            "stranger" => (Some("other"), Role::Admin),
            role => (
                None,
                Role::ALL
                    .into_iter()
                    .find(|one| one.name() == role)
                    .expect("a role"),
            ),
        };
        let invited = self
            .world
            .invite(&self.admin, org, &format!("the-{who}"), role)
            .await;
        Browser::signed_in(&self.world, &invited.token).await
    }

    /// Gives the organisation an identity provider.
    async fn provider(&self) -> Provider {
        let provider = Provider::new(&self.world.clock);
        let settings = json!({
            "issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET,
            "scopes": ["offline_access"], "groups_claim": "groups",
            "roles": { "dev": "developer" },
        });
        let (bearer, body) = (self.admin.emit(), Some(settings.to_string()));
        let path = "/v1/oidc/provider";
        let set = self.world.request(Method::PUT, path, Some(&bearer), body);
        set.await.parse::<Settings>();
        provider
    }

    async fn audit(&self) -> Vec<AuditEntry> {
        let page: Page<AuditEntry> = self.world.get("/v1/audit", &self.admin).await.parse();
        page.items
    }
}

const ASKERS: [&str; 6] = [
    "anyone",
    "operator",
    "admin",
    "developer",
    "guest",
    "stranger",
];

/// Every form, with what makes it succeed.
const FORMS: &[(&str, &[(&str, &str)])] = &[
    ("/ui/nodes", &[]),
    (
        "/ui/nodes/{node}",
        &[("name", "renamed"), ("tags", "db prod")],
    ),
    ("/ui/nodes/{node}/approval", &[]),
    ("/ui/nodes/{node}/expiry", &[("days", "3")]),
    ("/ui/nodes/{node}/remove", &[]),
    ("/ui/users", &[("name", "new"), ("role", "guest")]),
    (
        "/ui/users/{user}",
        &[("name", "renamed"), ("role", "admin")],
    ),
    ("/ui/users/{user}/token", &[]),
    ("/ui/users/{user}/remove", &[]),
    (
        "/ui/sites",
        &[
            ("name", "lyon"),
            ("node", "web"),
            ("prefixes", "10.0.0.0/8"),
            ("mode", "auto"),
        ],
    ),
    ("/ui/sites/{site}/remove", &[]),
    (
        "/ui/policy",
        &[
            ("from", "role:admin"),
            ("to", "* site:paris"),
            ("traffic", "22"),
            ("comment", "why"),
        ],
    ),
    ("/ui/policy/{rule}/remove", &[]),
    (
        "/ui/peers",
        &[
            ("name", "tablet"),
            ("user", "newcomer"),
            ("public_key", ""),
            ("days", "3"),
        ],
    ),
    ("/ui/peers/{peer}/export", &[("public_key", "")]),
    ("/ui/peers/{peer}/remove", &[]),
    ("/ui/certificates/{serial}/revoke", &[]),
];

const PAGES: &[&str] = &[
    "/ui",
    "/ui/nodes",
    "/ui/users",
    "/ui/sites",
    "/ui/policy",
    "/ui/peers",
    "/ui/certificates",
    "/ui/audit",
];

/// Routes that need nobody signed in, or end that.
const OPEN: &[&str] = &[
    "/",
    "/ui/page.css",
    "/ui/page.js",
    "/ui/qrcode.mjs",
    "/ui/sign-in",
    "/ui/sign-in/provider",
    "/ui/sign-in/token",
    "/ui/sign-out",
];

#[test]
fn every_route_of_the_page_is_in_these_tests() {
    let source = include_str!("../../src/api/page.rs");
    let routes: BTreeSet<_> = source
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    let forms = FORMS.iter().map(|(path, _)| *path);
    let known: BTreeSet<_> = forms.chain(PAGES.iter().chain(OPEN).copied()).collect();
    assert_eq!(routes, known);
}

#[tokio::test]
async fn only_who_may_gets_a_page() {
    let mut table = format!("{:32}{}\n", "", columns(&ASKERS));
    let mut stage;
    let gets = PAGES.iter().map(|path| (Method::GET, *path, &[][..]));
    let posts = FORMS
        .iter()
        .map(|(path, fields)| (Method::POST, *path, *fields));
    for (method, path, fields) in gets.chain(posts) {
        let mut cells = Vec::new();
        stage = Stage::new().await;
        for who in ASKERS {
            let concrete = stage.path(path);
            let mut browser = stage.browser(who).await;
            let shown = if method == Method::GET {
                browser.get(&concrete).await
            } else {
                browser.post(&concrete, fields).await
            };
            cells.push(shown.status.as_u16().to_string());
            if method == Method::POST && shown.status.as_u16() < 400 {
                drop(browser);
                stage = Stage::new().await;
            }
        }
        let cells: Vec<_> = cells.iter().map(String::as_str).collect();
        writeln!(
            table,
            "{:32}{}",
            format!("{method} {path}"),
            columns(&cells)
        )
        .unwrap();
    }
    insta::assert_snapshot!(table);
}

fn columns(cells: &[&str]) -> String {
    let line: String = cells.iter().map(|cell| format!("{cell:10}")).collect();
    line.trim_end().to_owned()
}

#[tokio::test]
async fn a_person_signs_in_once_by_a_token_and_out_again() {
    let stage = Stage::new().await;
    let invited = stage
        .world
        .invite(&stage.admin, None, "eve", Role::Admin)
        .await;
    let mut browser = Browser::signed_in(&stage.world, &invited.token).await;
    browser.get("/").await.leads_to("/ui");
    browser.get("/ui").await.shows("eve");
    let nodes = browser.get("/ui/nodes").await;
    nodes.shows("<strong>web</strong>");
    nodes.lacks("theirs");
    nodes.lacks("UDP over");
    let tunnel = json!({
        "public_key": PublicKey([1; 32]), "handshake": 1, "transport": "udp_ipv6",
        "received_bytes": 2_048, "sent_bytes": 7,
    });
    let report = serde_json::from_value(json!({ "tunnels": [tunnel] }));
    let report = report.expect("a report");
    stage.world.server.report_tunnels(&report);
    let nodes = browser.get("/ui/nodes").await;
    nodes.shows("UDP over IPv6, 2.0 KiB sent, 7 B received");
    let mut second = Browser::new(&stage.world);
    second.get("/ui/sign-in").await.is(200);
    let token = invited.token.emit();
    let refused = second.post("/ui/sign-in/token", &[("token", &token)]).await;
    refused.is(401);
    assert!(
        refused.text.contains("as often as it may"),
        "{}",
        refused.text
    );
    let cookie = browser.cookies[SESSION].clone();
    browser
        .post("/ui/sign-out", &[])
        .await
        .leads_to("/ui/sign-in");
    assert!(!browser.cookies.contains_key(SESSION));
    browser.cookies.insert(SESSION.to_owned(), cookie);
    browser.get("/ui/nodes").await.leads_to("/ui/sign-in");
    let rows = stage.audit().await;
    let actions: Vec<_> = rows
        .iter()
        .rev()
        .take(2)
        .map(|row| row.action.as_str())
        .collect();
    assert_eq!(actions, ["browser_signed_out", "browser_signed_in"]);
    assert_eq!(
        rows.last().unwrap().actor,
        format!("user:{}", invited.user.id)
    );
}

#[tokio::test]
async fn a_browser_is_out_when_its_time_or_its_person_is_gone() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let mut browser = stage.browser("admin").await;
    world.pass(12 * 60 * 60 - 1);
    browser.get("/ui/nodes").await.is(200);
    world.pass(1);
    browser.get("/ui/nodes").await.leads_to("/ui/sign-in");
    let invited = world.invite(&stage.admin, None, "eve", Role::Admin).await;
    let mut browser = Browser::signed_in(world, &invited.token).await;
    browser.get("/ui/users").await.is(200);
    // The role holds at once, and so does the removal.
    let path = format!("/v1/users/{}", invited.user.id);
    let body = json!({ "role": "developer" });
    assert!(
        world
            .patch(&path, &stage.admin, &body)
            .await
            .status
            .is_success()
    );
    browser.get("/ui/users").await.is(403);
    browser.get("/ui/nodes").await.is(200);
    world.delete(&path, &stage.admin).await;
    browser.get("/ui/nodes").await.leads_to("/ui/sign-in");
}

#[tokio::test]
async fn a_form_counts_only_from_a_page_that_this_browser_got() {
    let stage = Stage::new().await;
    let mut admin = stage.browser("admin").await;
    let mut other = stage.browser("operator").await;
    admin.get("/ui/nodes").await.is(200);
    other.get("/ui/nodes").await.is(200);
    let foreign = other.proof.clone();
    let own = admin.proof.clone();
    for (path, fields) in FORMS.iter().chain([&("/ui/sign-out", &[][..])]) {
        let path = stage.path(path);
        for proof in ["", "AAAA", "%", &foreign, &own[1..]] {
            admin.post_with(&path, fields, proof).await.is(403);
        }
        admin.send(Method::POST, &path, String::new()).await.is(403);
    }
    let mut nobody = Browser::new(&stage.world);
    for path in ["/ui/sign-in/token", "/ui/sign-in/provider"] {
        nobody.post_with(path, &[], &own).await.is(403);
    }
    let before = stage.audit().await;
    let last = &before.last().unwrap().action;
    assert_eq!(last, "browser_signed_in", "a form changed something");
    admin.get("/ui/nodes").await.shows("<strong>web</strong>");
}

#[tokio::test]
async fn a_form_leaves_the_rows_that_the_command_line_leaves() {
    let stage = Stage::new().await;
    let mut browser = stage.browser("admin").await;
    let actor = stage.audit().await.last().unwrap().actor.clone();
    let (node, user) = (stage.web.id, stage.user);
    let path = |rest: &str| format!("/ui/nodes/{node}{rest}");
    let fields = [("name", "db"), ("tags", "prod, east prod")];
    browser.post(&path(""), &fields).await.leads_to("/ui/nodes");
    browser.get("/ui/nodes").await.shows("<strong>db</strong>");
    browser.get("/ui/nodes").await.shows("east prod");
    browser.post("/ui/nodes", &[]).await.shows("ginnel-join-");
    browser
        .post(&path("/remove"), &[])
        .await
        .leads_to("/ui/nodes");
    browser
        .get("/ui/nodes?name=db")
        .await
        .shows("There is no such node.");
    let invited = browser
        .post("/ui/users", &[("name", "eve"), ("role", "developer")])
        .await;
    invited.shows("/ui/sign-in#ginnel-login-");
    let path = format!("/ui/users/{user}");
    let fields = [("name", "dora"), ("role", "developer")];
    browser.post(&path, &fields).await.leads_to("/ui/users");
    browser
        .get("/ui/users")
        .await
        .shows("<strong>dora</strong>");
    browser
        .post(&format!("{path}/remove"), &[])
        .await
        .leads_to("/ui/users");
    let rows = stage.audit().await;
    let rows = &rows[rows.len() - 6..];
    assert!(rows.iter().all(|row| row.actor == actor), "{rows:?}");
    let said: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row.action, row.subject))
        .collect();
    assert_eq!(
        said[0],
        format!("node_changed node:{node} name db tags east,prod")
    );
    assert!(said[1].starts_with("token_added token:"), "{said:?}");
    assert_eq!(said[2], format!("node_removed node:{node} db"));
    assert!(said[3].starts_with("user_added user:"), "{said:?}");
    assert_eq!(said[4], format!("user_changed user:{user} dora developer"));
    assert_eq!(said[5], format!("user_removed user:{user} dora"));
}

#[tokio::test]
async fn sites_rules_clients_certificates_and_changes_are_shown_and_explained() {
    let stage = Stage::new().await;
    let mut browser = stage.browser("admin").await;
    browser.get("/ui/sites").await.shows("192.168.1.0/24");
    browser.get("/ui/sites").await.shows("alias 172.30.1.0/24");
    let fields = [
        ("from", "user:eve"),
        ("to", "node:web"),
        ("traffic", "5432"),
    ];
    let comment = "<b>\"why\"</b> & $(id)";
    let mut with_comment = fields.to_vec();
    with_comment.push(("comment", comment));
    browser
        .post("/ui/policy", &with_comment)
        .await
        .leads_to("/ui/policy");
    let shown = browser.get("/ui/policy").await;
    shown.shows("&lt;b&gt;&quot;why&quot;&lt;/b&gt; &amp; $(id)");
    shown.shows("5432");
    browser
        .get("/ui/peers")
        .await
        .shows("<strong>phone</strong>");
    browser.get("/ui/nodes").await.shows("plain WireGuard");
    let exported = browser
        .post(&stage.path("/ui/peers/{peer}/export"), &[])
        .await;
    exported.shows("# PrivateKey = the one of the device");
    exported.shows("Endpoint = edge.example:51820");
    browser
        .post("/ui/peers", &[("name", "tablet")])
        .await
        .leads_to("/ui/peers");
    browser
        .get("/ui/certificates")
        .await
        .shows(&format!("\"Serial\">{}<", stage.serial));
    let path = stage.path("/ui/certificates/{serial}/revoke");
    browser.post(&path, &[]).await.leads_to("/ui/certificates");
    browser.get("/ui/certificates").await.shows("revoked");
    browser.get("/ui/audit").await.shows("rule_added");
    browser
        .get("/ui/audit?action=peer_added")
        .await
        .lacks("rule_added");
    stage.world.pass(8 * 24 * 60 * 60);
    let mut later = stage.browser("operator").await;
    later.get("/ui/audit").await.lacks("rule_added");
    later
        .get("/ui/audit?days=30&actor=the-admin")
        .await
        .shows("rule_added");
}

#[tokio::test]
async fn a_question_is_answered_with_the_rule_that_decides() {
    let stage = Stage::new().await;
    let mut browser = stage.browser("admin").await;
    let question = "/ui/policy?from=node:laptop&to=node:web&wanted=22/tcp";
    let removal = stage.path("/ui/policy/{rule}/remove");
    browser.post(&removal, &[]).await.leads_to("/ui/policy");
    let shown = browser.get(question).await;
    shown.shows("class=\"bad\">No.</strong>");
    let fields = [
        ("from", "user:admin"),
        ("to", "node:web"),
        ("traffic", "22"),
    ];
    browser
        .post("/ui/policy", &fields)
        .await
        .leads_to("/ui/policy");
    let shown = browser.get(question).await;
    shown.shows("class=\"good\">Yes.</strong>");
    shown.shows("allows it.");
    browser
        .get("/ui/policy?from=nonsense:x&to=web")
        .await
        .is(400);
}

#[tokio::test]
async fn hostile_text_in_forms_and_queries_is_refused_or_stays_text() {
    let stage = Stage::new().await;
    let mut browser = stage.browser("operator").await;
    for text in hostile() {
        let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
        for page in PAGES {
            let all = [
                "org", "name", "after", "actor", "action", "days", "from", "to",
            ];
            for names in [&all[..], &all[1..], &all[3..]] {
                let query: Vec<_> = names
                    .iter()
                    .map(|name| format!("{name}={encoded}"))
                    .collect();
                let shown = browser.get(&format!("{page}?{}", query.join("&"))).await;
                assert!(shown.status.as_u16() < 500, "{page} {names:?} {text:?}");
            }
        }
        for (path, fields) in FORMS.iter().filter(|(path, _)| !path.ends_with("/remove")) {
            let path = stage.path(path);
            for at in 0..=fields.len() {
                let mut fields = fields.to_vec();
                match fields.get_mut(at) {
                    Some(field) => field.1 = &text,
                    None => fields.push(("org", &text)),
                }
                let shown = browser.post(&path, &fields).await;
                let status = shown.status.as_u16();
                assert!(status < 500, "{path} {fields:?} {}", shown.text);
            }
        }
        for path in ["/ui/nodes/{}/remove", "/ui/users/{}", "/ui/users/{}/token"] {
            let path = path.replace("{}", &encoded);
            browser.post(&path, &[("name", "x")]).await.is(404);
        }
        let mut nobody = Browser::new(&stage.world);
        nobody.get("/ui/sign-in").await.is(200);
        for (path, name) in [
            ("/ui/sign-in/token", "token"),
            ("/ui/sign-in/provider", "org"),
        ] {
            let shown = nobody.post(path, &[(name, &text)]).await;
            assert!(
                (400..500).contains(&shown.status.as_u16()),
                "{path} {text:?}"
            );
        }
        let shown = nobody.get(&format!("/ui/callback?error={encoded}")).await;
        shown.is(401);
    }
    // What is written in fewer letters outside than inside.
    let long = format!("/ui/nodes?name={}", "~".repeat(30_000));
    browser.get(&long).await.is(400);
    let long = "a".repeat(20_000);
    browser.post("/ui/users", &[("name", &long)]).await.is(413);
    for page in PAGES {
        browser.get(page).await.is(200);
    }
}

#[tokio::test]
async fn a_person_signs_in_by_her_provider_for_an_hour_and_it_can_sign_her_out() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let provider = stage.provider().await;
    provider.state().refreshes = false;

    let mut browser = Browser::new(world);
    let callback = begin(&mut browser, &provider).await;
    // The answer counts in this browser alone, as it came, and once.
    let mut thief = Browser::new(world);
    thief.get(&callback).await.is(401);
    let mangled = callback.replace("state=", "state=x");
    browser.get(&mangled).await.is(401);
    let begun = browser.cookies.clone();
    browser.get(&callback).await.leads_to("/ui");
    browser.get("/ui").await.shows("developer");
    let mut again = Browser::new(world);
    again.cookies = begun;
    again.get(&callback).await.is(401);
    let rows = stage.audit().await;
    let row = rows
        .iter()
        .rev()
        .find(|row| row.action == "browser_signed_in")
        .unwrap();
    assert!(
        row.subject.contains(&format!("of {}", provider.issuer)),
        "{row:?}"
    );
    world.pass(60 * 60 - 1);
    browser.get("/ui/nodes").await.is(200);
    world.pass(1);
    browser.get("/ui/nodes").await.leads_to("/ui/sign-in");

    let callback = begin(&mut browser, &provider).await;
    browser.get(&callback).await.leads_to("/ui");
    let token = provider.logout_token("subject-1");
    let request = Request::post("/v1/oidc/logout/default")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from(format!("logout_token={token}")));
    assert!(world.send(request.unwrap()).await.status.is_success());
    browser.get("/ui/nodes").await.leads_to("/ui/sign-in");
    let rows = stage.audit().await;
    assert_eq!(rows.last().unwrap().action, "browser_session_ended");
}

/// She has no device, so that nothing but her browsers is there to be asked about.
#[tokio::test]
async fn a_browser_is_signed_in_for_as_long_as_the_provider_confirms_it() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let provider = stage.provider().await;
    let confirm = async |seconds: u64| {
        world.pass(seconds);
        world.server.revalidate().await.expect("the store answers");
    };
    let mut browsers = [Browser::new(world), Browser::new(world)];
    for browser in &mut browsers {
        let callback = begin(browser, &provider).await;
        browser.get(&callback).await.leads_to("/ui");
    }
    let [mut first, mut second] = browsers;
    // The provider of the tests knows one refresh token, the last: it refuses the first browser's.
    confirm(60).await;
    first.get("/ui").await.leads_to("/ui/sign-in");
    second.get("/ui").await.leads_to("/ui/sign-in");

    let callback = begin(&mut first, &provider).await;
    first.get(&callback).await.leads_to("/ui");
    // Longer than the hour that nobody is trusted for without an answer, and another role.
    for _ in 0..3 {
        confirm(30 * 60).await;
        first.get("/ui").await.shows("developer");
    }
    provider.state().claims = json!({ "groups": [] });
    confirm(60).await;
    first.get("/ui").await.shows("guest");
    provider.state().is_down = true;
    confirm(59 * 60).await;
    first.get("/ui").await.is(200);
    confirm(60).await;
    first.get("/ui").await.leads_to("/ui/sign-in");
    provider.state().is_down = false;

    let callback = begin(&mut first, &provider).await;
    first.get(&callback).await.leads_to("/ui");
    provider.state().refresh_error = Some("invalid_grant");
    confirm(60).await;
    first.get("/ui").await.leads_to("/ui/sign-in");
    let rows = stage.audit().await;
    let last = rows.last().expect("a row");
    assert_eq!(last.action, "browser_session_ended");
    let why = "the identity provider refuses: invalid_grant";
    assert!(last.subject.contains(why), "{last:?}");
    assert!(last.subject.contains(" browser:"), "{last:?}");
    provider.state().refresh_error = None;

    // A working day is the longest.
    let callback = begin(&mut first, &provider).await;
    first.get(&callback).await.leads_to("/ui");
    for _ in 0..12 {
        first.get("/ui").await.is(200);
        confirm(60 * 60).await;
    }
    first.get("/ui").await.leads_to("/ui/sign-in");
}

/// Begins a sign-in and has the provider answer. Returns where the browser comes back.
async fn begin(browser: &mut Browser<'_>, provider: &Provider) -> String {
    browser.get("/ui/sign-in").await.is(200);
    let shown = browser
        .post("/ui/sign-in/provider", &[("org", "default")])
        .await;
    shown.is(200);
    let url = shown
        .text
        .split("href=\"")
        .find(|text| text.starts_with("https://"));
    let url = url.and_then(|rest| rest.split('"').next()).expect("a link");
    let url = url.replace("&amp;", "&");
    assert!(url.contains("redirect_uri=https%3A%2F%2Fvpn.example%3A443%2Fui%2Fcallback"));
    let answer = provider.authorize(&url);
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("code", answer.code.expose());
    query.append_pair("state", &answer.state);
    query.append_pair("iss", &answer.iss.expect("it names itself"));
    format!("/ui/callback?{}", query.finish())
}

#[tokio::test]
async fn the_sign_in_of_a_device_lets_no_browser_in_and_that_of_a_browser_no_device() {
    let stage = Stage::new().await;
    let world = &stage.world;
    let provider = Provider::new(&world.clock);
    let settings = json!({
        "issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET,
        "groups_claim": "groups",
    });
    let (bearer, body) = (stage.admin.emit(), Some(settings.to_string()));
    world
        .request(Method::PUT, "/v1/oidc/provider", Some(&bearer), body)
        .await
        .json();
    let post = async |path: &str, body: serde_json::Value| {
        let body = Some(body.to_string());
        world.request(Method::POST, path, None, body).await
    };
    let key = PublicKey([9; 32]);
    let body = json!({ "org": "default", "public_key": key, "redirect_port": 4567 });
    let begun: BegunSignIn = post("/v1/oidc/sign-ins", body).await.parse();
    let answer = provider.authorize(&begun.url);
    let mut browser = Browser::new(world);
    let attempt = begun.attempt.expose().to_owned();
    browser
        .cookies
        .insert("__Host-ginnel-attempt".to_owned(), attempt);
    let (code, state) = (answer.code.expose(), &answer.state);
    let iss: String = form_urlencoded::byte_serialize(provider.issuer.as_bytes()).collect();
    let path = format!("/ui/callback?code={code}&state={state}&iss={iss}");
    browser.get(&path).await.is(401);
    assert!(!browser.cookies.contains_key(SESSION));

    let callback = begin(&mut browser, &provider).await;
    let attempt = &browser.cookies["__Host-ginnel-attempt"];
    let query = callback.split_once('?').expect("a query").1;
    let parts: BTreeMap<_, _> = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let answer = json!({ "code": parts["code"], "state": parts["state"], "iss": parts["iss"] });
    let body = json!({ "attempt": attempt, "name": label("stolen"), "answer": answer });
    let reply = post("/v1/oidc/sessions", body).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{}", reply.text());
}

#[tokio::test]
async fn a_machine_that_waits_is_approved_and_given_an_end_by_two_buttons() {
    let stage = Stage::new().await;
    let mut browser = stage.browser("admin").await;
    browser.get("/ui/nodes").await.lacks("Approve");
    let shown = browser.post("/ui/nodes", &[("approval", "needed")]).await;
    shown.is(200);
    let (_, rest) = shown.text.split_once("ginnel-join-").expect("a token");
    let token = format!("ginnel-join-{}", rest.split('<').next().expect("its end"));
    let request = json!({"name": "db", "public_key": PublicKey([40; 32])}).to_string();
    let world = &stage.world;
    let joined = world.request(Method::POST, "/v1/join", Some(&token), Some(request));
    let node = joined.await.parse::<Enrolled>().id;
    let listed = browser.get("/ui/nodes").await;
    listed.shows("waits for approval");
    listed.shows(&PublicKey([40; 32]).to_string());
    for (button, path) in [("Let it in", "approval"), ("Set its end", "expiry")] {
        listed.shows(button);
        listed.shows(&format!("action=\"/ui/nodes/{node}/{path}\""));
    }
    let path = format!("/ui/nodes/{node}");
    let approve = browser.post(&format!("{path}/approval"), &[]).await;
    approve.leads_to("/ui/nodes");
    browser.get("/ui/nodes").await.lacks("waits for approval");
    let expiry = format!("{path}/expiry");
    browser.post(&expiry, &[("days", "soon")]).await.is(400);
    browser.post(&expiry, &[("days", "99999")]).await.is(400);
    let expire = browser.post(&expiry, &[("days", "30")]).await;
    expire.leads_to("/ui/nodes");
    browser
        .get("/ui/nodes")
        .await
        .shows("2026-01-31 00:00:00 UTC");
    browser
        .post(&expiry, &[("days", "0")])
        .await
        .leads_to("/ui/nodes");
    browser.get("/ui/nodes").await.shows("expired");
    browser
        .post(&expiry, &[("days", "")])
        .await
        .leads_to("/ui/nodes");
    browser.get("/ui/nodes").await.lacks("expired");
    let rows = stage.audit().await;
    let rows: Vec<_> = rows.iter().rev().take(4).map(|row| &*row.action).collect();
    let changed = "node_expiry_changed";
    assert_eq!(rows, [changed, "node_expired", changed, "node_approved"]);
}
