//! Offloads that are not there, and those that prove broken while they are in use: a shim before
//! the C library refuses them, as some kernels and network cards do.

use std::process::Command;

use super::{
    attachment::{At, Network},
    shim::Shim,
    world::{Background, GINNEL, LONG, Program, SHORT, Tunnel, World, inner, text, unique, within},
};

/// What the shim refuses; the self-test over loopback passes.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Why a message is refused; zero if it is not. */
static int refusal(const struct msghdr *message) {
    static unsigned count;
    const struct sockaddr_in *to = message->msg_name;
    struct cmsghdr *next = CMSG_FIRSTHDR(message);
    if (!to || (to->sin_addr.s_addr & 0xff) == 127)
        return 0;
    /* A card without checksum offload: EIO for UDP_SEGMENT (net/ipv4/udp.c, `udp_send_skb`). */
    if (getenv("REFUSE_RUNS"))
        for (; next; next = CMSG_NXTHDR((struct msghdr *)message, next))
            if (next->cmsg_level == 17 && next->cmsg_type == 103)
                return EIO;
    /* A queue of a card that is full now and then. */
    if (getenv("NO_BUFFERS") && __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) % 10 == 9)
        return ENOBUFS;
    return 0;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    int error = refusal(message);
    if (error)
        return errno = error, -1;
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return real(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags) {
    unsigned whole = 0;
    int error = 0;
    while (whole < count && !(error = refusal(&messages[whole].msg_hdr)))
        whole++;
    if (!whole && error)
        return errno = error, -1;
    int (*real)(int, struct mmsghdr *, unsigned, int) = dlsym(RTLD_NEXT, "sendmmsg");
    return real(fd, messages, whole, flags);
}

/* The TUNs, whose super-packets are to be none. */
static int tuns[64];
static int none_of(const char *path, int fd) {
    if (fd >= 0 && fd < 64)
        tuns[fd] = getenv("MANGLE_SUPER") && !strcmp(path, "/dev/net/tun");
    return fd;
}

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return none_of(path, real(path, flags, mode));
}

/* A kernel that names no size of the parts. */
ssize_t read(int fd, void *buffer, size_t length) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    ssize_t got = real(fd, buffer, length);
    char *header = buffer;
    if (fd >= 0 && fd < 64 && tuns[fd] && got > 10 && header[1])
        header[4] = header[5] = 0;
    return got;
}

