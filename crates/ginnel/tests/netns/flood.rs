//! A handshake flood at a peer that carries traffic, and what strangers get for what they send
//! (rows 7 and 8 of the programme: `FLOOD_SECONDS=60` runs them at length and judges goodput;
//! `FLOOD_JOINED=1` sends more, in runs that stay joined on their way).

mod generator;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use self::generator::{Generator, Kind, Rates, Sent};
use super::{
    attachment::{At, Network, Running},
    world::{LONG, Program, SHORT, Space, Tunnel, World, inner, note, now, outer, within},
};

/// Of the programme, a second: initiations with a right mac1, and with a wrong one.
const RATES: Rates = Rates {
    valid: 20_000,
    wrong: 100_000,
    joined: false,
};
const RATES_JOINED: Rates = Rates {
    valid: 20_000,
    wrong: 180_000,
    joined: true,
};
/// How often goodput with and without a flood is measured in turn for a second each, so that what
/// else the machine does falls on both; for a longer time it is less often.
const ALTERNATIONS: u64 = 15;
const ALTERNATIONS_MIN: u64 = 3;
/// The victim's port, and one where nobody listens.
const PORT: u16 = 51820;
const CLOSED: u16 = 51821;
/// Datagrams of one count of echoes.
const ECHOES: u32 = 1_000;
/// By how much the flood may delay the slowest of a hundred echoes where it is measured.
const DELAY_MAX: Duration = Duration::from_millis(20);
/// Until when somebody new must be let in where it is measured.
const NEWCOMER_MAX: Duration = Duration::from_secs(6);
/// What a flood may leave behind.
const GROWTH_MAX: u64 = 16 << 10;

/// Who is flooded, and two who send to each other through it meanwhile.
struct Scene<'w> {
    /// From where the flood comes, and the data.
    here: &'w Space,
    there: &'w Space,
    /// Addresses inside the tunnel.
    from: IpAddr,
    to: IpAddr,
    /// The process that listens at `outer(1, _)`.
    pid: u32,
    public_key: String,
}

/// What became of echoes.
struct Echoes {
    back: u32,
    /// The round trip that one in a hundred exceeds.
    p99: Duration,
}

/// Two tunnels with a session; the second is the victim.
fn joined() -> Option<(World, [Tunnel; 2])> {
    let world = World::new()?;
    let victim = on_core(0, || world.tunnel(1, Program::Ginnel))?;
    let one = world.tunnel(0, Program::Ginnel)?;
    world.join([&one, &victim], None, false);
    assert_eq!(world.spaces[0].ping(inner(1, false), 2), 2);
    Some((world, [one, victim]))
}

fn scene<'w>(world: &'w World, victim: &Tunnel) -> Scene<'w> {
    let [here, there] = &world.spaces;
    Scene {
        here,
        there,
        from: inner(0, false),
        to: inner(1, false),
        pid: victim.child.id(),
        public_key: victim.public_key.clone(),
    }
}

/// How long goodput is measured, if it is: then also what depends on the machine is judged.
fn seconds() -> Option<Duration> {
    let text = std::env::var("FLOOD_SECONDS").ok()?;
    Some(Duration::from_secs(
        text.parse().expect("FLOOD_SECONDS is a number"),
    ))
}

/// Does `work`, and lets what it starts run, on one core only if goodput is measured, so that the
/// victim and the generator do not take each other's time.
fn on_core<T>(core: usize, work: impl FnOnce() -> T) -> T {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).expect("our thread");
    let mut one = CpuSet::new();
    one.set(core).expect("a small number");
    if seconds().is_some() {
        sched_setaffinity(this, &one).expect("two cores");
    }
    let result = work();
    sched_setaffinity(this, &all).expect("as it was");
    result
}

