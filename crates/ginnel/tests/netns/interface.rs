//! The life of one interface, and what happens when something is not as it should be.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::UdpSocket,
    os::unix::{
        fs::MetadataExt as _,
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    process::Command,
};

use nix::sys::signal::Signal;

use super::world::{
    Background, GINNEL, Program, SHORT, World, inner, lacks, outer, socket_path, text, unique,
    within,
};

/// Echo and TCP inside, over both families outside.
fn carry_everything(programs: [Program; 2]) {
    for v6 in [false, true] {
        let Some(world) = World::new() else { return };
        let Some(one) = world.tunnel(0, programs[0]) else {
            return;
        };
        let Some(other) = world.tunnel(1, programs[1]) else {
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
fn two_of_us_carry_everything_over_both_families() {
    carry_everything([Program::Ginnel; 2]);
}

#[test]
fn without_offloads_on_one_side_or_both_everything_is_carried_too() {
    carry_everything([Program::GinnelWithOffload("off"); 2]);
    carry_everything([Program::GinnelWithOffload("off"), Program::Ginnel]);
}

#[test]
fn many_streams_at_once_arrive_unchanged() {
    let Some(world) = World::new() else { return };
    let Some(one) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let Some(other) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 1), 1);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let to = inner(1, number % 2 == 0);
            scope.spawn(move || here.transfer(there, to, 3_000_000));
        }
    });
}

#[test]
fn super_packets_behind_small_ones_are_carried() {
    let Some(world) = World::new() else { return };
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::Ginnel));
    let [Some(one), Some(other)] = tunnels else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 1), 1);
    here.transfer_beside_datagrams(there, [0, 1].map(|number| inner(number, false)));
    let mut ginnel = here.command(GINNEL);
    ginnel.args(["status", "--json", "--interface", &one.interface]);
    let output = ginnel.output().expect("ginnel runs");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let discarded = status["discarded"].as_object().expect("counts by reason");
    assert!(!discarded.contains_key("not_ip"), "{status}");
}

/// Returns how many threads of that name of a process have read at least so many times.
fn threads_at_work(tunnel: &super::world::Tunnel, name: &str, reads: u64) -> usize {
    let tasks = format!("/proc/{}/task", tunnel.child.id());
    let tasks = fs::read_dir(tasks).expect("the process lives");
    let is_at_work = |task: &std::path::PathBuf| {
        let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let io = read("io");
        let count = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
        read("comm").trim() == name && count >= reads
    };
    let tasks = tasks.map(|task| task.expect("a task").path());
    tasks.filter(is_at_work).count()
}

#[test]
fn several_queues_carry_everything_and_share_the_flows() {
    carry_everything([Program::GinnelWithQueues; 2]);
    let Some(world) = World::new() else { return };
    let Some(one) = world.tunnel(0, Program::GinnelWithQueues) else {
        return;
    };
    let Some(other) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 1), 1);
    // Each flow has a port of its own, and the kernel chooses the queue by it.
    for _ in 0..16 {
        here.transfer(there, inner(1, false), 300_000);
    }
    let busy = threads_at_work(&one, "transmit", 10);
    assert!(busy >= 2, "{busy} of 4 threads had something to do");
}

#[test]
fn one_flow_through_several_queues_stays_in_order() {
    const COUNT: u32 = 20_000;
    let Some(world) = World::new() else { return };
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::GinnelWithQueues));
    let [Some(one), Some(other)] = tunnels else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 1), 1);
    let receiver = there.enter(|| UdpSocket::bind((inner(1, false), 0)));
    let receiver = receiver.expect("our address");
    receiver
        .set_read_timeout(Some(SHORT / 10))
        .expect("a bound");
    let to = receiver.local_addr().expect("bound");
    let sender = here.enter(|| UdpSocket::bind((inner(0, false), 0)));
    let sender = sender.expect("our address");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..COUNT {
                let mut datagram = [0; 200];
                datagram[..4].copy_from_slice(&number.to_be_bytes());
                sender.send_to(&datagram, to).expect("the tunnel is up");
                if number.is_multiple_of(100) {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        });
        let (mut last, mut count) = (None, 0);
        let mut datagram = [0; 200];
        while receiver.recv(&mut datagram).is_ok() {
            let number = datagram
                .first_chunk()
                .map(|bytes| u32::from_be_bytes(*bytes));
            assert!(number > last, "{number:?} came behind {last:?}");
            (last, count) = (number, count + 1);
        }
        assert!(count > COUNT / 2, "{count} of {COUNT} came");
    });
}

