//! The life of one interface, and what happens when something is not as it should be.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixListener, process::CommandExt as _},
    process::Command,
};

use super::world::{
    GINNEL, Program, SHORT, World, inner, lacks, socket_path, text, unique, within,
};

#[test]
fn two_of_us_carry_everything_over_both_families() {
    for v6 in [false, true] {
        let Some(world) = World::new() else { return };
        let Some(one) = world.tunnel(0, Program::Ginnel) else {
            return;
        };
        let Some(other) = world.tunnel(1, Program::Ginnel) else {
            return;
        };
        world.join([&one, &other], None, v6);
        let [here, there] = &world.spaces;
        for v6 in [false, true] {
            assert_eq!(here.ping(inner(1, v6), 5), 5);
            here.transfer(there, inner(1, v6), 16_000_000);
        }
    }
}

#[test]
fn in_the_background_it_returns_once_it_can_be_configured() {
    let Some(world) = World::new() else { return };
    let name = unique("b");
    let space = &world.spaces[0];
    let output = space
        .command(GINNEL)
        .args(["tun", &name])
        .output()
        .expect("ginnel runs");
    assert!(output.status.success(), "{}", text(&output));
    let mut show = Command::new("wg");
    let shown = show.args(["show", &name]).output().expect("wg runs");
    assert!(shown.status.success(), "{}", text(&shown));
    let mode = fs::metadata(socket_path(&name)).expect("the socket").mode();
    assert_eq!(mode & 0o777, 0o600);
    space.ip(&["link", "delete", &name]);
    within(SHORT, "the process goes with its interface", || {
        !socket_path(&name).exists()
    });
}

#[test]
fn a_deleted_interface_ends_the_process_well() {
    let Some(world) = World::new() else { return };
    let Some(mut tunnel) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    world.spaces[0].ip(&["link", "delete", &tunnel.interface]);
    assert!(tunnel.ends_well());
    assert!(!socket_path(&tunnel.interface).exists());
}

#[test]
fn a_signal_removes_the_interface_and_the_socket() {
    let Some(world) = World::new() else { return };
    let Some(mut tunnel) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    tunnel.terminate();
    assert!(tunnel.ends_well());
    assert!(!socket_path(&tunnel.interface).exists());
    let interface = tunnel.interface.clone();
    assert_eq!(world.spaces[0].enter(|| os::link::index(&interface)), None);
}

#[test]
fn a_stale_socket_is_replaced_and_a_name_in_use_refused() {
    let Some(world) = World::new() else { return };
    let space = &world.spaces[0];
    let name = unique("s");
    fs::create_dir_all("/var/run/wireguard").expect("root may");
    drop(UnixListener::bind(socket_path(&name)).expect("a new name"));
    let start = || {
        space
            .command(GINNEL)
            .args(["tun", &name])
            .output()
            .expect("ginnel runs")
    };
    let first = start();
    assert!(first.status.success(), "{}", text(&first));
    let second = start();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second).contains("the interface name is in use"),
        "{}",
        text(&second)
    );
    assert!(
        text(&second).contains("ip link delete"),
        "{}",
        text(&second)
    );
    space.ip(&["link", "delete", &name]);
    within(SHORT, "it ends", || !socket_path(&name).exists());
}

#[test]
fn a_name_that_is_too_long_is_refused_with_the_limit() {
    let name = "an-interface-name-too-long";
    let output = Command::new(GINNEL)
        .args(["tun", name])
        .output()
        .expect("ginnel runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("1 to 15 bytes"), "{}", text(&output));
}

#[test]
fn without_the_right_to_make_interfaces_it_says_what_to_do() {
    if os::process::euid() != 0 {
        return lacks("NETNS", "not root");
    }
    // Where an ordinary user can read it.
    let directory = tempfile::tempdir_in("/tmp").expect("a directory");
    let program = directory.path().join("ginnel");
    fs::copy(GINNEL, &program).expect("a copy");
    open_to_all(directory.path());
    open_to_all(&program);
    let mut command = Command::new(&program);
    command.args(["tun", &unique("n")]).uid(65534).gid(65534);
    let output = command.output().expect("it runs");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no permission to make a network interface"),
        "{said}"
    );
    assert!(said.contains("run it as root"), "{said}");
}

#[test]
fn a_changed_mtu_takes_effect_at_once() {
    let Some(world) = World::new() else { return };
    let Some(one) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let Some(other) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&one, &other], None, false);
    for (space, tunnel) in world.spaces.iter().zip([&one, &other]) {
        space.ip(&["link", "set", &tunnel.interface, "mtu", "9000"]);
    }
    let [here, there] = &world.spaces;
    let mut ping = here.command("ping");
    ping.args([
        "-n", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", "8000",
    ]);
    let output = ping
        .arg(inner(1, false).to_string())
        .output()
        .expect("ping runs");
    assert!(output.status.success(), "{}", text(&output));
    here.transfer(there, inner(1, true), 2_000_000);
}

fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
}