impl Scene<'_> {
    /// Runs `work` while a generator floods `port` of the victim's machine; returns what it sent
    /// too.
    fn flooded<T>(&self, port: u16, work: impl FnOnce() -> T) -> (T, Sent) {
        let to = SocketAddr::from((outer(1, false), port));
        let generator = Generator::inside(self.here, to, &self.public_key);
        let rates = match std::env::var_os("FLOOD_JOINED") {
            Some(_) => RATES_JOINED,
            None => RATES,
        };
        let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let flood = scope.spawn(|| on_core(1, || generator.run(rates, &begun, &done)));
            // Whatever happens, the flood must end, or the scope never does.
            let end = SetOnDrop(&done);
            within(LONG, "the flood is under way", || {
                begun.load(Ordering::Relaxed)
            });
            let result = work();
            drop(end);
            (result, flood.join().expect("the flood ends well"))
        })
    }

    /// Sends datagrams through the tunnel, 1 ms apart, and looks what comes back.
    fn echoes(&self) -> Echoes {
        let bind = |space: &Space, address| space.enter(move || UdpSocket::bind((address, 0)));
        let echo = bind(self.there, self.to).expect("an inner address");
        let socket = bind(self.here, self.from).expect("an inner address");
        let to = echo.local_addr().expect("bound");
        for socket in [&echo, &socket] {
            socket
                .set_read_timeout(Some(Duration::from_millis(500)))
                .expect("a bound");
        }
        let start = now();
        let trips: Vec<Duration> = thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 64];
                while let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..length], from).ok();
                }
            });
            let back = scope.spawn(|| {
                let mut buffer = [0; 8];
                let mut trips = Vec::new();
                while socket.recv(&mut buffer).is_ok() {
                    let sent = Duration::from_nanos(u64::from_le_bytes(buffer));
                    trips.push(now() - start - sent);
                }
                trips
            });
            for _ in 0..ECHOES {
                let time = u64::try_from((now() - start).as_nanos()).expect("less than an age");
                socket
                    .send_to(&time.to_le_bytes(), to)
                    .expect("the tunnel is up");
                thread::sleep(Duration::from_millis(1));
            }
            back.join().expect("no panic")
        });
        let mut sorted = trips;
        sorted.sort_unstable();
        Echoes {
            back: u32::try_from(sorted.len()).expect("no more than were sent"),
            p99: sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(LONG),
        }
    }

    /// Returns the bytes that one TCP connection moves through the tunnel in `time`.
    fn goodput(&self, time: Duration) -> u64 {
        let listener = self.there.enter(|| TcpListener::bind((self.to, 0)));
        let listener = listener.expect("an inner address");
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
            let stream = self.here.enter(|| TcpStream::connect_timeout(&to, LONG));
            let mut stream = stream.expect("connects");
            let end = now() + time;
            let bytes = vec![7; 1 << 20];
            while now() < end {
                stream.write_all(&bytes).expect("the tunnel carries TCP");
            }
            moved.load(Ordering::Relaxed)
        })
    }

    /// A flood takes hardly anything from the data of those who have a session.
    fn takes_nothing_from_data(&self) {
        let (before, _) = self.flooded(CLOSED, || self.echoes());
        let memory = self.resident();
        let (during, sent) = self.flooded(PORT, || self.echoes());
        assert!(before.back > ECHOES / 2, "{} came back", before.back);
        assert!(
            during.back * 10 >= before.back * 9,
            "{} of {ECHOES} came back, {} without a flood",
            during.back,
            before.back
        );
        let Some(time) = seconds() else {
            self.has_grown_little_since(memory);
            return;
        };
        note(&format!(
            "{:.0} k datagrams a second; p99 {:?}, without the flood {:?}",
            sent.rate() / 1e3,
            during.p99,
            before.p99
        ));
        assert!(during.p99 <= before.p99 + DELAY_MAX, "{:?}", during.p99);
        let alternations = ALTERNATIONS / time.as_secs().max(1);
        let mut ratios: Vec<_> = (0..alternations.max(ALTERNATIONS_MIN))
            .map(|_| {
                let (without, _) = self.flooded(CLOSED, || self.goodput(time));
                let (with, sent) = self.flooded(PORT, || self.goodput(time));
                note(&format!(
                    "{:.0} k datagrams a second: {} and {} MB",
                    sent.rate() / 1e3,
                    without / 1_000_000,
                    with / 1_000_000
                ));
                with * 1_000 / without.max(1)
            })
            .collect();
        ratios.sort_unstable();
        note(&format!("goodput under a flood, of a thousand: {ratios:?}"));
        self.has_grown_little_since(memory);
        assert!(ratios[ratios.len() / 2] >= 900, "{ratios:?}");
    }

    /// Whatever lets `arrive` return true is done in time while the flood goes on.
    fn lets_in(&self, arrive: impl FnMut() -> bool) {
        let (took, sent) = self.flooded(PORT, || {
            let start = now();
            within(LONG, "the newcomer shakes hands", arrive);
            now() - start
        });
        if seconds().is_some() {
            let rate = sent.rate() / 1e3;
            note(&format!(
                "{rate:.0} k datagrams a second: let in after {took:?}"
            ));
            assert!(took <= NEWCOMER_MAX, "{took:?}");
        }
    }

    /// Strangers get bytes back for nothing but initiations, and no more than they sent; and who
    /// repeats what somebody said who is known, here with `private_key`, shakes no hands.
    fn amplifies_nothing(&self, v6: bool, private_key: &str) {
        let to = SocketAddr::from((outer(1, v6), PORT));
        let mut generator = Generator::inside(self.here, to, &self.public_key);
        generator.shake_hands(private_key);
        let sent = generator.burst(Kind::Replayed, 3_000, SHORT / 20);
        assert_eq!((sent.datagrams, sent.responses), (3_000, 0), "{to}");
        assert!(sent.bytes_back <= sent.bytes, "{to}: {sent:?}");
        for kind in Kind::STRANGERS {
            let sent = generator.burst(kind, 3_000, SHORT / 20);
            assert_eq!(sent.datagrams, 3_000);
            let answered = sent.bytes_back > 0;
            assert_eq!(answered, kind == Kind::Valid, "{to} {kind:?}: {sent:?}");
            assert!(sent.bytes_back <= sent.bytes, "{to} {kind:?}: {sent:?}");
        }
    }

    /// Returns the KiB of memory that the victim has.
    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid);
        let status = std::fs::read_to_string(path).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse().ok()).expect("a number")
    }

    fn has_grown_little_since(&self, before: u64) {
        let grown = self.resident().saturating_sub(before);
        assert!(grown <= GROWTH_MAX, "the flood left {grown} KiB behind");
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_of_initiations_takes_nothing_from_a_session() {
    let Some((world, [_one, victim])) = joined() else {
        return;
    };
    scene(&world, &victim).takes_nothing_from_data();
}

#[test]
fn a_newcomer_comes_through_a_flood() {
    let Some((world, [one, victim])) = joined() else {
        return;
    };
    // A new session with the same peer costs the victim all that a new client does.
    let before = victim.latest_handshake();
    thread::sleep(Duration::from_secs(1));
    one.remove_peer(&victim);
    one.set_peer(&victim, 1, None, false);
    scene(&world, &victim).lets_in(|| world.spaces[0].ping(inner(1, false), 1) == 1);
    assert!(victim.latest_handshake() > before);
}

#[test]
fn strangers_get_no_more_bytes_than_they_send() {
    let Some((world, [one, victim])) = joined() else {
        return;
    };
    for v6 in [false, true] {
        scene(&world, &victim).amplifies_nothing(v6, &one.private_key);
    }
}

/// A gateway with two nodes that reach each other; the victim.
struct Gateway {
    network: Network,
    /// Alpha and beta.
    nodes: [Running; 2],
    public_key: String,
    addresses: [IpAddr; 2],
}

impl Gateway {
    fn new() -> Option<Self> {
        let network = on_core(0, Network::new)?;
        let start = |at| network.start(at, &["up"], "ready on ginnel0");
        let nodes = [At::Alpha, At::Beta].map(start);
        let status = network.run(At::Alpha, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let public_key = status["node"]["peers"][0]["public_key"].as_str();
        let gateway = Self {
            nodes,
            public_key: public_key.expect("the gateway").to_owned(),
            addresses: ["alpha", "beta"].map(|name| network.address(name)),
            network,
        };
        within(SHORT, "the nodes reach each other", || gateway.carries());
        Some(gateway)
    }

    /// Tells whether it carries a ping and its answer.
    fn carries(&self) -> bool {
        let [_, to] = self.addresses;
        self.network.space(At::Alpha).ping(to, 1) == 1
    }

    fn scene(&self) -> Scene<'_> {
        let [from, to] = self.addresses;
        Scene {
            here: self.network.space(At::Alpha),
            there: self.network.space(At::Beta),
            from,
            to,
            pid: self.network.server(),
            public_key: self.public_key.clone(),
        }
    }
}

#[test]
fn a_flood_at_a_gateway_takes_nothing_from_those_whom_it_carries() {
    let Some(gateway) = Gateway::new() else {
        return;
    };
    gateway.scene().takes_nothing_from_data();
}

#[test]
fn a_newcomer_comes_through_a_flood_at_a_gateway() {
    let Some(mut gateway) = Gateway::new() else {
        return;
    };
    gateway.nodes[0].kill();
    let mut again = None;
    gateway.scene().lets_in(|| {
        let network = &gateway.network;
        again.get_or_insert_with(|| network.start(At::Alpha, &["up"], "ready on ginnel0"));
        gateway.carries()
    });
}

#[test]
fn strangers_get_no_more_bytes_from_a_gateway_than_they_send() {
    let Some(mut gateway) = Gateway::new() else {
        return;
    };
    // Who has its key is the node.
    gateway.nodes[0].kill();
    let key = std::fs::read_to_string(gateway.network.path("alpha").join("private.key"));
    for v6 in [false, true] {
        let scene = gateway.scene();
        scene.amplifies_nothing(v6, key.as_deref().expect("alpha has one"));
    }
}
