//! Several servers on one PostgreSQL: what each is told the others know, and any of them may die.
//!
//! ```text
//!   laptop ─┐                ┌─ server "data",   with a gateway ─┐
//!           ├─ TCP balancer ─┤                                   ├─ PostgreSQL
//!   shed ───┘                └─ server "second", with a gateway ─┘
//! ```

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    crash::{Changes, Postgres, kills},
    outliving::Connection,
    world::{Process, World, echoes, note, now, serve_echo, wait_for, word},
};

/// Two servers of one installation; commands go to them through a balancer.
struct Servers {
    world: World,
    /// The URLs of both, that of the first first.
    urls: [String; 2],
    /// Where the gateway of the second is.
    wireguard: String,
    second: Option<Process>,
    database: String,
    balancer: Balancer,
}

impl Servers {
    fn start(postgres: &Postgres) -> Self {
        let database = postgres.url();
        let mut world = World::with_flags(&["--database", &database]);
        let second = world.path("second");
        fs::create_dir(&second).expect("a new directory");
        for name in ["ca.key", "ca.pem", "master.key"] {
            let key = world.path("data").join(name);
            fs::copy(key, second.join(name)).expect("the first server has made it");
        }
        let first = world.url.clone();
        let balancer = Balancer::start();
        balancer.lead_to(&[&first]);
        world.url = balancer.url();
        let mut servers = Self {
            world,
            urls: [first, String::new()],
            wireguard: "127.0.0.1:0".to_owned(),
            second: None,
            database,
            balancer,
        };
        servers.run_second("127.0.0.1:0");
        servers.balancer.lead_to(&servers.both());
        servers
    }

    fn run_second(&mut self, listen: &str) {
        let data = self.world.path("second");
        let data = data.to_str().expect("UTF-8");
        let line = [
            "server",
            "--data",
            data,
            "--database",
            &self.database,
            "--listen",
            listen,
            "--wireguard",
            &self.wireguard,
        ];
        let mut server = self.world.spawn(&mut self.world.ginnel("x", &line));
        self.urls[1] = word(&server.until("server "), "https://");
        let line = server.until("wireguard");
        self.wireguard = line.split_whitespace().last().expect("a word").to_owned();
        self.second = Some(server);
    }

    fn kill(&mut self, number: usize) {
        let server = match number {
            0 => self.world.server.take(),
            _ => self.second.take(),
        };
        server.expect("it runs").kill();
    }

    /// Runs a server again that was killed.
    fn run_again(&mut self, number: usize) {
        let url = self.urls[number].clone();
        if number > 0 {
            return self.run_second(url.trim_start_matches("https://"));
        }
        self.world.url = url;
        self.world.restart_server();
        self.world.url = self.balancer.url();
    }

    fn both(&self) -> [&str; 2] {
        [&self.urls[0], &self.urls[1]]
    }

    /// Returns the gateway that the node of `who` has a tunnel to.
    fn gateway_of(&self, who: &str) -> Option<String> {
        let status = self.world.json(who, &["status"]);
        let peers = status["node"]["peers"].as_array().expect("a list");
        let up = peers.iter().find(|peer| peer["tunnel"] == "up");
        up.map(|peer| peer["name"].as_str().expect("a name").to_owned())
    }
}

/// Passes each connection on to the first of its targets that takes it.
struct Balancer {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Balancer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let targets = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let known = targets.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let known = known.lock().expect("nobody panicked").clone();
                let mut found = known.iter().map(TcpStream::connect);
                if let Some(target) = found.find_map(Result::ok) {
                    pass(&stream, &target);
                    pass(&target, &stream);
                }
            }
        });
        Self { address, targets }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Leads to these from the next connection on, the first first.
    fn lead_to(&self, urls: &[&str]) {
        let targets = urls.iter().map(|url| {
            let address = url.trim_start_matches("https://");
            address.parse().expect("an address")
        });
        *self.targets.lock().expect("nobody panicked") = targets.collect();
    }
}

/// Passes bytes on until either side ends.
fn pass(from: &TcpStream, to: &TcpStream) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle");
    let (mut from, mut to) = (clone(from), clone(to));
    thread::spawn(move || {
        // Either side may go away at any time.
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(std::net::Shutdown::Write));
        drop(from.shutdown(std::net::Shutdown::Read));
    });
}

