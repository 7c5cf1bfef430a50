//! A machine that has to be approved, and whose time is over later, reaches nobody meanwhile.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::world::{Ended, WAIT_MAX, World, note, now, serve_echo, wait_for};

/// How long an answer may be late before it is taken for none.
const SILENCE: Duration = Duration::from_millis(500);

/// Tells whether an echo comes from `shed` to `laptop`.
fn answers(world: &World) -> bool {
    let ended = world.try_run("laptop", &["ping", "shed", "-c", "1"]);
    ended.code == Some(0)
}

/// Tells whether SSH at `shed`, whose host certificate comes after the approval, lets `laptop` in.
fn logs_in(world: &World) -> bool {
    let ended = world.try_run("laptop", &["ssh", "root@shed", "true"]);
    ended.code == Some(0)
}

/// What `who` is told who asks for `laptop`.
#[track_caller]
fn is_refused(world: &World, who: &str, why: &str) {
    for line in [
        &["ping", "laptop", "-c", "1"][..],
        &["resolve", "laptop"],
        &["dial", "laptop", "1"],
    ] {
        let ended = world.try_run(who, line);
        assert_eq!(ended.code, Some(1), "{line:?}: {ended:?}");
        assert!(ended.stderr.contains(why), "{line:?}: {ended:?}");
    }
}

#[track_caller]
fn has_no_name(ended: &Ended) {
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("does not exist"), "{ended:?}");
}

/// What the doctor of `who` finds first.
fn finding(world: &World, who: &str) -> String {
    let ended = world.try_run(who, &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    report["finding"]["code"]
        .as_str()
        .unwrap_or("none")
        .to_owned()
}

/// Sends a word and reads it back.
fn echo(stream: &mut TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"still")?;
    stream.read_exact(&mut [0; 5])
}

#[test]
fn a_machine_is_reached_from_its_approval_to_its_end_and_again_with_more_time() {
    let (world, _laptop) = World::with_laptop();
    let token = world.token(&["--approval"]);
    let line = ["join", &world.url, "--token", &token, "--name", "shed"];
    let joined = world.try_run("shed", &line);
    assert_eq!(joined.code, Some(0), "{joined:?}");
    let why = "this node waits for approval";
    let sentence = format!("{why}: ask an administrator for `ginnel node approve shed`");
    assert!(joined.stderr.contains(&sentence), "{joined:?}");
    let (mut shed, told) = world.start("shed", &["up", "--user", "--ssh"], why);
    assert_eq!(told, sentence);
    assert!(world.run("shed", &["status"]).contains(why));
    let status = world.json("shed", &["status"]);
    assert_eq!(status["node"]["problems"][0]["message"], why, "{status}");
    is_refused(&world, "shed", why);
    assert_eq!(finding(&world, "shed"), "not_approved");
    has_no_name(&world.try_run("laptop", &["resolve", "shed"]));
    let node = world.json("laptop", &["node", "show", "shed"]);
    assert_eq!(node["state"], "pending", "{node}");
    let refused = world.try_run("shed", &["service", "add", "echo", "--port", "7000"]);
    assert!(refused.stderr.contains(why), "{refused:?}");

    let approved = now();
    let shown = world.run("laptop", &["node", "approve", "shed"]);
    assert!(shown.contains("active"), "{shown}");
    wait_for("an echo of the approved machine", || answers(&world));
    note(&format!("approval: {:?}", now().duration_since(approved)));
    world.publish("shed", "echo", 7000, serve_echo());
    wait_for("a login", || logs_in(&world));
    let (_forward, local) = world.forward("laptop", "echo.svc", 7000);
    let mut stream = TcpStream::connect(local).expect("the forward listens");
    echo(&mut stream, WAIT_MAX).expect("it is open");

    let set = now();
    let node = world.json("laptop", &["node", "expire", "shed", "--in", "3s"]);
    assert_eq!(node["state"], "active", "{node}");
    wait_for("the end", || echo(&mut stream, SILENCE).is_err());
    note(&format!("end after 3 s: {:?}", now().duration_since(set)));
    wait_for("the end of its name", || {
        world.try_run("laptop", &["resolve", "shed"]).code == Some(1)
    });
    let why = "this node's time is over";
    wait_for("the news of its end", || {
        world.run("shed", &["status"]).contains(why)
    });
    is_refused(&world, "shed", why);
    assert_eq!(finding(&world, "shed"), "expired");
    let listed = world.run("laptop", &["node", "list"]);
    let line = listed.lines().find(|line| line.contains(" shed "));
    assert!(
        line.is_some_and(|line| line.contains("expired")),
        "{listed}"
    );
    assert!(shed.lines_so_far().len() < 5, "it goes on");

    world.run("laptop", &["node", "expire", "shed", "--never"]);
    wait_for("an echo of the machine that came back", || answers(&world));
    wait_for("a login again", || logs_in(&world));
    let audit = world.run("laptop", &["audit", "list"]);
    for action in [
        "node_joined",
        "node_approved",
        "node_expiry_changed",
        "node_expired",
    ] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
}
