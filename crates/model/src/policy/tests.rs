//! Rules that decide, and their texts.

use proptest::prelude::*;

use super::*;

fn traffic(text: &str) -> Vec<Traffic> {
    let words = text.split_whitespace();
    words
        .map(|word| word.parse().expect("well-formed traffic"))
        .collect()
}

fn rules(texts: &[&str]) -> BTreeMap<RuleId, Rule> {
    let rule = |text: &&str| Rule {
        traffic: traffic(text),
    };
    (1..).map(RuleId).zip(texts.iter().map(rule)).collect()
}

fn reach(rules: &[i64]) -> Vec<Reach> {
    let reach = |id: &i64| Reach {
        rule: RuleId(*id),
        port: None,
    };
    rules.iter().map(reach).collect()
}

fn ids(ids: &[i64]) -> Vec<RuleId> {
    ids.iter().copied().map(RuleId).collect()
}

#[test]
fn what_no_rule_allows_is_refused() {
    let rules = rules(&["22/tcp", "all"]);
    let anything = [
        Wanted::Tcp(22),
        Wanted::Udp(53),
        Wanted::Ping,
        Wanted::Other,
    ];
    for wanted in anything {
        assert_eq!(decide(&rules, &[], [], wanted), None);
        assert_eq!(decide(&rules, &ids(&[1, 2]), [], wanted), None);
        assert_eq!(decide(&rules, &ids(&[2]), reach(&[1]), wanted), None);
        // A rule that the map does not carry allows nothing.
        assert_eq!(decide(&rules, &ids(&[9]), reach(&[9]), wanted), None);
    }
}

#[test]
fn the_first_rule_that_joins_both_nodes_decides() {
    let rules = rules(&["22 8000-8100/tcp", "53/udp", "all"]);
    let check = |may_reach: &[i64], reached_by: &[i64], wanted, rule: Option<i64>| {
        let decided = decide(&rules, &ids(may_reach), reach(reached_by), wanted);
        assert_eq!(decided, rule.map(RuleId), "{wanted:?}");
    };
    check(&[1, 2], &[1, 2], Wanted::Tcp(22), Some(1));
    check(&[1, 2], &[1, 2], Wanted::Tcp(8100), Some(1));
    check(&[1, 2], &[1, 2], Wanted::Tcp(8101), None);
    check(&[1, 2], &[1, 2], Wanted::Udp(53), Some(2));
    check(&[1, 2], &[1, 2], Wanted::Udp(22), None);
    check(&[1, 2], &[1, 2], Wanted::Other, None);
    check(&[1, 3], &[1, 3], Wanted::Other, Some(3));
    check(&[1, 3], &[1, 3], Wanted::Tcp(22), Some(1));
}

#[test]
fn every_rule_between_two_nodes_lets_echo_requests_through() {
    let rules = rules(&["22/tcp"]);
    let decided = decide(&rules, &ids(&[1]), reach(&[1]), Wanted::Ping);
    assert_eq!(decided, Some(RuleId(1)));
}

#[test]
fn a_service_is_reached_at_its_port_alone() {
    let rules = rules(&["all"]);
    let reached_by = [Reach {
        rule: RuleId(1),
        port: Some(5432),
    }];
    let decided = |wanted| decide(&rules, &ids(&[1]), reached_by, wanted);
    assert_eq!(decided(Wanted::Tcp(5432)), Some(RuleId(1)));
    assert_eq!(decided(Wanted::Ping), Some(RuleId(1)));
    for wanted in [Wanted::Tcp(5433), Wanted::Udp(5432), Wanted::Other] {
        assert_eq!(decided(wanted), None);
    }
}

#[test]
fn hosts_of_a_site_are_reached_by_rules_about_all_of_them() {
    let prefix = |text: &str| text.parse::<Ipv4Prefix>().expect("a prefix");
    let whole = SiteReach {
        rule: RuleId(1),
        hosts: None,
    };
    let part = SiteReach {
        rule: RuleId(2),
        hosts: Some(prefix("192.168.1.0/28")),
    };
    let rule = |reach: SiteReach, hosts: &str| reach.of(prefix(hosts)).map(|reach| reach.rule);
    for hosts in ["192.168.1.10", "192.168.1.0/24", "10.0.0.0/8"] {
        assert_eq!(rule(whole, hosts), Some(RuleId(1)), "{hosts}");
    }
    assert_eq!(rule(part, "192.168.1.10"), Some(RuleId(2)));
    assert_eq!(rule(part, "192.168.1.8/29"), Some(RuleId(2)));
    for hosts in ["192.168.1.16", "192.168.1.0/24", "10.0.0.0/8"] {
        assert_eq!(rule(part, hosts), None, "{hosts}");
    }
}

#[test]
fn selectors_and_traffic_are_printed_as_they_are_read() {
    for text in [
        "*",
        "machines",
        "user:ann",
        "role:guest",
        "group:ops",
        "node:db",
        "tag:web",
        "service:postgres",
        "site:paris",
        "site:paris:192.168.1.0/28",
    ] {
        let selector: Selector = text.parse().expect("a selector");
        assert_eq!(selector.to_string(), text);
    }
    for (text, printed) in [
        ("all", "all"),
        ("ping", "ping"),
        ("tcp", "tcp"),
        ("udp", "udp"),
        ("22", "22/tcp"),
        ("53/udp", "53/udp"),
        ("8000-8100", "8000-8100/tcp"),
    ] {
        let traffic: Traffic = text.parse().expect("traffic");
        assert_eq!(traffic.to_string(), printed);
    }
}