#[test]
fn a_change_at_one_server_reaches_the_nodes_of_the_other_and_the_death_of_that_costs_no_tunnel() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut servers = Servers::start(&postgres);
    let [first, second] = servers.urls.clone();
    servers.balancer.lead_to(&[&first]);
    servers.world.login("laptop");
    let _laptop = servers.world.up("laptop");
    servers.balancer.lead_to(&[&second]);
    let _shed = servers.world.machine("shed", "echo", 7000, serve_echo());
    servers.balancer.lead_to(&[&first]);
    let world = &servers.world;
    let (_forward, local) = world.forward("laptop", "echo.svc.internal", 7000);
    wait_for("the first echo", || echoes(local, b"x"));
    let open = Connection::open(local);
    open.goes_on();
    assert_eq!(servers.gateway_of("shed").as_deref(), Some("server"));

    let name = "late";
    world.join(name);
    let begin = now();
    wait_for("a name that the other server was told", || {
        world.try_run("shed", &["resolve", name]).code == Some(0)
    });
    let took = now().duration_since(begin);
    note(&format!(
        "a node that joined at one server is known at a node of the other after {took:?}"
    ));

    servers.kill(1);
    open.goes_on();
    // Its node finds the one that is left.
    servers.world.join("later");
    wait_for("a name that came after the death", || {
        servers.world.try_run("shed", &["resolve", "later"]).code == Some(0)
    });
    open.goes_on();
}

#[test]
fn the_gateway_of_another_server_carries_on_when_the_server_that_has_it_dies() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut servers = Servers::start(&postgres);
    servers.world.login("laptop");
    let _laptop = servers.world.up("laptop");
    let _shed = servers.world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = servers.world.forward("laptop", "shed", 7000);
    wait_for("the first echo", || echoes(local, b"x"));
    let open = Connection::open(local);
    open.goes_on();
    assert_eq!(servers.gateway_of("laptop").as_deref(), Some("server"));

    servers.kill(0);
    let begin = now();
    open.goes_on();
    let took = now().duration_since(begin);
    note(&format!(
        "an open connection goes on {took:?} after the server with the gateway was killed"
    ));
    assert_eq!(servers.gateway_of("laptop").as_deref(), Some("server-2"));

    // The one that returns leaves it the lead, and knows all that happened.
    servers.world.join("late");
    servers.run_again(0);
    servers.balancer.lead_to(&[&servers.urls[0]]);
    let nodes = servers.world.json("laptop", &["node", "list"]);
    let mut nodes = nodes.as_array().expect("a list").iter();
    assert!(nodes.any(|node| node["name"] == "late"));
    open.goes_on();
    assert_eq!(servers.gateway_of("laptop").as_deref(), Some("server-2"));
    servers.world.run("laptop", &["audit", "verify"]);
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_changes_leaves_all_that_it_acknowledged_to_the_other() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut servers = Servers::start(&postgres);
    servers.world.login("laptop");
    let changes = Changes::new(&servers.world);
    for round in 0..kills(4) {
        let victim = usize::from(round % 2 == 1);
        let [first, second] = servers.urls.clone();
        let urls = match victim {
            0 => [&first[..], &second[..]],
            _ => [&second[..], &first[..]],
        };
        // Half of the changes go to each, and at last all to the one that is left.
        thread::scope(|scope| {
            let _stop = changes.begin(scope, &servers.world);
            servers.balancer.lead_to(&urls);
            changes.wait_for_acknowledged(2);
            crate::crash::moment(round);
            let server = match victim {
                0 => &servers.world.server,
                _ => &servers.second,
            };
            server.as_ref().expect("it runs").signal("KILL");
            changes.wait_for_acknowledged(3);
        });
        changes.are_there(&servers.world);
        servers.kill(victim);
        servers.run_again(victim);
        servers.balancer.lead_to(&[urls[0]]);
        changes.are_there(&servers.world);
    }
}

#[test]
fn a_server_that_stops_in_the_middle_of_changes_holds_the_other_up_for_seconds_only() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut servers = Servers::start(&postgres);
    let [first, second] = servers.urls.clone();
    servers.world.login("laptop");
    let changes = Changes::new(&servers.world);
    servers.balancer.lead_to(&[&first]);
    thread::scope(|scope| {
        let _stop = changes.begin(scope, &servers.world);
        changes.wait_for_acknowledged(2);
        let stopped = servers.world.server.as_ref().expect("it runs");
        stopped.signal("STOP");
        servers.balancer.lead_to(&[&second]);
        let begin = now();
        changes.wait_for_acknowledged(3);
        let took = now().duration_since(begin);
        note(&format!(
            "the other server made three changes {took:?} after the first had stopped"
        ));
        stopped.signal("CONT");
        servers.balancer.lead_to(&[&first]);
        changes.wait_for_acknowledged(3);
    });
    changes.are_there(&servers.world);
    servers.kill(1);
    changes.are_there(&servers.world);
}
