//! Maps: who sees what, and how soon.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use model::{
    api::{
        ErrorCode, GatewayTunnel, NewService, Node, NodeByKey, Service, TUNNELS_MAX, Timestamp,
        Transport, TunnelReport, UserChange,
    },
    key::PublicKey,
    map::{Difference, NetworkMap, Role, Told},
    policy,
    token::Token,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use crate::world::{Reply, World, label};

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
async fn what_gateways_tell_of_tunnels_stands_at_their_nodes() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let gateway = world.gateway(&admin, "edge", 9).await;
    let shown = async || {
        let node = world.get(&format!("/v1/nodes/{}", web.id), &admin).await;
        node.parse::<Node>().tunnel
    };
    assert_eq!(shown().await, None);
    let told = |handshake, transport, received_bytes| {
        let key = PublicKey([1; 32]).to_string();
        json!({
            "public_key": key, "handshake": handshake, "transport": transport,
            "received_bytes": received_bytes, "sent_bytes": 7,
        })
    };
    let tell = async |token, tunnels: &[Value]| {
        let report = json!({ "tunnels": tunnels });
        world.post("/v1/tunnels", token, &report).await
    };
    let newer = told(2_000, "udp_ipv6", 5_000);
    let reply = tell(&gateway.node_token, std::slice::from_ref(&newer)).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    let standing = Some(GatewayTunnel {
        handshake: Timestamp(2_000),
        transport: Transport::UdpIpv6,
        received_bytes: 5_000,
        sent_bytes: 7,
    });
    assert_eq!(shown().await, standing);
    // It has left the gateway in this process, which still tells of it.
    let older = serde_json::from_value(told(1_999, "udp_ipv4", 9_000)).unwrap();
    let tunnels = vec![older];
    world.server.report_tunnels(&TunnelReport { tunnels });
    assert_eq!(shown().await, standing);

    let many = vec![newer.clone(); TUNNELS_MAX + 1];
    let reply = tell(&gateway.node_token, &many).await;
    reply.is(ErrorCode::LimitReached);
    let reply = tell(&gateway.node_token, &many[1..]).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    for malformed in [told(0, "pigeon", 0), told(0, "udp_ipv4", -1), json!({})] {
        let reply = tell(&gateway.node_token, &[malformed]).await;
        reply.is(ErrorCode::MalformedRequest);
    }
    tell(&web.node_token, &[]).await.is(ErrorCode::NotPermitted);
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
    let map = world.server.map_here(own).await.unwrap();
    let mut map = map.expect("the gateway is known");
    let (server, serial) = (world.server.clone(), map.serial);
    let own_waits = tokio::spawn(async move { server.map_after(own, serial).await });

    let gateway_waits = wait(&world, &gateway.node_token).await;
    let web_waits = wait(&world, &web.node_token).await;
    let db_waits = wait(&world, &db.node_token).await;
    let removed = world.delete(&format!("/v1/nodes/{}", web.id), &admin).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT);
    let gone = |map: &NetworkMap| {
        let mut orgs = map.orgs.values();
        orgs.all(|org| !org.nodes.contains_key(&web.id))
    };
    assert!(gone(&soon(gateway_waits).await.parse()));
    assert!(gone(&soon(db_waits).await.parse()));
    soon(web_waits).await.is(ErrorCode::NodeRemoved);
    let told = timeout(WAKE_MAX, own_waits).await.unwrap().unwrap();
    let Told::Difference(difference) = told.unwrap() else {
        panic!("the gateway has a map of this server");
    };
    assert!(map.apply(&difference) && gone(&map));
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
    let map = world.server.map_here(own).await.unwrap();
    let mut map = map.expect("the gateway is known");

    // Only maps need this table.
    let mut database = crate::disk::database(&world).await;
    let hide = sqlx::query("ALTER TABLE ssh_cut RENAME TO hidden");
    hide.execute(&mut database).await.unwrap();
    let added = world
        .post("/v1/services", &web.node_token, &service("shop", 80))
        .await;
    assert_eq!(added.status, StatusCode::CREATED);
    let told = world.server.map_after(own, map.serial).await;
    told.expect_err("the map cannot be read");

    let show = sqlx::query("ALTER TABLE hidden RENAME TO ssh_cut");
    show.execute(&mut database).await.unwrap();
    let told = world.server.map_after(own, map.serial);
    let told = timeout(HANG_MAX, told).await.unwrap().unwrap();
    let Told::Difference(difference) = told else {
        panic!("the gateway has a map of this server: {told:?}");
    };
    assert!(map.apply(&difference));
    let services = map.orgs.values().map(|org| org.services.len());
    assert_eq!(services.sum::<usize>(), 1);
}

