//! Sites: what they do to maps, which are refused, and what rules say of them.

use axum::http::{Method, StatusCode};
use model::{
    api::{Answer, Answers, Enrolled, ErrorCode, NewSite, Page, Site, Verdict},
    id::{NodeId, RuleId},
    map::NetworkMap,
    policy::SiteReach,
    site::{Health, Mode, SitePrefix},
    token::Token,
};
use serde_json::json;

use crate::world::{Reply, World, label};

/// An administrator, and the nodes of two offices.
struct Stage {
    world: World,
    admin: Token,
    paris: Enrolled,
    rome: Enrolled,
}

impl Stage {
    async fn new() -> Self {
        let world = World::new().await;
        let admin = world.login().await.session_token;
        let paris = world.join(&admin, None, "node-paris", 1).await;
        let rome = world.join(&admin, None, "node-rome", 2).await;
        Self {
            world,
            admin,
            paris,
            rome,
        }
    }

    async fn try_add(&self, name: &str, node: NodeId, prefixes: &[&str]) -> Reply {
        let site = json!({"name": name, "node": node, "prefixes": prefixes});
        self.world.post("/v1/sites", &self.admin, &site).await
    }

    async fn add(&self, name: &str, node: NodeId, prefixes: &[&str]) -> Site {
        let reply = self.try_add(name, node, prefixes).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
        reply.parse()
    }

    async fn rule(&self, to: &str) {
        let rule = json!({"from": ["machines"], "to": [to], "traffic": ["22"]});
        let reply = self.world.post("/v1/rules", &self.admin, &rule).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    }

    async fn map(&self, node: &Enrolled) -> NetworkMap {
        self.world.get("/v1/map", &node.node_token).await.parse()
    }

    async fn ask(&self, to: &str) -> Answer {
        self.ask_from("node-paris", to).await
    }

    async fn ask_from(&self, from: &str, to: &str) -> Answer {
        let question = json!({"from": from, "to": to, "wanted": "22/tcp"});
        let questions = json!({"questions": [question]});
        let path = "/v1/policy/questions";
        let reply = self.world.post(path, &self.admin, &questions).await;
        let answers: Answers = reply.parse();
        answers.answers.into_iter().next().expect("an answer")
    }
}

#[tokio::test]
async fn every_map_has_the_sites_and_their_rules() {
    let stage = Stage::new().await;
    let paris = stage
        .add("paris", stage.paris.id, &["192.168.1.0/24"])
        .await;
    let rome = stage
        .add("rome", stage.rome.id, &["192.168.1.0/24", "10.9.0.0/16"])
        .await;
    assert_ne!(paris.network, rome.network, "each has addresses of its own");
    stage.rule("site:paris").await;
    stage.rule("site:rome:10.9.0.0/24").await;
    for asker in [&stage.paris, &stage.rome] {
        let map = stage.map(asker).await;
        let org = map.orgs.values().next().expect("the own organisation");
        assert_eq!(org.sites.len(), 2);
        let site = &org.sites[&rome.id];
        assert_eq!(site.name, label("rome"));
        assert_eq!(site.node, stage.rome.id);
        assert_eq!(site.prefixes, rome.prefixes);
        assert_eq!(SitePrefix::new(org.prefix, rome.id), Some(rome.network));
        let reach = |rule, hosts: Option<&str>| SiteReach {
            rule: RuleId(rule),
            hosts: hosts.map(|text| text.parse().expect("a prefix")),
        };
        assert_eq!(site.reached_by, [reach(3, Some("10.9.0.0/24"))]);
        assert_eq!(org.sites[&paris.id].reached_by, [reach(2, None)]);
    }
    let path = "/v1/audit";
    let audit = stage.world.get(path, &stage.admin).await.text();
    assert!(audit.contains("site_added"), "{audit}");
    assert!(
        audit.contains("rome node:3 192.168.1.0/24,10.9.0.0/16"),
        "{audit}"
    );
}

