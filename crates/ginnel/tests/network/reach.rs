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
    let back = world.json("shed", &["ping", "laptop", "-c", "1"]);
    assert_eq!(back["received"], 1);

    let mut dial = world.ginnel("laptop", &["dial", "shed", "7000"]);
    let answer = fed(&mut dial, b"by dial");
    assert_eq!(answer, b"by dial");
    let (_forward, local) = world.forward("laptop", "echo.svc", 7000);
    assert!(crate::world::echoes(local, b"by forward"));
    assert_eq!(
        world.run("laptop", &["whoami"]).trim().split(',').next(),
        Some("signed in as admin")
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