#[test]
fn who_sends_little_does_not_wait_behind_all_that_a_transfer_has_queued() {
    // Less than the buffer of the socket at the end holds, as they come at once.
    const QUEUED: u32 = 200;
    const LITTLE: u32 = 8;
    let Some(world) = World::new() else { return };
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::Ginnel));
    let [Some(one), Some(other)] = tunnels else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, there] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 1), 1);
    let receiver = there.enter(|| UdpSocket::bind((inner(1, false), 0)));
    let receiver = receiver.expect("our address");
    receiver.set_read_timeout(Some(SHORT)).expect("a bound");
    let to = receiver.local_addr().expect("bound");
    let sender = || here.enter(|| UdpSocket::bind((inner(0, false), 0)));
    let senders = [(); 1 + LITTLE as usize].map(|()| sender().expect("our address"));
    // What is sent meanwhile waits in the queues of the interface.
    one.signal(Signal::SIGSTOP);
    for number in 0..QUEUED + LITTLE {
        let place = number.checked_sub(QUEUED).map_or(0, |place| place + 1);
        let sender = &senders[usize::try_from(place).expect("few")];
        sender
            .send_to(&number.to_be_bytes(), to)
            .expect("the interface is up");
    }
    one.signal(Signal::SIGCONT);
    let mut number = [0; 4];
    let mut early = 0;
    while u32::from_be_bytes(number) != QUEUED - 1 {
        receiver.recv(&mut number).expect("all that was queued");
        early += u32::from(u32::from_be_bytes(number) >= QUEUED);
    }
    // One in eight flows shares the lane of the transfer.
    assert!(
        early >= LITTLE / 2,
        "{early} of {LITTLE} came before its end"
    );
}

#[test]
fn in_the_background_it_returns_once_it_can_be_configured() {
    let Some(world) = World::new() else { return };
    let name = unique("b");
    let space = &world.spaces[0];
    let _end = Background {
        space,
        interface: name.clone(),
    };
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
    let _end = Background {
        space,
        interface: name.clone(),
    };
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

#[test]
fn one_connection_carries_many_requests_each_with_its_errno() {
    let Some(world) = World::new() else { return };
    let Some(tunnel) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let taken = world.spaces[0].enter(|| UdpSocket::bind("[::]:0").expect("a free port"));
    let port = taken.local_addr().expect("bound").port();
    let mut client = UnixStream::connect(socket_path(&tunnel.interface)).expect("it listens");
    let mut reader = BufReader::new(client.try_clone().expect("a second handle"));
    let mut ask = |request: &str| {
        client.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        while !answer.ends_with("\n\n") {
            let read = reader.read_line(&mut answer).expect("it answers");
            assert!(read > 0, "closed after {answer:?}");
        }
        answer
    };
    for round in 0..200 {
        let mark = format!("set=1\nfwmark={round}\n\n");
        assert_eq!(ask(&mark), "errno=0\n\n");
    }
    assert_eq!(ask("set=1\nlisten_port=x\n\n"), "errno=-22\n\n");
    assert_eq!(ask("set=1\nlisten_port\n\n"), "errno=-71\n\n");
    assert_eq!(ask("set=1\nunheard_of=1\n\n"), "errno=-22\n\n");
    let in_use = format!("set=1\nlisten_port={port}\n\n");
    assert_eq!(ask(&in_use), "errno=-98\n\n");
    let shown = ask("get=1\n\n");
    assert!(shown.contains("fwmark=199\n"), "{shown}");
    assert!(shown.ends_with("errno=0\n\n"), "{shown}");
}

#[test]
fn garbage_from_the_network_and_from_clients_changes_nothing() {
    let Some(world) = World::new() else { return };
    let Some(one) = world.tunnel(0, Program::Ginnel) else {
        return;
    };
    let Some(other) = world.tunnel(1, Program::Ginnel) else {
        return;
    };
    world.join([&one, &other], None, false);
    let [here, _] = &world.spaces;
    assert_eq!(here.ping(inner(1, false), 2), 2);
    let before = (
        other.show_peer("latest-handshakes"),
        other.show_peer("endpoints"),
    );
    let socket = here.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a free port"));
    let mut bytes = vec![0; 65_507];
    os::random::fill(&mut bytes);
    for round in 0..5_000_usize {
        let kind = u8::try_from(round % 6).expect("small");
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        let length = [0, 1, 31, 32, 64, 92, 148, 149, 1452, 9000, 65_507][round % 11];
        bytes.rotate_right(1);
        // A full queue is no matter here.
        socket
            .send_to(&bytes[..length], (outer(1, false), 51820))
            .ok();
    }
    for request in ["", "\n\n", "x=1\n\n", "set=1\npublic_key=0\n\n", "get=1\n"] {
        let mut client = UnixStream::connect(socket_path(&other.interface)).expect("it listens");
        client.write_all(request.as_bytes()).expect("it reads");
    }
    assert_eq!(here.ping(inner(1, true), 3), 3);
    let after = (
        other.show_peer("latest-handshakes"),
        other.show_peer("endpoints"),
    );
    assert_eq!(after, before);
}

fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
}
