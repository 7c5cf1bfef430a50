//! A site that comes and goes, of which nothing stays: no route, rule, setting or process. While
//! its node is killed, unreachable routes stand where its own ones were.
//!
//! `FLAPS` says how often.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

use super::{
    attachment::Running,
    routed::Scene,
    site::{finish, succeeded},
    world::{LONG, Space, within},
};

/// What a machine has that a node could leave behind, line by line.
fn settings(space: &Space) -> BTreeSet<String> {
    // Secrets that are not set cannot be read.
    let conf = "grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf || true";
    let lists: [&[&str]; 7] = [
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "-br", "address"],
        &["nft", "list", "ruleset"],
        &["sh", "-c", conf],
    ];
    let list = |line: &[&str]| {
        let mut list = space.command(line[0]);
        list.args(&line[1..]);
        let text = succeeded(&finish(list));
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    lists.into_iter().flat_map(list).collect()
}

/// How many processes have a machine's network.
fn processes(space: &Space) -> usize {
    let own = fs::metadata(format!("/run/netns/{}", space.name)).expect("it is there");
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let has_it = |path: &std::path::Path| {
        fs::metadata(path.join("ns/net")).is_ok_and(|net| net.ino() == own.ino())
    };
    entries.filter(|entry| has_it(&entry.path())).count()
}

#[test]
fn nothing_stays_of_a_site_that_comes_and_goes() {
    let Some(mut scene) = Scene::laid() else {
        return;
    };
    // The machine's own addresses take their time.
    within(LONG, "no address is tentative", || {
        let mut show = scene.offices[0].node.0.command("ip");
        show.args(["-6", "address", "show", "tentative"]);
        succeeded(&finish(show)).is_empty()
    });
    let machine = |scene: &Scene| settings(&scene.offices[0].node.0);
    let before = machine(&scene);
    scene.enrol("routed");
    let line = ["--from", "site:beijing", "--to", "site:shenzhen"];
    scene.run(&[&["policy", "add"][..], &line].concat());
    let answers = |scene: &Scene| {
        let [one, other] = &scene.offices;
        other.device.0.ping(one.address(), 1) == 1
    };
    within(LONG, "the device answers", || answers(&scene));
    stop(scene.running.remove(1));
    let flaps = std::env::var("FLAPS").map_or(20, |flaps| flaps.parse().expect("a number"));
    for number in 0..flaps {
        let node = scene.up(0);
        assert!(machine(&scene) != before, "it has an interface");
        if number % 4 < 2 {
            within(LONG, "the device answers", || answers(&scene));
        }
        if number % 2 == 0 {
            stop(node);
            let after = machine(&scene);
            let others: Vec<_> = after.symmetric_difference(&before).collect();
            assert_eq!(others, [""; 0], "flap {number}");
        } else {
            drop(node);
            let after = machine(&scene);
            let left: Vec<_> = after.difference(&before).collect();
            assert!(left.iter().all(|line| is_fallback(line)), "{left:?}");
            if number % 4 < 2 {
                let [_, _] = left[..] else {
                    panic!("not the organisation and the other site: {left:?}");
                };
            }
            assert!(after.is_superset(&before), "flap {number}");
        }
        assert_eq!(processes(&scene.offices[0].node.0), 0, "flap {number}");
    }
    let node = scene.up(0);
    within(LONG, "the device answers", || answers(&scene));
    drop(node);
    assert!(machine(&scene) != before, "it was killed");
    succeeded(&finish(scene.at_office(0, &["logout"])));
    assert_eq!(machine(&scene), before, "it has left the network");
}

#[test]
fn an_interface_that_comes_up_again_has_its_fallbacks_and_no_others() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let line = ["--from", "site:beijing", "--to", "site:shenzhen"];
    scene.run(&[&["policy", "add"][..], &line].concat());
    let node = &scene.offices[0].node.0;
    let answers = || {
        let [one, other] = &scene.offices;
        other.device.0.ping(one.address(), 1) == 1
    };
    let fallbacks = || {
        let lines = settings(node).into_iter();
        lines.filter(|line| is_fallback(line)).collect::<Vec<_>>()
    };
    within(LONG, "the device answers", answers);
    let both = fallbacks();
    assert_eq!(
        both.len(),
        2,
        "the organisation and the other site: {both:?}"
    );
    node.ip(&["link", "set", "ginnel0", "down"]);
    assert_eq!(fallbacks(), both);
    node.ip(&["link", "set", "ginnel0", "up"]);
    within(LONG, "the device answers", answers);
    assert_eq!(fallbacks(), both);
    // What somebody else routes meanwhile is left alone.
    node.ip(&["link", "set", "ginnel0", "down"]);
    node.ip(&["route", "add", "192.168.200.0/23", "via", "192.168.201.1"]);
    node.ip(&["link", "set", "ginnel0", "up"]);
    within(LONG, "only the organisation has one", || {
        let left = fallbacks();
        left.len() == 1 && left[0].starts_with("unreachable fd")
    });
}

/// Tells whether a line is a route for what nobody routes any more.
fn is_fallback(line: &str) -> bool {
    line.starts_with("unreachable ") && line.contains(" proto 71 metric 42949")
}

/// Lets a node end by itself.
fn stop(node: Running) {
    node.terminate();
    let (code, said) = node.ended();
    assert_eq!(code, Some(0), "{said}");
}
