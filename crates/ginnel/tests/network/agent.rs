//! The agent of an enrolled node: started on demand, shared, idle, and replaced by a newer one.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use crate::world::{World, echoes, finish, serve_echo, wait_for};

#[test]
fn a_command_starts_the_agent_which_others_share_and_which_ends_when_idle() {
    let world = World::new();
    world.login("laptop");
    assert_eq!(world.json("laptop", &["status"])["running"], false);
    let mut command = world.ginnel("laptop", &["resolve", "laptop"]);
    command.env("GINNEL_AGENT_IDLE", "1");
    assert_eq!(finish(&mut command).code, Some(0));
    let status = world.json("laptop", &["status"]);
    assert_eq!(
        (&status["running"], &status["node"]["name"]),
        (&true.into(), &"laptop".into())
    );
    world.run("laptop", &["ping", "laptop", "-c", "1"]);
    assert_eq!(world.json("laptop", &["status"])["pid"], status["pid"]);
    wait_for("the end of an idle agent", || {
        world.json("laptop", &["status"])["running"] == false
    });
}

#[test]
fn an_upgrade_lets_open_connections_of_the_old_agent_end_by_themselves() {
    let world = World::new();
    world.login("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let old = ["agent", "--as-version", "0.0.1"];
    let (mut old, _) = world.start("laptop", &old, "ready");
    let (forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the service", || echoes(local, b"x"));
    let mut open = TcpStream::connect(local).expect("the forward listens");
    let mut exchange = || {
        let mut back = [0; 4];
        open.write_all(b"open").expect("it is open");
        open.read_exact(&mut back).expect("it goes on");
    };
    exchange();
    // A newer command meets the older agent, which is busy and goes on serving both.
    world.run("laptop", &["resolve", "shed"]);
    let status = world.json("laptop", &["status"]);
    assert_eq!(
        (&status["version"], &status["draining"]),
        (&"0.0.1".into(), &true.into())
    );
    exchange();
    drop(forward);
    assert_eq!(old.ended().code, Some(0));
    world.run("laptop", &["resolve", "shed"]);
    let status = world.json("laptop", &["status"]);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
}
