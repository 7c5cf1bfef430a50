//! Rules hold between real programs: what is allowed goes on, what is not ends, and says why.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use crate::world::{WAIT_MAX, World, note, now, serve_echo, wait_for};

#[test]
fn what_no_rule_allows_fails_at_once_and_says_who_knows() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    world.run("laptop", &["ping", "shed", "--count", "1"]);
    world.run("laptop", &["policy", "set", "1", "--to", "tag:open"]);
    let refused = || {
        let ended = world.try_run("laptop", &["dial", "echo.svc", "7000"]);
        ended.stderr.contains("policy: ").then_some(ended)
    };
    let mut ended = None;
    wait_for("the rule", || {
        ended = refused();
        ended.is_some()
    });
    let ended = ended.expect("it was refused");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("ginnel policy explain"), "{ended:?}");

    let explained = world.try_run("laptop", &["policy", "explain", "laptop", "shed", "7000"]);
    assert_eq!(explained.code, Some(1), "{explained:?}");
    let sentence = "refused: no rule allows laptop to shed with 7000/tcp";
    assert!(explained.stdout.contains(sentence), "{explained:?}");

    world.run("laptop", &["node", "set", "shed", "--tag", "open"]);
    wait_for("the tag", || {
        world
            .try_run("laptop", &["ping", "shed", "--count", "1"])
            .code
            == Some(0)
    });
    let explained = world.run("laptop", &["policy", "explain", "laptop", "shed", "7000"]);
    assert!(explained.contains("by rule 1"), "{explained}");
    // A machine may ask too, about its own organisation.
    world.run("shed", &["policy", "explain", "laptop", "shed"]);
    let ended = world.try_run("shed", &["policy", "remove", "1"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

#[test]
fn a_change_cuts_what_it_forbids_and_leaves_what_it_allows() {
    let (world, _laptop) = World::with_laptop();
    world.join("shed");
    world.publish("shed", "first", 7000, serve_echo());
    world.publish("shed", "second", 7001, serve_echo());
    let _shed = world.up("shed");
    let open = |service: &str, port| {
        let (forward, local) = world.forward("laptop", service, port);
        let mut stream = TcpStream::connect(local).expect("the forward listens");
        echo(&mut stream).expect("it is open");
        (forward, stream)
    };
    let (_kept_forward, mut kept) = open("first.svc", 7000);
    let (_cut_forward, mut cut) = open("second.svc", 7001);
    let begin = now();
    world.run("laptop", &["policy", "set", "1", "--allow", "7000"]);
    let in_force = now();
    let waited = wait_for("the cut", || echo(&mut cut).is_err());
    note(&format!(
        "policy: command {:?}, cut {waited:?} after it",
        in_force.duration_since(begin)
    ));
    for _ in 0..10 {
        echo(&mut kept).expect("it goes on");
    }
}

#[test]
fn a_file_of_assertions_is_held_against_the_rules() {
    let (world, _laptop) = World::with_laptop();
    world.join("shed");
    let file = world.path("policy.txt");
    let path = file.to_str().expect("UTF-8");
    let test = |text: &str| {
        std::fs::write(&file, text).expect("write");
        world.try_run("laptop", &["policy", "test", path])
    };
    let ended = test("# the first rule\nlaptop may reach shed:22\nshed may not reach laptop:22\n");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, "2 of 2 assertions hold\n");
    // What roles may do needs no server.
    let matrix = world.json("nobody", &["policy", "matrix"]);
    let lines = matrix.as_array().expect("a list");
    let orgs = lines
        .iter()
        .find(|line| line["method"] == "POST" && line["path"] == "/v1/orgs")
        .expect("a line of each route");
    assert_eq!(
        (&orgs["operator"], &orgs["admin"]),
        (&"everything".into(), &"nothing".into())
    );
    let ended = test("laptop may reach shed:22\nuser:admin may not reach shed:80\n");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let line = "line 2: user:admin may not reach shed:80/tcp: allowed: laptop to shed";
    assert!(ended.stdout.contains(line), "{ended:?}");
    let ended = test("tag:none may reach shed\n");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let ended = test("laptop can reach shed\n");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("line 1: an assertion is"),
        "{ended:?}"
    );
    let many: String = (1..=120)
        .map(|port| format!("laptop may reach shed:{port}\n"))
        .collect();
    let ended = test(&many);
    assert_eq!(ended.stdout, "120 of 120 assertions hold\n", "{ended:?}");
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(WAIT_MAX))?;
    stream.write_all(b"still")?;
    stream.read_exact(&mut [0; 5])
}
