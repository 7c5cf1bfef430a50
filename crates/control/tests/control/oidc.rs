//! People sign in by an identity provider, and are out when it says so.

use axum::http::{Method, StatusCode};
use model::{
    api::{
        AuditEntry, AuthorizationResponse, BegunSignIn, ErrorCode, LoggedIn, Page, PendingSignIn,
        Provider as Settings, User, WhoAmI,
    },
    key::PublicKey,
    map::NetworkMap,
    policy::Role,
    token::Token,
};
use serde_json::{Value, json};

use crate::{
    provider::{CLIENT, Provider, SECRET},
    world::{Reply, World},
};

/// A world whose first organisation has a provider.
struct Scene {
    world: World,
    provider: Provider,
    admin: Token,
}

impl Scene {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        let provider = Provider::new(&world.clock);
        let scene = Self {
            world,
            provider,
            admin,
        };
        scene.set(&scene.settings()).await.parse::<Settings>();
        scene
    }

    fn settings(&self) -> Value {
        json!({
            "issuer": self.provider.issuer, "client_id": CLIENT, "client_secret": SECRET,
            "scopes": ["offline_access"], "groups_claim": "groups",
            "roles": { "dev": "developer", "ops": "admin" },
        })
    }

    async fn set(&self, body: &Value) -> Reply {
        let bearer = self.admin.emit();
        let body = Some(body.to_string());
        let (method, path) = (Method::PUT, "/v1/oidc/provider");
        self.world.request(method, path, Some(&bearer), body).await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        let body = Some(body.to_string());
        self.world.request(Method::POST, path, None, body).await
    }

    async fn begin(&self, key: u8) -> BegunSignIn {
        let key = PublicKey([key; 32]);
        let body = json!({ "org": "default", "public_key": key, "redirect_port": 4567 });
        self.post("/v1/oidc/sign-ins", &body).await.parse()
    }

    async fn end(
        &self,
        begun: &BegunSignIn,
        name: &str,
        answer: Option<&AuthorizationResponse>,
    ) -> Reply {
        let body = json!({ "attempt": begun.attempt, "name": name, "answer": answer });
        self.post("/v1/oidc/sessions", &body).await
    }

    /// Signs in with a browser on a device.
    async fn sign_in(&self, name: &str, key: u8) -> Reply {
        let begun = self.begin(key).await;
        let answer = self.provider.authorize(&begun.url);
        self.end(&begun, name, Some(&answer)).await
    }

    async fn confirm(&self, seconds: u64) {
        self.world.pass(seconds);
        let confirmed = self.world.server.revalidate().await;
        confirmed.expect("the store answers");
    }

    async fn audit(&self) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let mut path = "/v1/audit".to_owned();
        loop {
            let page: Page<AuditEntry> = self.world.get(&path, &self.admin).await.parse();
            rows.extend(page.items.into_iter().map(|row| (row.action, row.subject)));
            match page.next {
                Some(next) => path = format!("/v1/audit?after={next}"),
                None => return rows,
            }
        }
    }

    #[track_caller]
    fn assert_last(rows: &[(String, String)], action: &str, subject: &str) {
        let last = rows.last().expect("a row");
        assert!(last.0 == action && last.1.contains(subject), "{last:?}");
    }

    /// Asserts that a device is in the network or not.
    async fn is_in(&self, signed_in: &LoggedIn, expected: bool) {
        let tokens = [&signed_in.session_token, &signed_in.device.node_token];
        for token in tokens {
            let reply = self.world.get("/v1/whoami", token).await;
            if expected {
                reply.parse::<WhoAmI>();
            } else {
                reply.is(ErrorCode::NodeRemoved);
            }
        }
    }
}