#[tokio::test]
async fn two_sites_claim_one_prefix_only_where_their_hosts_are_told_apart() {
    let stage = Stage::new().await;
    let add = async |name: &str, prefix: &str, mode: &str| {
        let site = json!({
            "name": name, "node": stage.rome.id, "prefixes": ["172.16.0.0/16", prefix], "mode": mode
        });
        stage.world.post("/v1/sites", &stage.admin, &site).await
    };
    stage
        .add("paris", stage.paris.id, &["192.168.1.0/24"])
        .await;
    let refused = add("rome", "192.168.0.0/16", "routed").await;
    let text = refused.text();
    for part in ["`rome`", "`paris`", "192.168.0.0/16"] {
        assert!(text.contains(part), "{text}");
    }
    refused.is(ErrorCode::PrefixTaken);
    for (name, prefix, mode, status) in [
        ("bern", "10.1.0.0/16", "routed", StatusCode::CREATED),
        ("rome", "192.168.0.0/16", "auto", StatusCode::CONFLICT),
    ] {
        let reply = add(name, prefix, mode).await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
    let site = json!({
        "name": "rome", "node": stage.rome.id, "prefixes": ["192.168.0.0/16"], "mode": "auto"
    });
    let reply = stage.world.post("/v1/sites", &stage.admin, &site).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
}

#[tokio::test]
async fn aliases_stand_in_maps_and_in_the_audit_and_may_be_changed() {
    let stage = Stage::new().await;
    let site = json!({
        "name": "rome", "node": stage.rome.id, "prefixes": ["192.168.1.0/24", "10.9.0.0/16"],
        "aliases": ["192.168.1.0/24=10.99.1.0/24"]
    });
    let reply = stage.world.post("/v1/sites", &stage.admin, &site).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    let site: Site = reply.parse();
    let path = format!("/v1/sites/{}", site.id);
    let known = async || {
        let map = stage.map(&stage.paris).await;
        let org = map.own_org().expect("the own organisation");
        let site = &org.sites[&site.id];
        let aliases = site.aliases.iter().map(ToString::to_string);
        aliases.collect::<Vec<_>>()
    };
    assert_eq!(known().await, ["192.168.1.0/24=10.99.1.0/24"]);
    let set = async |change: serde_json::Value| {
        let reply = stage.world.patch(&path, &stage.admin, &change).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        reply.parse::<Site>()
    };
    let other = json!({"aliases": ["10.9.0.0/16=10.99.0.0/16"]});
    let changed = set(other).await;
    assert_eq!(
        (changed.nodes.len(), &changed.prefixes),
        (1, &site.prefixes)
    );
    assert_eq!(known().await, ["10.9.0.0/16=10.99.0.0/16"]);
    let nodes = json!({"nodes": [stage.rome.id, stage.paris.id]});
    assert_eq!(set(nodes).await.aliases, changed.aliases, "they stay");
    assert_eq!(set(json!({"aliases": []})).await.aliases, []);
    assert_eq!(known().await, Vec::<String>::new());
    let nothing = stage.world.patch(&path, &stage.admin, &json!({})).await;
    nothing.is(ErrorCode::MalformedRequest);
    let audit = stage.world.get("/v1/audit", &stage.admin).await.text();
    for words in [
        "rome node:3 192.168.1.0/24=10.99.1.0/24,10.9.0.0/16 masquerade",
        "rome node:3 192.168.1.0/24,10.9.0.0/16=10.99.0.0/16 masquerade",
    ] {
        assert!(audit.contains(words), "{audit}");
    }
}

#[tokio::test]
async fn an_alias_that_means_something_else_is_refused() {
    let stage = Stage::new().await;
    let add = async |name: &str, prefixes: &[&str], aliases: &[&str]| {
        let site = json!({
            "name": name, "node": stage.rome.id, "prefixes": prefixes, "aliases": aliases
        });
        stage.world.post("/v1/sites", &stage.admin, &site).await
    };
    let lan = ["192.168.1.0/24"];
    let paris = add("paris", &lan, &["192.168.1.0/24=10.99.1.0/24"]).await;
    let paris: Site = paris.parse();
    let malformed = [
        (&lan[..], &["192.168.1.0/24"][..], "the form"),
        (&lan, &["192.168.1.0/24=10.99.2.0/25"], "different lengths"),
        (
            &lan,
            &["192.168.1.0/24=10.99.2.1/24"],
            "the prefix that holds",
        ),
        (&lan, &["192.168.1.0/24=192.168.1.0/24"], "overlap"),
        (
            &lan,
            &["192.168.1.0/24=192.0.0.0/24"],
            "of which nodes use addresses",
        ),
        (&lan, &["192.168.1.0/24=127.0.1.0/24"], "127.0.0.0/8"),
        (&lan, &["192.168.1.0/25=10.99.2.0/25"], "is none of `rome`"),
        (
            &lan,
            &["192.168.1.0/24=10.99.2.0/24", "192.168.1.0/24=10.99.3.0/24"],
            "one alias at most",
        ),
        (
            &["192.168.1.0/24", "192.168.2.0/24"],
            &["192.168.1.0/24=10.99.2.0/24", "192.168.2.0/24=10.99.2.0/24"],
            "aliases 10.99.2.0/24 and 10.99.2.0/24 overlap",
        ),
        (
            &["192.168.1.0/24", "10.9.0.0/16"],
            &["192.168.1.0/24=10.9.7.0/24"],
            "overlaps the prefix 10.9.0.0/16",
        ),
    ];
    for (prefixes, aliases, part) in malformed {
        let reply = add("rome", prefixes, aliases).await;
        assert!(reply.text().contains(part), "{part}: {}", reply.text());
        reply.is(ErrorCode::MalformedRequest);
    }
    let taken = [
        (&lan[..], &["192.168.1.0/24=10.99.1.0/24"][..]),
        (&["10.0.0.0/16"], &["10.0.0.0/16=10.99.0.0/16"]),
        (&["10.0.0.0/24"], &["10.0.0.0/24=192.168.1.0/24"]),
        (&["10.99.1.128/25"], &[]),
    ];
    for (prefixes, aliases) in taken {
        let reply = add("rome", prefixes, aliases).await;
        for part in ["`rome`", "`paris`", "overlaps the"] {
            assert!(reply.text().contains(part), "{}", reply.text());
        }
        reply.is(ErrorCode::PrefixTaken);
    }
    let reply = add("rome", &["10.1.0.0/24"], &["10.1.0.0/24=10.99.2.0/24"]).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    let path = format!("/v1/sites/{}", paris.id);
    let change = json!({"aliases": ["192.168.1.0/24=10.99.2.0/24"]});
    let reply = stage.world.patch(&path, &stage.admin, &change).await;
    reply.is(ErrorCode::PrefixTaken);
    let kept: Site = stage.world.get(&path, &stage.admin).await.parse();
    assert_eq!(kept.aliases, paris.aliases);
}

#[tokio::test]
async fn aliases_tell_routed_sites_with_one_prefix_apart() {
    let stage = Stage::new().await;
    let add = async |name: &str, mode: &str, aliases: &[&str]| {
        let site = json!({
            "name": name, "node": stage.rome.id, "prefixes": ["192.168.1.0/24"], "mode": mode,
            "aliases": aliases
        });
        stage.world.post("/v1/sites", &stage.admin, &site).await
    };
    let refused = async |name: &str, mode: &str, aliases: &[&str], who: &str| {
        let reply = add(name, mode, aliases).await;
        assert!(reply.text().contains(who), "{who}: {}", reply.text());
        reply.is(ErrorCode::PrefixTaken);
    };
    let paris: Site = add("paris", "routed", &[]).await.parse();
    let (one, two) = ("192.168.1.0/24=10.99.1.0/24", "192.168.1.0/24=10.99.2.0/24");
    refused("rome", "masquerade", &[], "`rome` needs an alias").await;
    refused("rome", "routed", &[], "both need aliases").await;
    refused("rome", "routed", &[two], "`paris` needs an alias").await;
    refused("rome", "auto", &[two], "`paris` needs an alias").await;
    let reply = add("bern", "masquerade", &[two]).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    let bern: Site = reply.parse();
    let set = async |site: &Site, aliases: &[&str]| {
        let path = format!("/v1/sites/{}", site.id);
        let change = json!({"aliases": aliases});
        stage.world.patch(&path, &stage.admin, &change).await
    };
    set(&bern, &[]).await.is(ErrorCode::PrefixTaken);
    assert_eq!(set(&paris, &[one]).await.status, StatusCode::OK);
    let reply = add("rome", "routed", &["192.168.1.0/24=10.99.3.0/24"]).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    let reply = set(&paris, &[]).await;
    for part in ["`paris`", "`rome`", "`paris` needs an alias"] {
        assert!(reply.text().contains(part), "{}", reply.text());
    }
    reply.is(ErrorCode::PrefixTaken);
}

#[tokio::test]
async fn hosts_of_a_site_speak_by_the_rules_from_it() {
    let stage = Stage::new().await;
    let site = json!({
        "name": "paris", "node": stage.paris.id, "prefixes": ["192.168.1.0/24"], "mode": "routed"
    });
    let reply = stage.world.post("/v1/sites", &stage.admin, &site).await;
    let paris: Site = reply.parse();
    assert_eq!(paris.mode, Mode::Routed);
    let rome = stage.add("rome", stage.rome.id, &["10.9.0.0/16"]).await;
    assert_eq!(rome.mode, Mode::Masquerade);
    let site = json!({
        "name": "bern", "node": stage.rome.id, "prefixes": ["10.8.0.0/16"], "mode": "auto"
    });
    let reply = stage.world.post("/v1/sites", &stage.admin, &site).await;
    let bern: Site = reply.parse();
    assert_eq!(bern.mode, Mode::Auto);
    let rule = json!({
        "from": ["site:paris:192.168.1.0/25", "site:rome"], "to": ["site:rome"], "traffic": ["22"]
    });
    let reply = stage.world.post("/v1/rules", &stage.admin, &rule).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.text());
    let map = stage.map(&stage.rome).await;
    let org = map.own_org().expect("the own organisation");
    let reach = |hosts: Option<&str>| SiteReach {
        rule: RuleId(2),
        hosts: hosts.map(|text| text.parse().expect("a prefix")),
    };
    let site = &org.sites[&paris.id];
    assert_eq!(site.mode, Mode::Routed);
    assert_eq!(site.may_reach, [reach(Some("192.168.1.0/25"))]);
    assert_eq!(site.reached_by, []);
    let site = &org.sites[&rome.id];
    assert_eq!(
        (&site.may_reach[..], &site.reached_by[..]),
        (&[reach(None)][..], &[reach(None)][..])
    );
    for (from, verdict) in [
        ("site:paris:192.168.1.7", Verdict::Allowed),
        ("site:paris", Verdict::Partly),
        ("site:paris:192.168.1.200", Verdict::Refused),
        ("site:oslo", Verdict::NobodySends),
    ] {
        let answer = stage.ask_from(from, "site:rome").await;
        assert_eq!(answer.verdict, verdict, "{from}");
    }
    let service = json!({"from": ["service:db"], "to": ["machines"], "traffic": ["22"]});
    let reply = stage.world.post("/v1/rules", &stage.admin, &service).await;
    reply.is(ErrorCode::MalformedRequest);
}

