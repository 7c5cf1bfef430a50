//! Enrol, name, reach: what works between the nodes of one organisation and never between two.

use std::io::{Read as _, Write as _};

use crate::world::{World, finish, serve_echo, serve_page, wait_for};

const PAGE: &str = "hello from the shed";

#[test]
fn a_machine_is_enrolled_named_and_reached_by_every_command() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "web", 8080, serve_page(PAGE));
    world.publish("shed", "echo", 7000, serve_echo());

    let address = world.json("shed", &["status"])["node"]["addresses"][0].clone();
    let resolved = world.run("laptop", &["resolve", "shed", "AAAA"]);
    assert_eq!(resolved.trim(), address);
    for name in ["shed.internal", "web.svc.internal", "shed.default.internal"] {
        assert_eq!(world.run("laptop", &["resolve", name]), resolved, "{name}");
    }
    let ping = world.json("laptop", &["ping", "shed", "-c", "3", "-i", "0.05"]);
    assert_eq!((&ping["received"], &ping["address"]), (&3.into(), &address));
    // Machines serve everybody; nobody reaches a person's device unless a rule says so.
    let back = world.try_run("shed", &["ping", "laptop", "-c", "1"]);
    assert_eq!(back.code, Some(1), "{back:?}");
    world.run(
        "laptop",
        &["policy", "add", "--from", "*", "--to", "user:admin"],
    );
    wait_for("the rule", || {
        world.try_run("shed", &["ping", "laptop", "-c", "1"]).code == Some(0)
    });

    let mut dial = world.ginnel("laptop", &["dial", "shed", "7000"]);
    let answer = fed(&mut dial, b"by dial");
    assert_eq!(answer, b"by dial");
    let (_forward, local) = world.forward("laptop", "echo.svc", 7000);
    assert!(crate::world::echoes(local, b"by forward"));
    assert_eq!(
        world.run("laptop", &["whoami"]).trim().split(',').next(),
        Some("signed in as admin (admin)")
    );
    let services = world.json("laptop", &["service", "list"]);
    assert_eq!(services[0]["name"], "web");

    let line = ["proxy", "--http", "127.0.0.1:0"];
    let (_proxy, line) = world.start("laptop", &line, "http at");
    let proxy = line.split_whitespace().last().expect("an address");
    let url = "http://web.svc.internal:8080/";
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--proxy", proxy, url]);
    assert_eq!(finish(&mut curl).stdout, PAGE);
}

#[test]
fn two_organisations_with_the_same_names_never_see_each_other() {
    let (world, _laptop) = World::with_laptop();
    world.run("laptop", &["org", "add", "other"]);
    let own = serve_page("own");
    let _shed = world.machine("shed", "web", 8080, own);
    let token = world.token(&["--org", "other", "--uses", "2"]);
    world.join_with("foreign-shed", "shed", &token);
    world.join_with("foreign-laptop", "laptop", &token);
    world.publish("foreign-shed", "web", 8080, serve_page("foreign"));
    world.publish("foreign-shed", "secret", 9090, serve_page("secret"));
    let _foreign_shed = world.up("foreign-shed");
    let _foreign_laptop = world.up("foreign-laptop");

    let address = |who: &str| {
        let status = world.json(who, &["status"]);
        let address = status["node"]["addresses"][0].as_str();
        address.expect("a node has an address").to_owned()
    };
    for (who, own, foreign) in [
        ("laptop", address("shed"), address("foreign-shed")),
        ("foreign-laptop", address("foreign-shed"), address("shed")),
    ] {
        for name in ["shed", "web.svc.internal"] {
            let resolved = world.run(who, &["resolve", name, "AAAA"]);
            assert_eq!(resolved.trim(), own, "{who} asks for {name}");
        }
        assert_eq!(world.json(who, &["ping", &own, "-c", "1"])["received"], 1);
        // By address too: not reached, and the sentence does not tell whether it exists.
        for line in [
            &["ping", &foreign, "-c", "1"][..],
            &["dial", &foreign, "8080"],
        ] {
            let ended = world.try_run(who, line);
            assert_eq!(ended.code, Some(1), "{who} {line:?}: {ended:?}");
            let remedy = "is not an address of this network\n  see `ginnel resolve NAME`";
            assert!(ended.stderr.contains(remedy), "{ended:?}");
        }
    }
    for (who, name) in [
        ("laptop", "secret.svc.internal"),
        ("laptop", "shed.other.internal"),
        ("foreign-laptop", "shed.default.internal"),
    ] {
        let ended = world.try_run(who, &["resolve", name]);
        assert_eq!(ended.code, Some(1), "{who} asks for {name}: {ended:?}");
        assert!(ended.stderr.contains("does not exist"), "{ended:?}");
    }
    let status = world.json("foreign-laptop", &["status"]);
    assert_eq!(status["node"]["orgs"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["node"]["orgs"][0]["name"], "other");
}

fn fed(command: &mut std::process::Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    let mut output = Vec::new();
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_to_end(&mut output).expect("it writes");
    assert!(child.wait().expect("it ends").success());
    output
}