#[tokio::test]
async fn a_person_signs_in_and_is_known_by_issuer_and_subject() {
    let scene = Scene::new().await;
    let first: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    assert_eq!(first.user_name.as_str(), "alice");
    let whoami: WhoAmI = scene
        .world
        .get("/v1/whoami", &first.session_token)
        .await
        .parse();
    assert_eq!(whoami.role, Some(Role::Developer));
    // Another device of the same person, who has another name at the provider now.
    scene.provider.state().claims = json!({ "preferred_username": "alice-married" });
    let second: LoggedIn = scene.sign_in("desk-a", 2).await.parse();
    assert_eq!(
        (second.user, second.user_name.as_str()),
        (first.user, "alice")
    );
    // Another person with the same name and the same address.
    scene.provider.state().claims = json!({ "sub": "subject-2", "email": "alice@example.org" });
    let other: LoggedIn = scene.sign_in("laptop-b", 3).await.parse();
    assert_ne!(other.user, first.user);
    assert_eq!(other.user_name.as_str(), "alice-2");
    // Whom an administrator invited is nobody at the provider, whatever she is called.
    scene.provider.state().claims = json!({ "sub": "subject-3", "preferred_username": "admin" });
    let third: LoggedIn = scene.sign_in("laptop-c", 4).await.parse();
    assert_eq!(third.user_name.as_str(), "admin-2");
    // The same key again is the same device, under its old address.
    scene.provider.state().claims = json!({});
    let again: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    assert_eq!(again.device.address, first.device.address);
    scene
        .world
        .get("/v1/whoami", &first.session_token)
        .await
        .is(ErrorCode::TokenRevoked);
    let log = crate::world::log();
    for secret in [SECRET, "refresh-", "code-1"] {
        assert!(!log.contains(secret), "the log holds `{secret}`");
    }
}

#[tokio::test]
async fn groups_give_the_role_wherever_they_stand_and_unknown_ones_make_a_guest() {
    let scene = Scene::new().await;
    let role = async |key: u8, claims: Value, userinfo: Value| {
        scene.provider.state().claims = claims;
        scene.provider.state().userinfo = userinfo;
        let signed_in = scene.sign_in(&format!("device-{key}"), key).await;
        let signed_in: LoggedIn = signed_in.parse();
        let whoami = scene
            .world
            .get("/v1/whoami", &signed_in.session_token)
            .await;
        whoami.parse::<WhoAmI>().role.expect("a person")
    };
    let nothing = Value::Null;
    let sub = |n: u32, groups: Value| json!({ "sub": format!("s{n}"), "groups": groups });
    assert_eq!(
        role(1, sub(1, json!(["ops", "dev"])), nothing.clone()).await,
        Role::Admin
    );
    assert_eq!(
        role(2, sub(2, json!([])), nothing.clone()).await,
        Role::Guest
    );
    assert_eq!(
        role(3, sub(3, json!(["admin", "OPS"])), nothing.clone()).await,
        Role::Guest
    );
    // Not in the ID token, but at UserInfo.
    let userinfo = json!({ "sub": "s4", "groups": ["dev"] });
    assert_eq!(
        role(4, sub(4, nothing.clone()), userinfo).await,
        Role::Developer
    );
    // UserInfo of another person.
    scene.provider.state().claims = sub(5, nothing);
    scene.provider.state().userinfo = json!({ "sub": "s1", "groups": ["ops"] });
    scene
        .sign_in("device-5", 5)
        .await
        .is(ErrorCode::SignInRefused);
    // A path into the claims.
    let mut settings = scene.settings();
    settings["groups_claim"] = json!("/realm_access/roles");
    scene.set(&settings).await.parse::<Settings>();
    let claims = json!({ "sub": "s6", "realm_access": { "roles": ["ops"] } });
    assert_eq!(role(6, claims, Value::Null).await, Role::Admin);
}