#[tokio::test]
async fn several_nodes_lead_to_a_site_in_an_order_that_may_be_changed() {
    let stage = Stage::new().await;
    let (paris, rome) = (stage.paris.id, stage.rome.id);
    let site = json!({
        "name": "paris", "node": paris, "standbys": [rome], "prefixes": ["192.168.1.0/24"]
    });
    let site: Site = stage
        .world
        .post("/v1/sites", &stage.admin, &site)
        .await
        .parse();
    let ids = |site: &Site| site.nodes.iter().map(|node| node.node).collect::<Vec<_>>();
    assert_eq!((site.node, ids(&site)), (paris, vec![paris, rome]));
    assert_eq!(site.nodes[1].node_name, label("node-rome"));
    let behind = async || {
        let map = stage.map(&stage.rome).await;
        let org = map.own_org().expect("the own organisation");
        org.sites[&site.id].nodes().collect::<Vec<_>>()
    };
    assert_eq!(behind().await, [paris, rome]);

    let path = format!("/v1/sites/{}", site.id);
    let set = async |nodes: &[NodeId]| {
        let change = json!({"nodes": nodes});
        stage.world.patch(&path, &stage.admin, &change).await
    };
    let malformed = ErrorCode::MalformedRequest;
    let many = [paris, rome, paris, rome, paris];
    for nodes in [&[][..], &[paris, paris], &many] {
        set(nodes).await.is(malformed);
    }
    set(&[NodeId(99)]).await.is(ErrorCode::NotFound);
    let changed: Site = set(&[rome, paris]).await.parse();
    assert_eq!(
        (ids(&changed), changed.network),
        (vec![rome, paris], site.network)
    );
    assert_eq!(behind().await, [rome, paris]);

    // The one that is preferred is removed, and the other one leads alone.
    let node = format!("/v1/nodes/{rome}");
    stage.world.delete(&node, &stage.admin).await;
    let left: Site = stage.world.get(&path, &stage.admin).await.parse();
    assert_eq!(ids(&left), [paris]);
    let audit = stage.world.get("/v1/audit", &stage.admin).await.text();
    let words = format!("paris node:{rome},node:{paris} 192.168.1.0/24");
    assert!(audit.contains(&words), "{audit}");
    let node = format!("/v1/nodes/{paris}");
    stage.world.delete(&node, &stage.admin).await;
    let gone = stage.world.get(&path, &stage.admin).await;
    gone.is(ErrorCode::NotFound);
}

