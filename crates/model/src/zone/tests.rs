//! Stories about names and who may see them.

use super::*;
use crate::{
    id::{NodeId, SiteId},
    key::PublicKey,
    map,
    site::Mode,
    ssh,
};

fn label(text: &str) -> Label {
    text.parse().expect("a well-formed label")
}

fn prefix(org: u8) -> OrgPrefix {
    OrgPrefix::new([org; 5])
}

fn address(org: u8, node: u64) -> Ipv6Addr {
    prefix(org).address(crate::address::Kind::Node, node)
}

/// An organisation with the nodes `db` (1), `laptop` (2) and `web` (3); 1 and 3 offer `web`.
fn organisation(org: u8, name: &str) -> Org {
    let nodes = [(1, "db"), (2, "laptop"), (3, "web")]
        .into_iter()
        .map(|(id, name)| {
            let byte = u8::try_from(id).expect("a small id");
            let node = Node {
                name: label(name),
                public_key: PublicKey([byte; 32]),
                address: address(org, byte.into()),
                owner: None,
                may_reach: Vec::new(),
                reached_by: Vec::new(),
            };
            (NodeId(id), node)
        });
    let offer = |node| map::Service {
        node: NodeId(node),
        port: 80,
        target: None,
    };
    let services = BTreeMap::from([
        (label("web"), vec![offer(1), offer(3), offer(3), offer(99)]),
        (label("gone"), vec![offer(99)]),
    ]);
    let paris = map::Site {
        name: label("paris"),
        node: NodeId(1),
        standbys: Vec::new(),
        prefixes: vec!["192.168.1.0/24".parse().expect("a prefix")],
        aliases: vec!["192.168.1.0/24=10.99.1.0/24".parse().expect("an alias")],
        mode: Mode::default(),
        may_reach: Vec::new(),
        reached_by: Vec::new(),
    };
    Org {
        name: label(name),
        prefix: prefix(org),
        gateway: None,
        nodes: nodes.collect(),
        services,
        sites: BTreeMap::from([(SiteId(5), paris)]),
        rules: None,
        ssh: None,
    }
}

fn zone(org: u8, name: &str) -> Zone {
    Zone::new(&organisation(org, name), 7)
}

fn ask(zone: &Zone, name: &str, kind: Kind) -> Answer {
    let name = Name::parse(name).expect("a name below the zone");
    zone.answer(address(1, 2), &Question { name, kind }, 1)
}

#[track_caller]
fn check(name: &str, kind: Kind, expected: &Answer) {
    assert_eq!(
        ask(&zone(1, "acme"), name, kind),
        *expected,
        "{name} {kind:?}"
    );
}

#[test]
fn a_node_is_found_by_name_in_any_case_with_and_without_its_organisation() {
    let db = || Answer::Addresses(vec![address(1, 1)]);
    for name in [
        "db.internal",
        "DB.Internal",
        "db.internal.",
        "db.acme.internal",
        "dB.aCME.INTERNAL.",
    ] {
        check(name, Kind::Aaaa, &db());
    }
}

#[test]
fn a_host_of_a_site_is_found_by_its_address_and_the_name_of_the_site() {
    let site = SitePrefix::new(prefix(1), SiteId(5)).expect("a site");
    let host = site.embed([192, 168, 1, 10].into());
    for name in [
        "192-168-1-10.paris.site.internal",
        "192-168-1-10.PARIS.Site.internal.",
    ] {
        check(name, Kind::Aaaa, &Answer::Addresses(vec![host]));
    }
    let said = ["prefix=192.168.1.0/24", "alias=192.168.1.0/24=10.99.1.0/24"];
    let said = said.map(str::to_owned).into();
    check("paris.site.internal", Kind::Txt, &Answer::Text(said));
    for name in [
        "192-168-2-10.paris.site.internal",
        "192-168-1-10.rome.site.internal",
        "192-168-1-010.paris.site.internal",
        "192-168-1.paris.site.internal",
        "192-168-1-10-1.paris.site.internal",
        "db.paris.site.internal",
        "rome.site.internal",
        "1.192-168-1-10.paris.site.internal",
    ] {
        check(name, Kind::Aaaa, &Answer::NoSuchName);
    }
}

#[test]
fn an_existing_name_without_the_type_is_nodata() {
    for name in [
        "db.internal",
        "db.acme.internal",
        "web.svc.internal",
        "svc.internal",
        "site.internal",
        "paris.site.internal",
        "192-168-1-10.paris.site.internal",
        "acme.internal",
        "internal",
        "_sshca.internal",
        "_whoami.internal",
        "_health.internal",
    ] {
        check(name, Kind::Other, &Answer::NoData);
    }
    check("db.internal", Kind::Txt, &Answer::NoData);
    check("db.internal", Kind::Soa, &Answer::NoData);
    check("_whoami.internal", Kind::Aaaa, &Answer::NoData);
    check("internal", Kind::Soa, &Answer::Authority);
}