#[tokio::test]
async fn a_token_that_is_not_right_signs_nobody_in() {
    let scene = Scene::new().await;
    let now = 1_767_225_600;
    let mut key = 10;
    let mut refused = async |why: &str| {
        key += 1;
        let (status, code, message) = scene.sign_in("laptop-x", key).await.refused();
        assert_eq!((status, code), (401, ErrorCode::SignInRefused), "{message}");
        assert!(message.contains(why), "{message}");
        Scene::assert_last(&scene.audit().await, "oidc_sign_in_refused", why);
    };
    for (claims, why) in [
        (json!({ "exp": now - 61 }), "expired"),
        (json!({ "iss": "https://evil.example" }), "another issuer"),
        (json!({ "aud": "other" }), "another audience"),
        (json!({ "nonce": "other" }), "another sign-in"),
        (json!({ "nonce": null }), "another sign-in"),
    ] {
        scene.provider.state().claims = claims;
        refused(why).await;
    }
    scene.provider.state().claims = json!({});
    let none = |claims: &Value| {
        let part =
            |value: &Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        format!("{}.{}.", part(&json!({ "alg": "none" })), part(claims))
    };
    let claims = json!({
        "iss": scene.provider.issuer, "aud": CLIENT, "sub": "subject-1", "exp": now + 300,
        "iat": now
    });
    scene.provider.state().id_token = Some(none(&claims));
    refused("no signed token").await;
    let stranger = Provider::new(&scene.world.clock);
    scene.provider.state().id_token = Some(stranger.sign(&claims));
    refused("signature is not the provider's").await;
    let users: Page<User> = scene.world.get("/v1/users", &scene.admin).await.parse();
    assert_eq!(users.items.len(), 1, "{users:?}");
}

#[tokio::test]
async fn a_sign_in_ends_once_where_it_began_and_in_time() {
    let scene = Scene::new().await;
    let (begun, other) = (scene.begin(1).await, scene.begin(2).await);
    let answer = scene.provider.authorize(&begun.url);
    // The answer of one sign-in is none to another.
    scene
        .end(&other, "x", Some(&answer))
        .await
        .is(ErrorCode::SignInRefused);
    scene
        .end(&begun, "x", None)
        .await
        .is(ErrorCode::SignInRefused);
    // Another provider's answer, and one that does not say whose it is.
    let mut foreign = answer.clone();
    for iss in [Some("https://evil.example".to_owned()), None] {
        foreign.iss = iss;
        scene
            .end(&begun, "x", Some(&foreign))
            .await
            .is(ErrorCode::SignInRefused);
    }
    scene
        .end(&begun, "x", Some(&answer))
        .await
        .parse::<LoggedIn>();
    // Replayed, even with a fresh code.
    scene
        .end(&begun, "x", Some(&answer))
        .await
        .is(ErrorCode::SignInRefused);
    let fresh = scene.provider.authorize(&begun.url);
    let (.., message) = scene.end(&begun, "x", Some(&fresh)).await.refused();
    assert!(message.contains("has ended before"), "{message}");
    // A code that was used, in a sign-in that was not.
    let late = scene.begin(3).await;
    let used = scene.provider.authorize(&late.url);
    let stolen = AuthorizationResponse {
        code: answer.code.clone(),
        ..used
    };
    let (_, code, message) = scene.end(&late, "y", Some(&stolen)).await.refused();
    assert_eq!(code, ErrorCode::SignInRefused);
    assert!(message.contains("invalid_grant (why[31m)"), "{message}");
    let answer = scene.provider.authorize(&late.url);
    scene.world.pass(601);
    scene
        .end(&late, "y", Some(&answer))
        .await
        .is(ErrorCode::SignInRefused);
    // What the server did not seal, or sealed for something else.
    for attempt in ["", "x", "AAAA", &"A".repeat(4_000)] {
        let body = json!({ "attempt": attempt, "name": "z" });
        scene
            .post("/v1/oidc/sessions", &body)
            .await
            .is(ErrorCode::SignInRefused);
    }
}

#[tokio::test]
async fn a_device_without_a_browser_waits_for_a_code_to_be_typed() {
    let scene = Scene::new().await;
    let body = json!({ "org": "default", "public_key": PublicKey([1; 32]) });
    let begun: BegunSignIn = scene.post("/v1/oidc/sign-ins", &body).await.parse();
    assert_eq!(begun.user_code.as_deref(), Some("ABCD-EFGH"));
    assert_eq!(begun.interval_seconds, 2);
    scene.provider.state().pending = 2;
    for _ in 0..2 {
        let reply = scene.end(&begun, "box", None).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED);
        assert_eq!(reply.parse::<PendingSignIn>().interval_seconds, 2);
    }
    let signed_in: LoggedIn = scene.end(&begun, "box", None).await.parse();
    scene.is_in(&signed_in, true).await;
    scene
        .end(&begun, "box", None)
        .await
        .is(ErrorCode::SignInRefused);
}