#[tokio::test]
async fn the_gateway_that_nodes_call_says_who_carries_a_site_and_no_other_one() {
    let stage = Stage::new().await;
    let (paris, rome) = (stage.paris.id, stage.rome.id);
    let site = json!({
        "name": "paris", "node": paris, "standbys": [rome], "prefixes": ["192.168.1.0/24"]
    });
    let reply = stage.world.post("/v1/sites", &stage.admin, &site).await;
    let site: Site = reply.parse();
    let former = stage.world.gateway(&stage.admin, "former", 9).await;
    let edge = stage.world.gateway(&stage.admin, "edge", 10).await;
    let path = format!("/v1/sites/{}", site.id);
    let told = async || {
        let site: Site = stage.world.get(&path, &stage.admin).await.parse();
        let nodes = site.nodes.iter();
        let told = nodes.map(|node| node.carries.zip(node.health));
        told.collect::<Vec<_>>()
    };
    let report = async |token: &Token, carrier: NodeId| {
        let node = |node: NodeId, health| {
            let carries = node == carrier;
            json!({"node": node, "carries": carries, "health": health})
        };
        let nodes = [node(paris, "silent"), node(rome, "healthy")];
        let body = json!({"nodes": nodes}).to_string();
        let bearer = token.emit();
        let path = format!("{path}/health");
        let put = Method::PUT;
        stage
            .world
            .request(put, &path, Some(&bearer), Some(body))
            .await
            .status
    };
    assert_eq!(told().await, [None, None]);
    let status = report(&former.node_token, paris).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "it may not know yet");
    assert_eq!(told().await, [None, None]);
    report(&edge.node_token, rome).await;
    let expected = [Some((false, Health::Silent)), Some((true, Health::Healthy))];
    assert_eq!(told().await, expected);
    let refused = report(&stage.paris.node_token, paris).await;
    assert_eq!(refused, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_site_without_meaning_is_refused() {
    let stage = Stage::new().await;
    let (admin, node) = (&stage.admin, stage.paris.id);
    stage.add("paris", node, &["192.168.1.0/24"]).await;
    let refused = async |name, node, prefixes: &[&str], code| {
        let reply = stage.try_add(name, node, prefixes).await;
        reply.is(code);
        reply.refused().2
    };
    let malformed = ErrorCode::MalformedRequest;
    for prefixes in [
        &[][..],
        &["192.168.1.0"; 17],
        &["192.168.1.1/24"],
        &["127.0.0.0/8"],
        &["0.0.0.0/0"],
        &["fd00::/64"],
    ] {
        refused("rome", node, prefixes, malformed).await;
    }
    let prefixes = ["10.0.0.0/8", "192.168.0.0/16", "10.1.0.0/16"];
    let message = refused("rome", node, &prefixes, malformed).await;
    assert!(message.contains("10.0.0.0/8 and 10.1.0.0/16"), "{message}");
    let lan = ["192.168.1.0/24"];
    let message = refused("paris", stage.rome.id, &lan, ErrorCode::NameTaken).await;
    assert!(message.contains("behind `node-paris`"), "{message}");
    refused("site", node, &lan, ErrorCode::NameReserved).await;
    refused("rome", NodeId(99), &lan, ErrorCode::NotFound).await;
    let gateway = stage.world.gateway(admin, "edge", 9).await;
    refused("rome", gateway.id, &lan, malformed).await;
    stage.world.add_org(admin, "other").await;
    let person = stage
        .world
        .person(admin, Some("other"), "ann", model::policy::Role::Admin, 10)
        .await;
    let site = NewSite {
        name: label("rome"),
        node,
        standbys: Vec::new(),
        prefixes: vec!["10.0.0.0/8".parse().expect("a prefix")],
        aliases: Vec::new(),
        mode: Mode::default(),
    };
    let reply = stage
        .world
        .post("/v1/sites", &person.session_token, &site)
        .await;
    reply.is(ErrorCode::NotFound);
}

#[tokio::test]
async fn an_id_is_never_given_again_and_a_site_goes_with_its_node() {
    let stage = Stage::new().await;
    let first = stage.add("paris", stage.paris.id, &["10.0.0.0/8"]).await;
    let path = format!("/v1/sites/{}", first.id);
    let reply = stage.world.delete(&path, &stage.admin).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    stage
        .world
        .delete(&path, &stage.admin)
        .await
        .is(ErrorCode::NotFound);
    let second = stage.add("paris", stage.paris.id, &["10.0.0.0/8"]).await;
    assert!(second.id > first.id);
    let path = format!("/v1/nodes/{}", stage.paris.id);
    stage.world.delete(&path, &stage.admin).await;
    let sites: Page<Site> = stage.world.get("/v1/sites", &stage.admin).await.parse();
    assert_eq!(sites.items, []);
    let map = stage.map(&stage.rome).await;
    assert!(map.orgs.values().all(|org| org.sites.is_empty()));
}

#[tokio::test]
async fn questions_about_a_site_are_answered_for_all_hosts_that_they_name() {
    let stage = Stage::new().await;
    stage
        .add("paris", stage.paris.id, &["192.168.1.0/24"])
        .await;
    let verdict = async |to: &str| stage.ask(to).await.verdict;
    assert_eq!(verdict("site:paris").await, Verdict::Refused);
    assert_eq!(verdict("site:nowhere").await, Verdict::NobodyReached);
    assert_eq!(verdict("site:paris:10.0.0.1").await, Verdict::NobodyReached);
    stage.rule("site:paris:192.168.1.8/29").await;
    for (to, expected) in [
        ("site:paris", Verdict::Partly),
        ("site:paris:192.168.1.10", Verdict::Allowed),
        ("site:paris:192.168.1.8/30", Verdict::Allowed),
        ("site:paris:192.168.1.0/28", Verdict::Partly),
        ("site:paris:192.168.1.16", Verdict::Refused),
    ] {
        assert_eq!(verdict(to).await, expected, "{to}");
    }
    stage.rule("site:paris").await;
    let answer = stage.ask("site:paris").await;
    assert_eq!(answer.verdict, Verdict::Allowed);
    assert_eq!(answer.example.expect("an example").to, label("paris"));
}