#[test]
fn what_does_not_exist_is_nxdomain_whatever_the_type() {
    for name in [
        "nothing.internal",
        "nothing.acme.internal",
        "nothing.svc.internal",
        "gone.svc.internal",
        "a.db.internal",
        "a.b.c.d.internal",
        "-.internal",
        "a b.internal",
        ".internal",
        "..internal",
    ] {
        for kind in [Kind::Aaaa, Kind::Txt, Kind::Soa, Kind::Other] {
            check(name, kind, &Answer::NoSuchName);
        }
    }
}

#[test]
fn another_organisation_is_answered_like_one_that_does_not_exist() {
    for name in [
        "db.umbrella.internal",
        "umbrella.internal",
        "db.nobody.internal",
    ] {
        check(name, Kind::Aaaa, &Answer::NoSuchName);
    }
    let umbrella = zone(2, "umbrella");
    let expected = Answer::Addresses(vec![address(2, 1)]);
    assert_eq!(ask(&umbrella, "db.internal", Kind::Aaaa), expected);
    assert_eq!(ask(&umbrella, "db.umbrella.internal", Kind::Aaaa), expected);
    assert_eq!(
        ask(&umbrella, "db.acme.internal", Kind::Aaaa),
        Answer::NoSuchName
    );
}

#[test]
fn names_outside_the_zone_are_not_ours() {
    for name in [
        "",
        ".",
        "example.com",
        "internal.example",
        "db",
        "xinternal",
        "db.internal..",
    ] {
        assert_eq!(Name::parse(name), Err(Foreign), "{name}");
    }
}

#[test]
fn a_person_may_leave_the_zone_out() {
    assert_eq!(Name::parse_relative("db"), Name::Node(label("db")));
    assert_eq!(Name::parse_relative("Web.SVC"), Name::Service(label("web")));
    assert_eq!(
        Name::parse_relative("db.internal."),
        Name::Node(label("db"))
    );
    assert_eq!(Name::parse_relative("example.com.org"), Name::Unknown);
}

#[test]
fn a_service_is_every_node_that_offers_it_and_every_order_comes_up() {
    let zone = zone(1, "acme");
    let name = Name::parse("web.svc.internal").expect("a name below the zone");
    let question = Question {
        name,
        kind: Kind::Aaaa,
    };
    let mut orders = BTreeSet::new();
    for seed in 0..64 {
        let Answer::Addresses(order) = zone.answer(address(1, 2), &question, seed) else {
            panic!("addresses");
        };
        orders.insert(order);
    }
    let (first, second) = (address(1, 1), address(1, 3));
    assert_eq!(
        orders,
        BTreeSet::from([vec![first, second], vec![second, first]])
    );
}

#[test]
fn whoami_says_whom_the_resolver_sees() {
    let text = |node: &str, address: Ipv6Addr| {
        Answer::Text(vec![
            "org=acme".to_owned(),
            format!("node={node}"),
            format!("address={address}"),
        ])
    };
    check(
        "_whoami.internal",
        Kind::Txt,
        &text("laptop", address(1, 2)),
    );
    let name = Name::Whoami;
    let question = Question {
        name,
        kind: Kind::Txt,
    };
    let stranger = address(1, 77);
    assert_eq!(
        zone(1, "acme").answer(stranger, &question, 0),
        text("", stranger)
    );
    check(
        "_health.internal",
        Kind::Txt,
        &Answer::Text(vec!["ok".to_owned()]),
    );
    check(
        "_health.internal",
        Kind::Aaaa,
        &Answer::Addresses(vec![prefix(1).resolver()]),
    );
}

#[test]
fn one_node_more_makes_the_same_zone_as_the_whole_anew() {
    let names = ["ci", "db", "web"];
    for id in [2_u32, 4, 99] {
        for name in names {
            let mut org = organisation(1, "acme");
            let mut zone = Zone::new(&org, 7);
            let node = Node {
                name: label(name),
                public_key: PublicKey([9; 32]),
                address: address(1, u64::from(id)),
                owner: None,
                may_reach: Vec::new(),
                reached_by: Vec::new(),
            };
            let id = NodeId(i64::from(id));
            let former = org.nodes.insert(id, node);
            zone.insert(&org, id, former.as_ref(), 8);
            assert_eq!(zone, Zone::new(&org, 8), "{id} {name}");
        }
    }
}

#[test]
fn the_ca_keys_are_a_signed_statement_that_the_asker_can_read_back() {
    let statement = ssh::Statement {
        version: 2,
        keys: ssh::CaKeys {
            user: vec![ssh::PublicKeyText([1; 32])],
            host: vec![ssh::PublicKeyText([2; 32])],
        },
        signature: ssh::SignatureText([3; 64]),
    };
    let mut org = organisation(1, "acme");
    org.ssh = Some(ssh::Authority {
        signing_key: ssh::PublicKeyText([4; 32]),
        statement: statement.clone(),
        revoked: BTreeSet::new(),
        cut: BTreeMap::new(),
        recording: ssh::Recording::Off,
    });
    let zone = Zone::new(&org, 7);
    let Answer::Text(strings) = ask(&zone, "_SSHCA.internal.", Kind::Txt) else {
        panic!("the zone has a statement");
    };
    assert_eq!(ssh::Statement::from_txt(prefix(1), &strings), Ok(statement));
    check("_sshca.internal", Kind::Txt, &Answer::NoData);
}
