//! A handshake flood at a peer that carries traffic, and what strangers get for what they send
//! (rows 7 and 8 of the programme: `FLOOD_SECONDS=60` runs them at length and judges goodput).

mod generator;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use self::generator::{Generator, Kind, Rates};
use super::world::{LONG, Program, SHORT, Tunnel, World, inner, now, outer, within};

/// Of the programme, a second: initiations with a right mac1, and with a wrong one.
const RATES: Rates = Rates {
    valid: 20_000,
    wrong: 100_000,
};
/// How often goodput with and without a flood is measured in turn, so that what else the machine
/// does falls on both.
const ALTERNATIONS: usize = 15;
/// The victim's port, and one where nobody listens.
const PORT: u16 = 51820;
const CLOSED: u16 = 51821;

/// Two tunnels with a session; the second is the victim.
fn joined() -> Option<(World, [Tunnel; 2])> {
    let world = World::new()?;
    let tunnels = [0, 1].map(|number| world.tunnel(number, Program::Ginnel));
    let [Some(one), Some(victim)] = tunnels else {
        return None;
    };
    world.join([&one, &victim], None, false);
    assert_eq!(world.spaces[0].ping(inner(1, false), 2), 2);
    Some((world, [one, victim]))
}

fn seconds() -> Option<Duration> {
    let text = std::env::var("FLOOD_SECONDS").ok()?;
    Some(Duration::from_secs(
        text.parse().expect("FLOOD_SECONDS is a number"),
    ))
}

/// Runs `work` while a generator in space 0 floods `port` of space 1.
fn flooded<T>(world: &World, victim: &Tunnel, port: u16, work: impl FnOnce() -> T) -> T {
    let to = SocketAddr::from((outer(1, false), port));
    let generator = Generator::inside(&world.spaces[0], to, &victim.public_key);
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| generator.run(RATES, &begun, &done));
        // Whatever happens, the flood must end, or the scope never does.
        let end = SetOnDrop(&done);
        within(LONG, "the flood is under way", || {
            begun.load(Ordering::Relaxed)
        });
        let result = work();
        drop(end);
        flood.join().expect("the flood ends well");
        result
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends `count` datagrams through the tunnel, 1 ms apart, and returns how many came back.
fn echoes(world: &World, count: u32) -> u32 {
    let [here, there] = &world.spaces;
    let echo = there
        .enter(|| UdpSocket::bind((inner(1, false), 0)))
        .expect("our address");
    let to = echo.local_addr().expect("bound");
    let socket = here
        .enter(|| UdpSocket::bind((inner(0, false), 0)))
        .expect("our address");
    for socket in [&echo, &socket] {
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a bound");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                echo.send_to(&buffer[..length], from).ok();
            }
        });
        let back = scope.spawn(|| {
            let mut buffer = [0; 64];
            let mut count = 0;
            while socket.recv(&mut buffer).is_ok() {
                count += 1;
            }
            count
        });
        for number in 0..count {
            socket
                .send_to(&number.to_le_bytes(), to)
                .expect("the tunnel is up");
            thread::sleep(Duration::from_millis(1));
        }
        back.join().expect("no panic")
    })
}

/// Returns the bytes that one TCP connection moves through the tunnel in `time`.
fn goodput(world: &World, time: Duration) -> u64 {
    let [here, there] = &world.spaces;
    let listener = there
        .enter(|| TcpListener::bind((inner(1, false), 0)))
        .expect("our address");
    let to = listener.local_addr().expect("bound");
    let moved = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 1 << 20];
            while let Ok(length) = stream.read(&mut buffer) {
                if length == 0 {
                    return;
                }
                moved.fetch_add(u64::try_from(length).expect("64 bits"), Ordering::Relaxed);
            }
        });
        let mut stream = here
            .enter(|| TcpStream::connect_timeout(&to, LONG))
            .expect("connects");
        let end = now() + time;
        let bytes = vec![7; 1 << 20];
        while now() < end {
            stream.write_all(&bytes).expect("the tunnel carries TCP");
        }
        moved.load(Ordering::Relaxed)
    })
}

fn resident(tunnel: &Tunnel) -> u64 {
    let path = format!("/proc/{}/status", tunnel.child.id());
    let status = std::fs::read_to_string(path).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn a_flood_of_initiations_takes_nothing_from_a_session() {
    let Some((world, [_one, victim])) = joined() else {
        return;
    };
    const COUNT: u32 = 1_000;
    let before = flooded(&world, &victim, CLOSED, || echoes(&world, COUNT));
    let memory = resident(&victim);
    let during = flooded(&world, &victim, PORT, || echoes(&world, COUNT));
    assert!(
        during * 10 >= before * 9,
        "{during} of {COUNT} came back, {before} without a flood"
    );
    let grown = resident(&victim).saturating_sub(memory);
    assert!(grown <= 16 * 1024, "the flood left {grown} KiB behind");
    let Some(time) = seconds() else {
        return;
    };
    let mut ratios: Vec<_> = (0..ALTERNATIONS)
        .map(|_| {
            let without = flooded(&world, &victim, CLOSED, || goodput(&world, time));
            let with = flooded(&world, &victim, PORT, || goodput(&world, time));
            with * 1_000 / without.max(1)
        })
        .collect();
    ratios.sort_unstable();
    println!("goodput under a flood, of a thousand: {ratios:?}");
    assert!(
        ratios[ALTERNATIONS / 2] >= 900,
        "goodput under a flood, of a thousand: {ratios:?}"
    );
}

#[test]
fn a_newcomer_comes_through_a_flood() {
    let Some((world, [one, victim])) = joined() else {
        return;
    };
    // A new session with the same peer costs the victim all that a new client does.
    let before = victim.latest_handshake();
    thread::sleep(Duration::from_secs(1));
    flooded(&world, &victim, PORT, || {
        one.remove_peer(&victim);
        one.set_peer(&victim, 1, None, false);
        within(LONG, "the newcomer shakes hands", || {
            world.spaces[0].ping(inner(1, false), 1) == 1
        });
    });
    assert!(victim.latest_handshake() > before);
}

#[test]
fn strangers_get_no_more_bytes_than_they_send() {
    let Some((world, [_one, victim])) = joined() else {
        return;
    };
    let to = SocketAddr::from((outer(1, false), PORT));
    let generator = Generator::inside(&world.spaces[0], to, &victim.public_key);
    for kind in Kind::ALL {
        let sent = generator.burst(kind, 3_000, SHORT / 20);
        assert_eq!(sent.datagrams, 3_000);
        let answered = sent.bytes_back > 0;
        assert_eq!(answered, kind == Kind::Valid, "{kind:?}: {sent:?}");
        assert!(sent.bytes_back <= sent.bytes, "{kind:?}: {sent:?}");
    }
}