#[tokio::test]
async fn whoever_is_disabled_at_the_provider_is_out_at_the_next_question() {
    let scene = Scene::new().await;
    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    // A device that a login token let in hangs on the same person.
    let body = json!({ "kind": "login", "user": "alice" });
    let token = scene.world.post("/v1/tokens", &scene.admin, &body).await;
    let token: model::api::CreatedToken = token.parse();
    let request = crate::world::enrol_request("tablet", 2);
    let tablet = scene.world.post("/v1/login", &token.token, &request).await;
    let tablet: LoggedIn = tablet.parse();
    for _ in 0..3 {
        scene.confirm(60).await;
        scene.is_in(&laptop, true).await;
    }
    // The provider fails, which says nothing about the person.
    scene.provider.state().refresh_error = Some("temporarily_unavailable");
    scene.confirm(60).await;
    scene.provider.state().refresh_error = None;
    scene.provider.state().is_down = true;
    scene.confirm(60).await;
    scene.is_in(&laptop, true).await;
    scene.provider.state().is_down = false;
    scene.confirm(60).await;

    scene.provider.state().refresh_error = Some("invalid_grant");
    scene.confirm(59).await;
    scene.is_in(&laptop, true).await;
    scene.confirm(1).await;
    scene.is_in(&laptop, false).await;
    scene.is_in(&tablet, false).await;
    let rows = scene.audit().await;
    let why = "the identity provider refuses: invalid_grant";
    Scene::assert_last(&rows, "oidc_session_ended", why);
    Scene::assert_last(&rows, "oidc_session_ended", "alice node:");
    // She comes back when the provider lets her, as the same person.
    scene.provider.state().refresh_error = None;
    let again: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    assert_eq!(
        (again.user, again.device.address),
        (laptop.user, laptop.device.address)
    );
}

#[tokio::test]
async fn a_session_that_nobody_confirms_ends_after_an_hour() {
    let scene = Scene::new().await;
    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    scene.provider.state().is_down = true;
    scene.confirm(3_599).await;
    scene.is_in(&laptop, true).await;
    scene.confirm(61).await;
    scene.is_in(&laptop, false).await;
    let rows = scene.audit().await;
    Scene::assert_last(&rows, "oidc_session_ended", "not confirmed for an hour");
    // Without a refresh token it ends with the ID token.
    scene.provider.state().is_down = false;
    scene.provider.state().refreshes = false;
    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    scene.confirm(299).await;
    scene.is_in(&laptop, true).await;
    scene.confirm(1).await;
    scene.is_in(&laptop, false).await;
    let rows = scene.audit().await;
    Scene::assert_last(&rows, "oidc_session_ended", "gave no refresh token");
}

#[tokio::test]
async fn a_role_follows_the_groups_and_keys_may_change() {
    let scene = Scene::new().await;
    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    let role = async || {
        let whoami = scene.world.get("/v1/whoami", &laptop.session_token).await;
        whoami.parse::<WhoAmI>().role.expect("a person")
    };
    let rule = json!({ "from": ["group:ops"], "to": ["machines"] });
    scene
        .world
        .post("/v1/rules", &scene.admin, &rule)
        .await
        .json();
    let may_reach = async || {
        let map = scene.world.get("/v1/map", &laptop.device.node_token).await;
        let map: NetworkMap = map.parse();
        let org = map.orgs.values().next().expect("the own organisation");
        org.nodes[&laptop.device.id].may_reach.clone()
    };
    let before = may_reach().await;
    scene.provider.rotate("second");
    scene.provider.state().claims = json!({ "groups": ["ops"] });
    scene.confirm(60).await;
    assert_eq!(role().await, Role::Admin);
    Scene::assert_last(
        &scene.audit().await,
        "oidc_user_changed",
        "alice admin groups:ops",
    );
    assert_eq!(
        may_reach().await.len(),
        before.len() + 1,
        "a rule about the group holds"
    );
    scene.provider.state().claims = json!({ "groups": [] });
    scene.confirm(60).await;
    assert_eq!(role().await, Role::Guest);
    assert_eq!(may_reach().await, before);
    // Another person's token for her refresh token.
    scene.provider.state().claims = json!({ "sub": "subject-2" });
    scene.confirm(60).await;
    scene.is_in(&laptop, false).await;
}

