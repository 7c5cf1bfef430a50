//! Maps: who sees what, and how soon.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use model::{
    api::{ErrorCode, NewService, NodeByKey, Service},
    key::PublicKey,
    map::{NetworkMap, Role},
    token::Token,
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::world::{Reply, World, label, log};

/// How soon a change must have woken everybody who waits; the bound for people is 2 seconds.
const WAKE_MAX: Duration = Duration::from_millis(500);

/// Guards against waiting for ever, and measures nothing.
const HANG_MAX: Duration = Duration::from_secs(60);

/// Within this time a request that has nothing to wait for would have been answered.
const SETTLE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_client_sees_nothing_of_another_organisation() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, None, "web", 1).await;
    let foreign = world.join(&admin, Some("other"), "web", 2).await;
    let secret = world.join(&admin, Some("other"), "hidden-thing", 3).await;
    let service = service("hidden-service", 80);
    let added = world
        .post("/v1/services", &secret.node_token, &service)
        .await;
    assert_eq!(added.status, StatusCode::CREATED);

    let texts = [
        world.get("/v1/map", &web.node_token).await.text(),
        world.get("/v1/nodes", &web.node_token).await.text(),
        world.get("/v1/orgs", &web.node_token).await.text(),
        world.get("/v1/services", &web.node_token).await.text(),
    ];
    let foreign_prefix = foreign.map.orgs.values().next().unwrap().prefix.to_string();
    for text in texts {
        let key = PublicKey([2; 32]).to_string();
        for trace in [
            "other",
            "hidden",
            &foreign.address.to_string(),
            &foreign_prefix,
            &key,
        ] {
            assert!(!text.contains(trace), "{trace} in {text}");
        }
    }
    for path in [
        format!("/v1/nodes/{}", foreign.id),
        "/v1/nodes?org=other".to_owned(),
        "/v1/orgs/other".to_owned(),
        "/v1/services?org=other".to_owned(),
    ] {
        let hidden = world.get(&path, &web.node_token).await;
        hidden.is(ErrorCode::NotFound);
        let absent = world
            .get(&path.replace("other", "absent"), &web.node_token)
            .await;
        let likeness = (hidden.refused(), absent.refused());
        assert_eq!(likeness.0.2.replace("other", "absent"), likeness.1.2);
    }
}

#[tokio::test]
async fn a_gateway_sees_every_organisation_and_looks_keys_up() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, Some("other"), "web", 1).await;
    let gateway = world.gateway(&admin, "edge", 9).await;
    assert_eq!(gateway.map.own.role, Role::Gateway);
    assert_eq!(gateway.map.orgs.len(), 2);
    let other = gateway
        .map
        .orgs
        .values()
        .find(|org| org.name.as_str() == "other")
        .unwrap();
    assert_eq!(other.nodes[&web.id].address, web.address);

    let path = |key| {
        let key = PublicKey([key; 32]).to_string();
        format!(
            "/v1/nodes/by-key/{}",
            key.replace('=', "%3D").replace('/', "%2F")
        )
    };
    let found: NodeByKey = world.get(&path(1), &gateway.node_token).await.parse();
    assert_eq!((found.id, found.node.address), (web.id, web.address));
    assert_eq!(
        world.server.node_by_key(PublicKey([1; 32])).await.unwrap(),
        Some(found)
    );
    world
        .get(&path(0xff), &gateway.node_token)
        .await
        .is(ErrorCode::NotFound);
    world
        .get(&path(9), &gateway.node_token)
        .await
        .is(ErrorCode::NotFound);
    world
        .get("/v1/nodes/by-key/x", &gateway.node_token)
        .await
        .is(ErrorCode::NotFound);
    world
        .get(&path(1), &web.node_token)
        .await
        .is(ErrorCode::NotPermitted);
    world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;
    world
        .get(&path(1), &gateway.node_token)
        .await
        .is(ErrorCode::NotFound);
}

