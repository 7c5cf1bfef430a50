//! A node that is removed, or leaves, is cut off everywhere at once.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use crate::world::{WAIT_MAX, World, echoes, note, now, serve, serve_echo, wait_for};

#[test]
fn a_removed_node_is_cut_off_with_a_transfer_running() {
    let (world, _laptop) = World::with_laptop();
    let endless = serve(|mut stream| while stream.write_all(&[7; 16 * 1024]).is_ok() {});
    let mut shed = world.machine("shed", "endless", 7000, endless);
    let (_forward, local) = world.forward("laptop", "endless.svc.internal", 7000);
    let mut transfer = TcpStream::connect(local).expect("the forward listens");
    let mut buffer = vec![0; 64 * 1024];
    transfer.read_exact(&mut buffer).expect("bytes flow");

    let begin = now();
    world.run("laptop", &["node", "remove", "shed"]);
    let removed = now();
    transfer.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    // What was on its way still comes; then nothing does.
    let mut last = now();
    while let Ok(1..) = transfer.read(&mut buffer) {
        last = now();
        assert!(last.duration_since(removed) < WAIT_MAX, "bytes still flow");
    }
    note(&format!(
        "removal: command {:?}, last byte {:?} after it began",
        removed.duration_since(begin),
        last.duration_since(begin)
    ));
    for name in ["shed", "endless.svc.internal"] {
        let ended = world.try_run("laptop", &["resolve", name]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("does not exist"), "{ended:?}");
    }

    let ended = shed.ended();
    let sentence = "sign-in: this node was removed from its organisation\n  run `ginnel logout";
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains(sentence), "{ended:?}");
    for line in [
        &["up", "--user"][..],
        &["ping", "laptop"],
        &["dial", "laptop", "1"],
    ] {
        let again = world.try_run("shed", line);
        assert_eq!(again.code, Some(1), "{line:?}: {again:?}");
        assert!(again.stderr.contains(sentence), "{line:?}: {again:?}");
    }
}

#[test]
fn nothing_of_a_person_works_once_she_is_removed() {
    let (world, _laptop) = World::with_laptop();
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let invitation = world.run("laptop", &["user", "add", "alice", "--role", "developer"]);
    let invitation = invitation.trim();
    let line = ["login", &world.url, "--token", invitation, "--name", "desk"];
    world.run("desk", &line);
    let whoami = world.run("desk", &["whoami"]);
    assert!(whoami.contains("alice (developer)"), "{whoami}");
    let mut desk = world.up("desk");
    let (_forward, local) = world.forward("desk", "echo.svc", 7000);
    let mut open = TcpStream::connect(local).expect("the forward listens");
    open.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    let mut echo = || {
        open.write_all(b"still")?;
        open.read_exact(&mut [0; 5])
    };
    echo().expect("it is open");
    // What a developer may not do fails with her role in the sentence.
    let ended = world.try_run("desk", &["user", "remove", "admin"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let sentence = "policy: the role developer does not permit the request";
    assert!(ended.stderr.contains(sentence), "{ended:?}");
    assert_eq!(world.json("desk", &["node", "list"])[0]["name"], "laptop");

    let removed = now();
    world.run("laptop", &["user", "remove", "alice"]);
    let waited = wait_for("the cut", || echo().is_err());
    note(&format!(
        "removal of a person: {:?} from the command's start, {waited:?} after its end",
        now().duration_since(removed)
    ));
    assert_eq!(desk.ended().code, Some(1));
    for line in [
        &["node", "list"][..],
        &["dial", "shed", "7000"],
        &["ssh", "alice@shed", "true"],
        &["cert"],
    ] {
        let ended = world.try_run("desk", line);
        assert_ne!(ended.code, Some(0), "{line:?}: {ended:?}");
        let sentence = "this node was removed from";
        assert!(ended.stderr.contains(sentence), "{line:?}: {ended:?}");
    }
    let audit = world.run("laptop", &["audit", "list"]);
    assert!(audit.contains("user_removed"), "{audit}");
    assert!(audit.contains("alice node:"), "{audit}");
}

#[test]
fn a_removed_node_can_be_enrolled_again_and_others_never_noticed() {
    let (world, _laptop) = World::with_laptop();
    let mut shed = world.machine("shed", "echo", 7000, serve_echo());
    let _barn = world.machine("barn", "other", 7001, serve_echo());
    let (_forward, barn) = world.forward("laptop", "barn", 7001);
    let mut other = TcpStream::connect(barn).expect("the forward listens");
    world.run("laptop", &["node", "remove", "shed"]);
    assert_eq!(shed.ended().code, Some(1));
    other.write_all(b"on").expect("it is open");
    other.read_exact(&mut [0; 2]).expect("it goes on");

    world.run("shed", &["logout", "--force"]);
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "echo.svc", 7000);
    wait_for("the node that came again", || echoes(local, b"again"));
}

#[test]
fn logout_removes_the_node_at_the_server_and_here_and_ends_the_agent() {
    let (world, _laptop) = World::with_laptop();
    let mut shed = world.machine("shed", "echo", 7000, serve_echo());
    world.run("laptop", &["ping", "shed", "-c", "1"]);
    let left = world.run("shed", &["logout"]);
    assert_eq!(left.trim(), "shed has left the network");
    shed.ended();
    let names = world.run("laptop", &["node", "list"]);
    assert!(!names.contains("shed"), "{names}");
    let kept: Vec<_> = crate::world::files_below(&world.path("shed"))
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_none_or(|kind| kind != "lock" && kind != "log")
        })
        .collect();
    assert!(kept.is_empty(), "{kept:?}");
    let ended = world.try_run("shed", &["ping", "laptop"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("not enrolled"), "{ended:?}");
    let ended = world.try_run("laptop", &["resolve", "shed"]);
    assert!(ended.stderr.contains("does not exist"), "{ended:?}");
}

#[test]
fn a_gateway_that_is_removed_ends_and_its_nodes_move_to_the_next() {
    let (world, _laptop) = World::with_laptop();
    let mut gateway = world.gateway("edge");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("an echo through the gateway apart", || echoes(local, b"x"));
    world.run("laptop", &["node", "remove", "edge"]);
    let ended = gateway.ended();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let sentence = "sign-in: this gateway was removed\n  enrol it again";
    assert!(ended.stderr.contains(sentence), "{ended:?}");
    wait_for("an echo through the server's gateway", || {
        echoes(local, b"y")
    });
}