#[tokio::test]
async fn who_signs_out_at_the_provider_is_out_here() {
    let scene = Scene::new().await;
    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    let logout = async |token: &str| {
        let request = axum::http::Request::post("/v1/oidc/logout/default")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(axum::body::Body::from(format!("logout_token={token}")))
            .expect("a request");
        scene.world.send(request).await
    };
    logout("x").await.is(ErrorCode::MalformedRequest);
    let foreign = Provider::new(&scene.world.clock).logout_token("subject-1");
    logout(&foreign).await.is(ErrorCode::MalformedRequest);
    let other = scene.provider.logout_token("subject-2");
    assert_eq!(logout(&other).await.status, StatusCode::OK);
    scene.is_in(&laptop, true).await;
    let right = scene.provider.logout_token("subject-1");
    assert_eq!(logout(&right).await.status, StatusCode::OK);
    scene.is_in(&laptop, false).await;
    let why = "says that the person signed out";
    Scene::assert_last(&scene.audit().await, "oidc_session_ended", why);
    // The same token again ends nothing that began later.
    scene.world.pass(10);
    let again: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    assert_eq!(logout(&right).await.status, StatusCode::OK);
    scene.is_in(&again, true).await;
}

#[tokio::test]
async fn a_provider_is_set_if_it_is_one_and_its_sessions_end_with_it() {
    let scene = Scene::new().await;
    let shown: Settings = scene
        .world
        .get("/v1/oidc/provider", &scene.admin)
        .await
        .parse();
    assert!(shown.has_secret);
    assert_eq!(
        shown.back_channel_logout_uri,
        "https://vpn.example:443/v1/oidc/logout/default"
    );
    for (name, value) in [
        ("issuer", json!("http://localhost")),
        ("issuer", json!("https://user@localhost")),
        ("issuer", json!("https://localhost?x")),
        ("issuer", json!("https://localhost#x")),
        (
            "issuer",
            json!(format!("https://localhost/{}", "x".repeat(255))),
        ),
        ("client_id", json!("")),
        ("client_id", json!("a\nb")),
        ("client_secret", json!("")),
        ("scopes", json!(["a b"])),
        ("groups_claim", json!("")),
        ("roles", json!({ "": "guest" })),
        ("roles", json!({ "x": "king" })),
    ] {
        let mut settings = scene.settings();
        settings[name] = value;
        scene.set(&settings).await.is(ErrorCode::MalformedRequest);
    }
    let mut nobody = scene.settings();
    nobody["issuer"] = json!("https://localhost:1");
    let (status, _, message) = scene.set(&nobody).await.refused();
    assert_eq!(status, 502);
    assert!(
        message.contains("TCP: localhost does not answer"),
        "{message}"
    );
    scene.provider.state().claimed_issuer = Some("https://evil.example".to_owned());
    scene
        .set(&scene.settings())
        .await
        .is(ErrorCode::ProviderFailed);
    scene.provider.state().claimed_issuer = None;

    let laptop: LoggedIn = scene.sign_in("laptop-a", 1).await.parse();
    let begun = scene.begin(2).await;
    let answer = scene.provider.authorize(&begun.url);
    let reply = scene.world.delete("/v1/oidc/provider", &scene.admin).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    scene
        .end(&begun, "y", Some(&answer))
        .await
        .is(ErrorCode::NotFound);
    scene.confirm(60).await;
    scene.is_in(&laptop, false).await;
    scene
        .world
        .get("/v1/oidc/provider", &scene.admin)
        .await
        .is(ErrorCode::NotFound);
    let rows = scene.audit().await;
    Scene::assert_last(
        &rows,
        "oidc_session_ended",
        "has this identity provider no more",
    );
}