#[test]
fn text_that_means_nothing_is_refused() {
    for text in [
        "",
        "ann",
        "user:",
        "user:a b",
        "role:root",
        "host:db",
        "node:$(id)",
        "node:a:b",
        "site:",
        "site:paris:",
        "site:paris:192.168.1.10/24",
        "site:paris:127.0.0.1",
        "**",
    ] {
        assert_eq!(text.parse::<Selector>(), Err(MalformedSelector), "{text}");
    }
    for text in [
        "", "0", "65536", "+22", "22-", "-22", "30-20", "22/sctp", "22/", "tcp/22", "22 23",
    ] {
        assert_eq!(text.parse::<Traffic>(), Err(MalformedTraffic), "{text}");
    }
}

proptest! {
    /// A rule by rule evaluation from the sentence of the manual: some rule that the one may reach
    /// others by and the other may be reached by lets it through.
    #[test]
    fn a_decision_is_what_reading_every_rule_gives(
        texts in prop::collection::vec(
            prop::sample::select(vec!["all", "ping", "tcp", "22", "53/udp", "20-30/tcp 53/udp"]),
            0..6,
        ),
        from in prop::collection::btree_set(0i64..7, 0..6),
        to in prop::collection::btree_map(0i64..7, prop::option::of(20u16..30), 0..6),
        wanted in prop_oneof![
            (18u16..34).prop_map(Wanted::Tcp),
            (50u16..56).prop_map(Wanted::Udp),
            Just(Wanted::Ping),
            Just(Wanted::Other),
        ],
    ) {
        let rules = rules(&texts);
        let may_reach: Vec<_> = from.iter().copied().map(RuleId).collect();
        let reached_by: Vec<_> = to
            .iter()
            .map(|(id, port)| Reach { rule: RuleId(*id), port: *port })
            .collect();
        let allowed = rules.iter().any(|(id, rule)| {
            let service = to.get(&id.0);
            from.contains(&id.0) && service.is_some_and(|port| match (port, wanted) {
                (_, Wanted::Ping) => true,
                (Some(port), wanted) => wanted == Wanted::Tcp(*port),
                (None, wanted) => rule.traffic.iter().any(|traffic| traffic.has(wanted)),
            })
        });
        let decided = decide(&rules, &may_reach, reached_by, wanted);
        prop_assert_eq!(decided.is_some(), allowed);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
        let _selector = text.parse::<Selector>();
        let _traffic = text.parse::<Traffic>();
    }
}

fn party(owner: Option<Role>) -> Party {
    let owner = owner.map(|role| Owner {
        name: "alice".parse().expect("a label"),
        role,
        groups: vec!["ops".parse().expect("a label")],
    });
    Party {
        name: "db".parse().expect("a label"),
        owner,
        tags: vec!["blue".parse().expect("a label")],
    }
}

#[test]
fn a_selector_selects_by_what_it_names() {
    let (machine, device) = (party(None), party(Some(Role::Guest)));
    let cases = [
        ("*", true, true),
        ("machines", true, false),
        ("user:alice", false, true),
        ("user:bob", false, false),
        ("role:guest", false, true),
        ("role:admin", false, false),
        ("group:ops", false, true),
        ("group:dev", false, false),
        ("node:db", true, true),
        ("node:alice", false, false),
        ("tag:blue", true, true),
        ("tag:red", false, false),
        // A service is a port, which a map names beside the rule.
        ("service:db", false, false),
    ];
    for (text, of_machine, of_device) in cases {
        let selector: Selector = text.parse().expect("a selector");
        assert_eq!(selector.selects(&machine), of_machine, "{text}");
        assert_eq!(selector.selects(&device), of_device, "{text}");
    }
}

#[test]
fn an_assertion_has_two_ends_and_perhaps_a_port() {
    for text in [
        "alice may reach db:5432/tcp",
        "user:alice may reach service:web",
        "* may not reach machines:ping",
        "tag:a may not reach tag:b:53/udp",
        "laptop may reach db",
    ] {
        let assertion: Assertion = text.parse().expect(text);
        assert_eq!(assertion.to_string(), text);
    }
    let spaced: Assertion = "  a   may reach\tb:22 "
        .parse()
        .expect("white space is free");
    assert_eq!(spaced.to_string(), "a may reach b:22/tcp");
    for text in [
        "",
        "a",
        "a may b",
        "a may reach",
        "a may reach b c",
        "a must reach b",
        "a may never reach b",
        "a may reach b:0",
        "a may reach b:65536",
        "a may reach b:22/sctp",
        "a b may reach c",
        "a may reach tag:",
        "-_ may reach b",
        "a may reach b:",
    ] {
        assert!(text.parse::<Assertion>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn what_parses_as_an_assertion_prints_as_one(
        text in "[a-z*:]{1,8} may (not )?reach .{0,20}|.{0,60}"
    ) {
        if let Ok(assertion) = text.parse::<Assertion>() {
            prop_assert_eq!(assertion.to_string().parse(), Ok(assertion));
        }
        if let Ok(wanted) = text.parse::<Wanted>() {
            prop_assert_eq!(wanted.to_string().parse(), Ok(wanted));
        }
    }
}