/// Somebody who is told differences.
struct Follower {
    token: Token,
    map: NetworkMap,
    differences: u32,
}

impl Follower {
    /// Takes what is told of its map, which must then be the whole one.
    async fn follow(&mut self, world: &World) {
        let serial = self.map.serial;
        let path = format!("/v1/map?after={serial}&wait=0&differences=true");
        let reply = world.get(&path, &self.token).await;
        match reply.status {
            StatusCode::NO_CONTENT => {}
            StatusCode::IM_USED => {
                self.differences += 1;
                let difference: Difference = reply.parse();
                assert!(self.map.apply(&difference), "{difference:?}");
            }
            _ => self.map = reply.parse(),
        }
        let whole: NetworkMap = world.get("/v1/map", &self.token).await.parse();
        assert_eq!(self.map, whole);
    }
}

#[tokio::test]
async fn differences_make_the_map_that_is_told_whole() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    world.add_org(&admin, "other").await;
    let web = world.join(&admin, None, "web", 1).await;
    let guest = world
        .person(&admin, None, "gast", policy::Role::Guest, 2)
        .await;
    let edge = world.gateway(&admin, "edge", 9).await;
    let follower = |token: &Token, map: &NetworkMap| Follower {
        token: token.clone(),
        map: map.clone(),
        differences: 0,
    };
    let mut followers = [
        follower(&web.node_token, &web.map),
        follower(&guest.device.node_token, &guest.device.map),
        follower(&edge.node_token, &edge.map),
    ];
    let role = UserChange {
        role: Some(policy::Role::Developer),
        ..UserChange::default()
    };
    let mut joined = Vec::new();
    for round in 0..24_u8 {
        let name = format!("n{round}");
        match round % 8 {
            0 | 1 => joined.push(world.join(&admin, None, &name, 20 + round).await.id),
            2 => drop(world.join(&admin, Some("other"), &name, 20 + round).await),
            3 => {
                let mut request = service(&name, 80 + u16::from(round));
                request.target = Some("127.0.0.1:3000".to_owned());
                world.post("/v1/services", &web.node_token, &request).await;
            }
            4 => {
                let person = policy::Role::Developer;
                world.person(&admin, None, &name, person, 20 + round).await;
            }
            5 => {
                let gone = joined.pop().expect("two have joined");
                let gone = world.delete(&format!("/v1/nodes/{gone}"), &admin).await;
                assert_eq!(gone.status, StatusCode::NO_CONTENT);
            }
            6 => {
                world.add_org(&admin, &name).await;
                if round > 10 {
                    let path = format!("/v1/orgs/n{}", round - 8);
                    let gone = world.delete(&path, &admin).await;
                    assert_eq!(gone.status, StatusCode::NO_CONTENT);
                }
            }
            _ => {
                let path = format!("/v1/users/{}", guest.user);
                let changed = world.patch(&path, &admin, &role).await;
                assert_eq!(changed.status, StatusCode::OK);
            }
        }
        // Some are some changes behind.
        for (number, follower) in (0_u8..).zip(&mut followers) {
            if (round + number) % (number + 1) == 0 {
                follower.follow(&world).await;
            }
        }
    }
    for follower in &mut followers {
        follower.follow(&world).await;
        assert!(follower.differences > 4, "{}", follower.differences);
    }
}

#[tokio::test]
async fn a_difference_is_as_long_as_the_change() {
    let world = World::new().await;
    let admin = world.login().await.session_token;
    let web = world.join(&admin, None, "web", 1).await;
    let edge = world.gateway(&admin, "edge", 9).await;
    let mut lengths = Vec::new();
    let mut known = [
        (web.node_token.clone(), web.map.serial),
        (edge.node_token.clone(), edge.map.serial),
    ];
    for round in 0..30_u8 {
        world
            .join(&admin, None, &format!("n{round:02}"), 20 + round)
            .await;
        for (token, serial) in &mut known {
            let path = format!("/v1/map?after={serial}&wait=0&differences=true");
            let reply = world.get(&path, token).await;
            if reply.status == StatusCode::IM_USED {
                // At first the node is told of the gateway, too.
                lengths.extend((round > 0).then_some(reply.body.len()));
                *serial = reply.parse::<Difference>().serial;
            } else {
                *serial = reply.parse::<NetworkMap>().serial;
            }
        }
    }
    let (least, most) = (lengths.iter().min(), lengths.iter().max());
    let (least, most) = (least.expect("a reply"), most.expect("a reply"));
    assert!(lengths.len() >= 56 && most - least < 100, "{lengths:?}");
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
