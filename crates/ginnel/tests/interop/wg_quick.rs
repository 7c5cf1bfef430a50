//! `wg-quick up` and `down` with ginnel as the userspace implementation.

use std::fs;

use super::world::{
    Background, GINNEL, Program, SHORT, World, find, inner, lacks, outer, socket_path, text,
    unique, within,
};

#[test]
fn up_carries_traffic_and_down_leaves_nothing() {
    if find("wg-quick").is_none() {
        return lacks("INTEROP", "`wg-quick` is not installed");
    }
    let Some(world) = World::new() else { return };
    let Some(theirs) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    let Some(keys) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let name = unique("q");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(format!("{name}.conf"));
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 51820\nMTU = 1300\n\
         Address = {}/24, {}/64\n\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32, fd88::/64\n\
         Endpoint = {}:51820\nPersistentKeepalive = 25\n",
        keys.private_key,
        inner(0, false),
        inner(0, true),
        theirs.public_key,
        inner(1, false),
        outer(1, false),
    );
    fs::write(&file, configuration).expect("a file");
    world.join([&keys, &theirs], None, false);
    drop(keys);
    let quick = |verb: &str| {
        let mut command = world.spaces[0].command("wg-quick");
        command.arg(verb).arg(&file);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", GINNEL);
        let output = command.output().expect("wg-quick runs");
        assert!(output.status.success(), "{verb}: {}", text(&output));
    };
    let _end = Background {
        space: &world.spaces[0],
        interface: name.clone(),
    };
    quick("up");
    let link = world.spaces[0].enter(|| os::link::mtu(&name));
    assert_eq!(link.expect("the interface is there"), 1300);
    assert_eq!(world.spaces[0].ping(inner(1, false), 3), 3);
    assert_eq!(world.spaces[0].ping(inner(1, true), 3), 3);
    quick("down");
    within(SHORT, "the socket is gone", || !socket_path(&name).exists());
    assert_eq!(world.spaces[0].enter(|| os::link::index(&name)), None);
}
