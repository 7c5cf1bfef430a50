//! A PostgreSQL that stands still, and then is killed: what runs goes on, changes are refused at
//! once, and all is as before when it is back.
//!
//! `OUTAGE_SECONDS` (default 15) is how long it stands still.

use std::{net::SocketAddr, process::Command, thread, time::Duration};

use crate::{
    crash::Postgres,
    outliving::Connection,
    world::{Ended, Process, World, echoes, finish, lacks, note, now, serve_echo, wait_for},
};

/// The longest that a refusal may take: two seconds, and one for the program to start and to ask.
const REFUSED_MAX: Duration = Duration::from_secs(3);

/// How soon everything works again.
const RETURN_MAX: Duration = Duration::from_secs(5);

/// Echo requests in a second.
const PINGS: u16 = 10;

#[test]
fn a_postgres_that_stands_still_and_then_is_killed_costs_no_packet_no_login_and_no_patience() {
    if lacks("ssh") {
        return;
    }
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let seconds = std::env::var("OUTAGE_SECONDS");
    let seconds = seconds.map_or(15, |text| {
        text.parse::<u16>()
            .ok()
            .filter(|seconds| *seconds <= u16::MAX / PINGS)
            .expect("OUTAGE_SECONDS is a number up to 6553")
    });
    let mut network = Network::new(&postgres);
    let token = network.world.token(&["--uses", "100"]);

    let count = PINGS * seconds;
    let ping = network.ping(count);
    postgres.signal_all("STOP");
    network.is_refused(&token, "stopped");
    network.restarts();
    let stopped = now();
    while now().duration_since(stopped) < Duration::from_secs(seconds.into()) {
        network.goes_on();
        network.is_refused(&token, "stands");
        thread::sleep(Duration::from_millis(500));
    }
    postgres.signal_all("CONT");
    network.is_back(&token, "went-on");
    network.lost_nothing(ping, count);

    let ping = network.ping(50);
    postgres.signal_all("STOP");
    network.is_refused(&token, "stopped-again");
    postgres.kill_all();
    network.is_refused(&token, "killed");
    network.goes_on();
    postgres.run();
    network.is_back(&token, "came-back");
    network.lost_nothing(ping, 50);
    network.world.run("laptop", &["audit", "verify"]);
}

/// A laptop with a certificate, a barn with an echo, a shed with an SSH server, and an attic with
/// an echo, which is started again.
struct Network {
    world: World,
    barn: SocketAddr,
    attic: SocketAddr,
    open: Connection,
    restarted: Option<Process>,
    _processes: [Process; 5],
}

impl Network {
    fn new(postgres: &Postgres) -> Self {
        let world = World::with_flags(&["--database", &postgres.url()]);
        world.login("laptop");
        let laptop = world.up("laptop");
        world.join("shed");
        let shed = world.up_with("shed", &["--ssh"]);
        let barn = world.machine("barn", "echo", 7000, serve_echo());
        let attic = world.machine("attic", "other", 7001, serve_echo());
        let (to_barn, local) = world.forward("laptop", "echo.svc.internal", 7000);
        let (to_attic, other) = world.forward("laptop", "attic", 7001);
        wait_for("the first echo", || {
            echoes(local, b"x") && echoes(other, b"x")
        });
        let open = Connection::open(local);
        let key = world.path("key");
        let key = key.to_str().expect("UTF-8");
        world.run("laptop", &["cert", "--out", key, "--principal", "root"]);
        let network = Self {
            world,
            barn: local,
            attic: other,
            open,
            restarted: Some(attic),
            _processes: [laptop, shed, barn, to_barn, to_attic],
        };
        wait_for("an SSH server", || network.log_in().code == Some(0));
        network
    }

    /// Sends echo requests until so many were sent.
    fn ping(&self, count: u16) -> Process {
        let count = count.to_string();
        let line = ["ping", "barn", "-c", &count, "-i", "0.1"];
        self.world.start("laptop", &line, "time=").0
    }

    #[track_caller]
    fn lost_nothing(&self, mut ping: Process, count: u16) {
        let ended = ping.ended();
        let expected = format!("{count} requests, {count} answers, 0.0% loss");
        assert!(ended.stdout.contains(&expected), "{ended:?}");
    }

    /// Traffic and names go on, and whoever has a certificate logs in.
    #[track_caller]
    fn goes_on(&self) {
        self.open.goes_on();
        assert!(echoes(self.barn, b"without the database"));
        self.world.run("laptop", &["resolve", "echo.svc.internal"]);
        let ended = self.log_in();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    /// OpenSSH with the certificate from before.
    fn log_in(&self) -> Ended {
        let state = self.world.path("laptop");
        let (program, state) = (env!("CARGO_BIN_EXE_ginnel"), state.display());
        let dial = format!("ProxyCommand={program} --state {state} dial shed 22");
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", &dial]);
        ssh.args(["-o", "IdentitiesOnly=yes", "-i"])
            .arg(self.world.path("key"));
        ssh.args(["-o", "StrictHostKeyChecking=no"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null"]);
        finish(ssh.args(["root@shed", "true"]))
    }

    /// Nothing is issued, and each who asks is told so at once.
    #[track_caller]
    fn is_refused(&self, token: &str, name: &str) {
        let key = self.world.path("another-key");
        let key = key.to_str().expect("UTF-8");
        let join = ["join", &self.world.url, "--token", token, "--name", name];
        for (who, line) in [
            ("laptop", &["token", "add"][..]),
            ("laptop", &["cert", "--out", key]),
            ("laptop", &["node", "list"]),
            (name, &join),
        ] {
            let begin = now();
            let refused = self.world.try_run(who, line);
            let took = now().duration_since(begin);
            let said = "server: the server's database does not answer";
            assert!(refused.stderr.contains(said), "{line:?}: {refused:?}");
            let advised = "try again in some seconds";
            assert!(refused.stderr.contains(advised), "{line:?}: {refused:?}");
            assert!(took <= REFUSED_MAX, "{line:?}: {took:?}");
        }
    }

    /// A node that is started again has its last map.
    #[track_caller]
    fn restarts(&mut self) {
        drop(self.restarted.take());
        self.restarted = Some(self.world.up("attic"));
        wait_for("a restarted node", || echoes(self.attic, b"restarted"));
    }

    /// A change is made and told within the time, also to the node that was started meanwhile.
    #[track_caller]
    fn is_back(&self, token: &str, name: &str) {
        let begin = now();
        let join = ["join", &self.world.url, "--token", token, "--name", name];
        wait_for("a change", || {
            self.world.try_run(name, &join).code == Some(0)
        });
        let changed = now().duration_since(begin);
        wait_for("the map with it", || {
            let knows = |who| self.world.try_run(who, &["resolve", name]).code == Some(0);
            knows("laptop") && knows("attic")
        });
        wait_for("nodes that know it", || {
            let reached = |who| self.world.json(who, &["status"])["control"]["reached"] == true;
            reached("laptop") && reached("attic")
        });
        let told = now().duration_since(begin);
        note(&format!(
            "{name}: a change after {changed:?}, told after {told:?}"
        ));
        assert!(told <= RETURN_MAX, "{told:?}");
        self.goes_on();
    }
}
