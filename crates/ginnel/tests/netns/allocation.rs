//! No memory is asked for to carry a packet: a shim before the C library counts how often a process
//! asks.

use std::{
    fs::File,
    net::{IpAddr, UdpSocket},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use super::{
    attachment::{At, Network, Running},
    shim::Shim,
    world::{Program, SHORT, Space, Tunnel, World, inner, note, now, within},
};

/// Counts in a file that others read. The dynamic linker asks for memory before there is one.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
static unsigned long before, *count = &before;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("ALLOCATIONS"), O_RDWR);
    void *shared = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        abort();
    close(file);
    count = shared;
}

static void once(void) { __atomic_fetch_add(count, 1, __ATOMIC_RELAXED); }

void *malloc(size_t size) { return once(), __libc_malloc(size); }
void *calloc(size_t items, size_t size) { return once(), __libc_calloc(items, size); }
void *realloc(void *old, size_t size) { return once(), __libc_realloc(old, size); }
void *memalign(size_t to, size_t size) { return once(), __libc_memalign(to, size); }
void *aligned_alloc(size_t to, size_t size) { return once(), __libc_memalign(to, size); }
int posix_memalign(void **out, size_t to, size_t size) {
    return once(), *out = __libc_memalign(to, size), *out ? 0 : 12;
}
"#;

/// How often a process has asked for memory.
struct Count {
    file: File,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Count {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("count");
        std::fs::write(&path, [0; 8]).expect("room");
        Self {
            file: File::open(&path).expect("just written"),
            path,
            _directory: directory,
        }
    }

    fn of(&self, shim: &Shim, command: &mut Command) {
        shim.put_before(command);
        command.env("ALLOCATIONS", &self.path);
    }

    fn read(&self) -> u64 {
        let mut count = [0; 8];
        self.file.read_exact_at(&mut count, 0).expect("eight bytes");
        u64::from_le_bytes(count)
    }
}

/// Sends datagrams to the address of the other space and back, and sees that most arrive; they
/// come in groups, so that batches have one and several.
fn exchange([here, there]: [&Space; 2], [from, to]: [IpAddr; 2], rounds: usize) {
    let bind = |space: &Space, address: IpAddr| space.enter(move || UdpSocket::bind((address, 0)));
    let one = bind(here, from).expect("an inner address");
    let other = bind(there, to).expect("an inner address");
    for socket in [&one, &other] {
        let patience = Some(Duration::from_millis(500));
        socket.set_read_timeout(patience).expect("a bound");
    }
    let at = other.local_addr().expect("bound");
    let back = thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2_048];
            while let Ok((length, from)) = other.recv_from(&mut buffer) {
                other.send_to(&buffer[..length], from).ok();
            }
        });
        let mut back = 0;
        for round in 0..rounds {
            let group = 1 + round % GROUP;
            for _ in 0..group {
                one.send_to(&[7; 700], at).expect("room");
            }
            back += (0..group)
                .take_while(|_| one.recv(&mut [0; 700]).is_ok())
                .count();
        }
        back
    });
    let sent: usize = (0..rounds).map(|round| 1 + round % GROUP).sum();
    assert!(back * 10 > sent * 9, "{back} of {sent} came back");
}

/// Sees that what `exchange` sends makes a process ask for hardly any memory, beside what it asks
/// for all the time.
fn asks_for_nothing(count: &Count, what: &str, exchange: impl Fn(usize)) {
    // What grows once has grown then.
    exchange(ROUNDS / 10);
    let (idle, start) = (count.read(), now());
    thread::sleep(IDLE);
    let (before, begun) = (count.read(), now());
    exchange(ROUNDS);
    let took = (now() - begun).as_secs_f64() / (begun - start).as_secs_f64();
    let [asked, idle] = [count.read() - before, before - idle];
    note(&format!(
        "{what}: {asked} times in {ROUNDS} rounds; idle, in {took:.1} times less, {idle} times"
    ));
    let number = |count: u64| f64::from(u32::try_from(count).expect("few"));
    let rounds = f64::from(u32::try_from(ROUNDS).expect("few"));
    let bound = rounds / 10.0 + 2.0 * number(idle) * took;
    assert!(
        before > 0 && number(asked) < bound,
        "{what}: {asked}, at most {bound}"
    );
}

#[test]
fn a_tunnel_asks_for_no_memory_to_carry_packets() {
    let Some(world) = World::new() else { return };
    let Some(shim) = Shim::build(SHIM) else {
        return;
    };
    let count = Count::new();
    let one = Tunnel::start_as(&world.spaces[0], Program::Ginnel, |command| {
        count.of(&shim, command);
    });
    let tunnels = [one, world.tunnel(1, Program::Ginnel)];
    let tunnels = tunnels.map(|tunnel| tunnel.expect("our own program"));
    world.join(tunnels.each_ref(), None, false);
    let [here, there] = &world.spaces;
    within(SHORT, "the tunnel carries", || {
        here.ping(inner(1, false), 1) == 1
    });
    let addresses = [inner(0, false), inner(1, false)];
    asks_for_nothing(&count, "ginnel tun", |rounds| {
        exchange([here, there], addresses, rounds);
    });
}

#[test]
fn nodes_and_a_gateway_ask_for_no_memory_to_carry_packets() {
    let Some(shim) = Shim::build(SHIM) else {
        return;
    };
    let counts = [Count::new(), Count::new()];
    let [of_server, of_alpha] = &counts;
    let Some(network) = Network::with(|server| of_server.of(&shim, server)) else {
        return;
    };
    let mut up = network.command(At::Alpha, &["up"]);
    of_alpha.of(&shim, &mut up);
    let _alpha: Running = network.spawn(&mut up, "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
    let [here, there] = [At::Alpha, At::Beta].map(|at| network.space(at));
    let addresses = ["alpha", "beta"].map(|name| network.address(name));
    within(SHORT, "the nodes reach each other", || {
        here.ping(addresses[1], 1) == 1
    });
    for (count, what) in [(of_server, "gateway"), (of_alpha, "node")] {
        asks_for_nothing(count, what, |rounds| {
            exchange([here, there], addresses, rounds);
        });
    }
}

const ROUNDS: usize = 4_000;
/// Datagrams that are on their way at once, at most.
const GROUP: usize = 40;
/// How long a process is watched that carries nothing.
const IDLE: Duration = Duration::from_secs(2);
