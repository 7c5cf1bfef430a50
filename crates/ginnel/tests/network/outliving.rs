//! What goes on without the control plane, and what a gateway that was killed takes up again.

use crate::world::{World, echoes, note, now, serve_echo, wait_for};

#[test]
fn without_the_server_traffic_and_names_go_on_and_every_node_restarts_from_its_last_map() {
    let (mut world, laptop) = World::with_laptop();
    let gateway = world.gateway("edge");
    let shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "echo.svc.internal", 7000);
    uses_gateway(&world, "laptop", "edge");
    assert!(echoes(local, b"with the server"));

    world.server.take().expect("it runs").kill();
    assert!(echoes(local, b"without the server"));
    let resolved = world.run("laptop", &["resolve", "echo.svc.internal"]);
    wait_for("the server's absence in the status", || {
        world.json("laptop", &["status"])["control"]["reached"] == false
    });
    assert!(world.run("laptop", &["status"]).contains(" away for "));

    let before = endpoints(&world, "edge");
    drop(shed);
    let _shed = world.up("shed");
    wait_for("a restarted node", || echoes(local, b"a node restarted"));
    drop(laptop);
    let _laptop = world.up("laptop");
    wait_for("a restarted client", || {
        echoes(local, b"a client restarted")
    });
    // The gateway writes down where its nodes are soon after.
    wait_for("both new endpoints on disk", || {
        let now = endpoints(&world, "edge");
        now.len() == 2 && now.iter().all(|endpoint| !before.contains(endpoint))
    });
    drop(gateway);
    let _gateway = world.gateway_again("edge");
    wait_for("a restarted gateway", || {
        echoes(local, b"a gateway restarted")
    });
    assert_eq!(
        world.run("laptop", &["resolve", "echo.svc.internal"]),
        resolved
    );

    world.restart_server();
    wait_for("the server's return in the status", || {
        world.json("laptop", &["status"])["control"]["reached"] == true
    });
    world.join("late");
    let _late = world.up("late");
    wait_for("a node that came after the return", || {
        world.try_run("laptop", &["ping", "late", "-c", "1"]).code == Some(0)
    });
}

#[test]
fn a_gateway_that_was_killed_carries_traffic_again_once_it_is_back() {
    let (world, _laptop) = World::with_laptop();
    let gateway = world.gateway("edge");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the first echo", || echoes(local, b"x"));
    uses_gateway(&world, "laptop", "edge");
    let (mut ping, _) = world.start("laptop", &["ping", "shed", "-i", "0.05"], "time=");
    let open = Connection::open(local);
    wait_for("the endpoints on disk", || {
        endpoints(&world, "edge").len() == 2
    });

    gateway.kill();
    ping.forget_lines();
    let begin = now();
    let _gateway = world.gateway_again("edge");
    ping.until("time=");
    let ping_took = now().duration_since(begin);
    open.goes_on();
    let connection_took = now().duration_since(begin);
    note(&format!(
        "after a restart of the gateway: ping {ping_took:?}, TCP {connection_took:?}"
    ));
}

#[test]
fn a_server_that_was_killed_keeps_what_it_said() {
    let (mut world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the first echo", || echoes(local, b"x"));
    wait_for("the endpoints on disk", || {
        endpoints(&world, "data/gateway").len() == 2
    });
    world.server.take().expect("it runs").kill();
    let begin = now();
    world.restart_server();
    let open = Connection::open(local);
    open.goes_on();
    let took = now().duration_since(begin);
    note(&format!(
        "after a restart of the server with its gateway: {took:?}"
    ));
    let names = world.json("laptop", &["node", "list"]);
    assert_eq!(names.as_array().map(Vec::len), Some(3));
}

#[test]
fn a_gateway_that_lost_every_session_is_asked_for_a_new_one_before_a_command_gives_up() {
    let (world, _laptop) = World::with_laptop();
    let gateway = world.gateway("edge");
    uses_gateway(&world, "laptop", "edge");
    let resolved = world.run("laptop", &["resolve", "laptop"]);
    let written = world.path("edge").join("endpoints.json");
    wait_for("the endpoint on disk", || {
        endpoints(&world, "edge").len() == 1
    });
    // Without the file it does not begin by itself, and the laptop believes in its session: the
    // control plane was there all the time.
    drop(gateway);
    std::fs::remove_file(written).expect("it is there");
    let _gateway = world.gateway_again("edge");
    assert_eq!(
        world.json("laptop", &["status"])["node"]["peers"][0]["tunnel"],
        "up"
    );
    assert_eq!(world.run("laptop", &["resolve", "laptop"]), resolved);
}

/// An open connection to an echo.
pub(crate) struct Connection(std::net::TcpStream);

impl Connection {
    pub(crate) fn open(local: std::net::SocketAddr) -> Self {
        let stream = std::net::TcpStream::connect(local).expect("the forward listens");
        let patience = Some(crate::world::WAIT_MAX);
        stream.set_read_timeout(patience).expect("not zero");
        Self(stream)
    }

    pub(crate) fn goes_on(&self) {
        use std::io::{Read as _, Write as _};
        let mut back = [0; 5];
        (&self.0).write_all(b"still").expect("it is open");
        (&self.0).read_exact(&mut back).expect("it is answered");
        assert_eq!(&back, b"still");
    }
}

/// Waits until the node of `who` has a tunnel to that gateway.
fn uses_gateway(world: &World, who: &str, gateway: &str) {
    wait_for("the tunnel to the gateway apart", || {
        let status = world.json(who, &["status"]);
        let peers = status["node"]["peers"].as_array().expect("a list").clone();
        peers.len() == 1 && peers[0]["name"] == gateway && peers[0]["tunnel"] == "up"
    });
}

/// Returns where a gateway says that its nodes are.
pub(crate) fn endpoints(world: &World, who: &str) -> Vec<String> {
    let path = world.path(who).join("endpoints.json");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let words = text
        .split('"')
        .filter(|word| word.starts_with("127.0.0.1:"));
    words.map(str::to_owned).collect()
}