/* A kernel that takes no joined packets: a virtio_net_hdr of 10 bytes that names a kind of GSO. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    if (getenv("REFUSE_JOINED") && count > 1 && pieces[0].iov_len == 10)
        if (((const char *)pieces[0].iov_base)[1])
            return errno = EINVAL, -1;
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    return real(fd, pieces, count);
}
"#;

fn status(tunnel: &Tunnel) -> String {
    status_of(&tunnel.interface)
}

fn status_of(interface: &str) -> String {
    let mut ginnel = Command::new(GINNEL);
    let output = ginnel.args(["status", "--interface", interface]);
    let output = output.output().expect("ginnel runs");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Two tunnels whose calls `variable` lets the shim refuse.
fn refused(variable: &str, v6: bool) -> Option<(World, [Tunnel; 2])> {
    let world = World::new()?;
    let shim = Shim::build(SHIM)?;
    let start = |number: usize| {
        Tunnel::start_as(&world.spaces[number], Program::Ginnel, |command| {
            shim.put_before(command);
            command.env(variable, "1");
        })
    };
    let tunnels = [start(0)?, start(1)?];
    world.join(tunnels.each_ref(), None, v6);
    Some((world, tunnels))
}

/// Everything is carried although `variable` lets the shim refuse, and `line` is shown after.
fn carries_on(variable: &str, before: &str, after: &str, v6: bool) {
    let Some((world, [one, other])) = refused(variable, v6) else {
        return;
    };
    let [here, there] = &world.spaces;
    for tunnel in [&one, &other] {
        assert!(status(tunnel).contains(before), "{}", status(tunnel));
    }
    within(SHORT, "the tunnel carries", || {
        here.ping(inner(1, false), 1) == 1
    });
    within(LONG, "it is given up", || {
        here.transfer(there, inner(1, false), 4_000_000);
        [&one, &other]
            .iter()
            .all(|tunnel| status(tunnel).contains(after))
    });
    here.transfer(there, inner(1, true), 4_000_000);
    // A socket for another port does not try again.
    one.set(&["listen-port", "51999"]);
    let shown = status(&one);
    assert!(shown.contains(after), "{shown}");
    assert!(!shown.contains("not sent"), "{shown}");
}

#[test]
fn what_is_switched_off_is_not_used_and_shown_so_and_all_arrives_as_it_was() {
    for (max, shown) in [
        ("off", ["off", "no", "no", "no"]),
        ("checksums", ["checksums only", "no", "yes", "yes"]),
        ("tcp", ["TCP", "yes", "yes", "yes"]),
        ("all", ["TCP and UDP", "yes", "yes", "yes"]),
    ] {
        let Some(world) = World::new() else { return };
        let start = |number| world.tunnel(number, Program::GinnelWithOffload(max));
        let tunnels = [start(0), start(1)].map(|tunnel| tunnel.expect("our own program"));
        world.join(tunnels.each_ref(), None, false);
        let [here, there] = &world.spaces;
        within(SHORT, "the tunnel carries", || {
            here.ping(inner(1, false), 1) == 1
        });
        here.transfer(there, inner(1, false), 16_000_000);
        there.transfer(here, inner(0, true), 16_000_000);
        let said = status(&tunnels[0]);
        let [large, joined, sent, received] = shown;
        for what in [
            format!("TUN, large packets: {large}"),
            format!("TUN, written joined: {joined}"),
            format!("UDP, sent in runs: {sent}"),
            format!("UDP, received in runs: {received}"),
        ] {
            assert!(said.contains(&what), "{max}: {what}: {said}");
        }
    }
}

#[test]
fn what_is_allowed_holds_in_the_background_too() {
    let Some(world) = World::new() else { return };
    let space = &world.spaces[0];
    let interface = unique("t");
    let mut ginnel = space.command(GINNEL);
    ginnel
        .args(["tun", &interface])
        .env("GINNEL_OFFLOAD", "tcp");
    assert!(ginnel.status().expect("ginnel runs").success());
    let background = Background { space, interface };
    let shown = status_of(&background.interface);
    assert!(shown.contains("TUN, large packets: TCP\n"), "{shown}");
}

#[test]
fn a_node_carries_on_with_less_offload_and_shows_what_it_has() {
    for (max, shown) in [
        ("off", ["TUN, large packets: off", "UDP, sent in runs: no"]),
        (
            "tcp",
            ["TUN, large packets: TCP\n", "UDP, sent in runs: yes"],
        ),
    ] {
        let Some(network) = Network::new() else {
            return;
        };
        let mut up = network.command(At::Alpha, &["up"]);
        up.env("GINNEL_OFFLOAD", max);
        let _alpha = network.spawn(&mut up, "ready on ginnel0");
        let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
        let [here, there] = [At::Beta, At::Alpha].map(|at| network.space(at));
        let address = network.address("alpha");
        within(SHORT, "the first ping", || here.ping(address, 1) == 1);
        here.transfer(there, address, 4_000_000);
        let said = network.run(At::Alpha, &["status"]);
        for what in shown {
            assert!(said.contains(what), "{max}: {said}");
        }
    }
}

#[test]
fn an_offload_that_nobody_knows_is_refused_with_those_that_there_are() {
    let mut ginnel = Command::new(GINNEL);
    let output = { ginnel.args(["tun", "gnever", "-f"]) }.env("GINNEL_OFFLOAD", "on");
    let output = output.output().expect("ginnel runs");
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("off, checksums, tcp or all"), "{said}");
}

#[test]
fn runs_that_the_network_card_refuses_are_sent_singly_from_then_on() {
    for v6 in [false, true] {
        let [before, after] = ["yes", "no"].map(|word| format!("UDP, sent in runs: {word}"));
        carries_on("REFUSE_RUNS", &before, &after, v6);
    }
}

#[test]
fn joined_packets_that_the_kernel_refuses_are_written_singly_from_then_on() {
    let [before, after] = ["yes", "no"].map(|word| format!("TUN, written joined: {word}"));
    carries_on("REFUSE_JOINED", &before, &after, false);
}

#[test]
fn super_packets_that_the_kernel_mangles_are_asked_for_no_more() {
    let large = |what| format!("TUN, large packets: {what}");
    let [before, after] = ["TCP and UDP", "checksums only"].map(large);
    carries_on("MANGLE_SUPER", &before, &after, false);
}

#[test]
fn what_finds_no_buffers_is_lost_and_counted_and_nothing_after_it() {
    let Some((world, [one, other])) = refused("NO_BUFFERS", false) else {
        return;
    };
    let [here, there] = &world.spaces;
    within(SHORT, "the tunnel carries", || {
        here.ping(inner(1, false), 1) == 1
    });
    here.transfer(there, inner(1, false), 1_000_000);
    for tunnel in [&one, &other] {
        let shown = status(tunnel);
        assert!(shown.contains("no buffers"), "{shown}");
        assert!(shown.contains("UDP, sent in runs: yes"), "{shown}");
    }
}

#[test]
fn a_node_writes_singly_what_its_kernel_refuses_joined() {
    a_node_carries_on("REFUSE_JOINED", "now written singly");
}

#[test]
fn a_node_asks_for_no_more_super_packets_if_its_kernel_mangles_them() {
    a_node_carries_on("MANGLE_SUPER", "asked for no more");
}

#[test]
fn a_node_sends_singly_what_its_network_card_refuses_in_runs() {
    a_node_carries_on("REFUSE_RUNS", "now sent singly");
}

/// Everything is carried although `variable` lets the shim refuse, and the node says `sign`.
fn a_node_carries_on(variable: &str, sign: &str) {
    let Some(network) = Network::new() else {
        return;
    };
    let Some(shim) = Shim::build(SHIM) else {
        return;
    };
    let mut up = network.command(At::Alpha, &["up"]);
    shim.put_before(&mut up);
    up.env(variable, "1");
    let alpha = network.spawn(&mut up, "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
    let [here, there] = [At::Beta, At::Alpha].map(|at| network.space(at));
    let address = network.address("alpha");
    within(SHORT, "the first ping", || here.ping(address, 1) == 1);
    within(LONG, "it is given up", || {
        here.transfer(there, address, 4_000_000);
        alpha.said().contains(sign)
    });
    here.transfer(there, address, 4_000_000);
}