#[tokio::test]
async fn an_organisation_uses_the_newest_gateway_else_the_servers_own() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let used = async || {
        let map: NetworkMap = world.get("/v1/map", &web.node_token).await.parse();
        let org = map.orgs.into_values().next().unwrap();
        org.gateway.map(|gateway| gateway.endpoint)
    };
    assert_eq!(used().await, None);
    let own = PublicKey([7; 32]);
    let id = world
        .server
        .register_builtin_gateway(own, "vpn.example:51820")
        .await
        .unwrap();
    assert_eq!(used().await.as_deref(), Some("vpn.example:51820"));
    let again = world
        .server
        .register_builtin_gateway(own, "vpn.example:51821")
        .await
        .unwrap();
    assert_eq!(id, again);
    assert_eq!(used().await.as_deref(), Some("vpn.example:51821"));

    world.gateway(&admin, "edge", 8).await;
    assert_eq!(used().await.as_deref(), Some("edge.example:51820"));
    world.pass(1);
    let second = world.gateway(&admin, "rim", 9).await;
    assert_eq!(used().await.as_deref(), Some("rim.example:51820"));
    world.add_org(&admin, "late").await;
    let late = world.join(&admin, Some("late"), "web", 2).await;
    let late = late.map.orgs.into_values().next().unwrap().gateway.unwrap();
    assert_eq!(late.endpoint, "rim.example:51820");

    world
        .delete(&format!("/v1/nodes/{}", second.id), &admin)
        .await;
    assert_eq!(used().await.as_deref(), Some("edge.example:51820"));
    let own = world.delete(&format!("/v1/nodes/{id}"), &admin).await;
    own.is(ErrorCode::NotPermitted);
}

#[tokio::test]
async fn removing_a_node_wakes_everybody_who_waits() {
    let world = Arc::new(World::new().await);
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let db = world.join(&admin, None, "db", 2).await;
    let gateway = world.gateway(&admin, "edge", 9).await;
    let own = PublicKey([7; 32]);
    let own = world
        .server
        .register_builtin_gateway(own, "vpn.example:51820")
        .await
        .unwrap();
    let mut own_maps = world.server.maps(own).await.unwrap();
    own_maps.borrow_and_update();

    let gateway_waits = wait(&world, &gateway.node_token).await;
    let web_waits = wait(&world, &web.node_token).await;
    let db_waits = wait(&world, &db.node_token).await;
    let removed = world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    let map: NetworkMap = soon(gateway_waits).await.parse();
    assert!(
        map.orgs
            .values()
            .all(|org| !org.nodes.contains_key(&web.id))
    );
    let map: NetworkMap = soon(db_waits).await.parse();
    assert!(
        map.orgs
            .values()
            .all(|org| !org.nodes.contains_key(&web.id))
    );
    soon(web_waits).await.is(ErrorCode::NodeRemoved);
    timeout(WAKE_MAX, own_maps.changed())
        .await
        .unwrap()
        .unwrap();
    let map = own_maps.borrow().clone();
    assert!(
        map.orgs
            .values()
            .all(|org| !org.nodes.contains_key(&web.id))
    );
}

/// As when the database goes away just after it acknowledged a change.
#[tokio::test]
async fn the_servers_own_gateway_hears_of_a_change_though_its_map_could_not_be_read_at_first() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let own = PublicKey([7; 32]);
    let own = world
        .server
        .register_builtin_gateway(own, "vpn.example:51820")
        .await
        .unwrap();
    let mut maps = world.server.maps(own).await.unwrap();
    maps.borrow_and_update();

    // Only maps need this table.
    let mut database = crate::disk::database(&world).await;
    let hide = sqlx::query("ALTER TABLE ssh_cut RENAME TO hidden");
    hide.execute(&mut database).await.unwrap();
    let added = world
        .post("/v1/services", &web.node_token, &service("shop", 80))
        .await;
    assert_eq!(added.status, StatusCode::CREATED);
    let failed = async {
        while !log().contains("the map of the server's own gateway failed") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(HANG_MAX, failed).await.unwrap();
    assert!(!maps.has_changed().unwrap());

    let show = sqlx::query("ALTER TABLE hidden RENAME TO ssh_cut");
    show.execute(&mut database).await.unwrap();
    timeout(HANG_MAX, maps.changed()).await.unwrap().unwrap();
    let map = maps.borrow().clone();
    let services = map
        .orgs
        .values()
        .map(|org| org.services.len())
        .sum::<usize>();
    assert_eq!(services, 1);
}

#[tokio::test]
async fn a_change_elsewhere_does_not_wake_a_client() {
    let world = Arc::new(World::new().await);
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, None, "web", 1).await;
    let before: NetworkMap = world.get("/v1/map", &web.node_token).await.parse();
    world.join(&admin, Some("other"), "db", 2).await;
    let after: NetworkMap = world.get("/v1/map", &web.node_token).await.parse();
    assert_eq!(before, after);
    let path = format!("/v1/map?after={}&wait=0", after.serial);
    let reply = world.get(&path, &web.node_token).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    // A node that is ahead, since the server was restored from a backup, gets the older map.
    let path = format!("/v1/map?after={}&wait=0", after.serial + 100);
    let reply: NetworkMap = world.get(&path, &web.node_token).await.parse();
    assert_eq!(reply.serial, after.serial);
}

#[tokio::test]
async fn a_target_is_told_to_its_node_alone() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let db = world.join(&admin, None, "db", 2).await;
    let mut request = service("web", 8080);
    request.target = Some("127.0.0.1:3000".to_owned());
    let added: Service = world
        .post("/v1/services", &web.node_token, &request)
        .await
        .parse();
    assert_eq!(added.target.as_deref(), Some("127.0.0.1:3000"));
    let target = async |token: &Token| {
        let map: NetworkMap = world.get("/v1/map", token).await.parse();
        let org = map.orgs.into_values().next().unwrap();
        let offers = &org.services[&label("web")];
        assert_eq!(
            (offers.len(), offers[0].node, offers[0].port),
            (1, web.id, 8080)
        );
        offers[0].target.clone()
    };
    assert_eq!(
        target(&web.node_token).await.as_deref(),
        Some("127.0.0.1:3000")
    );
    assert_eq!(target(&db.node_token).await, None);
    let shown = world
        .get(&format!("/v1/services/{}", added.id), &db.node_token)
        .await;
    assert!(!shown.text().contains("3000"));

    let again = world
        .post("/v1/services", &web.node_token, &service("web", 81))
        .await;
    again.is(ErrorCode::NameTaken);
    let again = world
        .post("/v1/services", &web.node_token, &service("www", 8080))
        .await;
    again.is(ErrorCode::PortTaken);
    let other = world
        .post("/v1/services", &db.node_token, &service("web", 8080))
        .await;
    assert_eq!(other.status, StatusCode::CREATED);
    // A node publishes ports of its own only.
    let mut foreign = service("evil", 22);
    foreign.node = Some(db.id);
    let refused = world.post("/v1/services", &web.node_token, &foreign).await;
    refused.is(ErrorCode::NotFound);
    let path = format!("/v1/services/{}", added.id);
    world
        .delete(&path, &db.node_token)
        .await
        .is(ErrorCode::NotFound);
    let gone = world.delete(&path, &web.node_token).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn waiting_requests_end_when_the_server_does() {
    let world = Arc::new(World::new().await);
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let waits = wait(&world, &web.node_token).await;
    world.server.close().await;
    assert_eq!(soon(waits).await.status, StatusCode::NO_CONTENT);
    world
        .get("/v1/map", &web.node_token)
        .await
        .is(ErrorCode::Unavailable);
}

/// Begins to wait for the change after the map that the node would get now.
async fn wait(world: &Arc<World>, token: &Token) -> JoinHandle<Reply> {
    let map: NetworkMap = world.get("/v1/map", token).await.parse();
    let (world, token) = (world.clone(), token.clone());
    let mut reply = tokio::spawn(async move {
        let path = format!("/v1/map?after={}", map.serial);
        world.get(&path, &token).await
    });
    let early = timeout(SETTLE, &mut reply).await;
    assert!(early.is_err(), "nothing changed, yet there is a reply");
    reply
}

async fn soon(reply: JoinHandle<Reply>) -> Reply {
    let reply = timeout(WAKE_MAX, reply)
        .await
        .expect("a change wakes who waits");
    reply.expect("a request does not panic")
}

fn service(name: &str, port: u16) -> NewService {
    NewService {
        name: label(name),
        node: None,
        port,
        target: None,
    }
}
