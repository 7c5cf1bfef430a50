//! Offloads that prove broken while they are in use: a shim before the C library refuses them, as
//! some kernels and network cards do.

use std::{path::Path, process::Command};

use super::{
    attachment::{At, Network},
    world::{GINNEL, LONG, Program, SHORT, Tunnel, World, find, inner, lacks, text, within},
};

/// What the shim refuses; the self-test over loopback passes.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* A card without checksum offload: EIO for UDP_SEGMENT (net/ipv4/udp.c, `udp_send_skb`). */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    const struct sockaddr_in *to = message->msg_name;
    struct cmsghdr *next = CMSG_FIRSTHDR(message);
    if (getenv("REFUSE_RUNS") && to && (to->sin_addr.s_addr & 0xff) != 127)
        for (; next; next = CMSG_NXTHDR((struct msghdr *)message, next))
            if (next->cmsg_level == 17 && next->cmsg_type == 103)
                return errno = EIO, -1;
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return real(fd, message, flags);
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

/// Builds the shim into `directory`; false, said loudly, without a compiler.
fn build(directory: &Path) -> bool {
    if find("cc").is_none() {
        lacks("NETNS", "`cc` is not installed");
        return false;
    }
    let source = directory.join("shim.c");
    std::fs::write(&source, SHIM).expect("ours");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]);
    let output = cc.arg(directory.join("shim.so")).arg(&source).arg("-ldl");
    let output = output.output().expect("cc runs");
    assert!(output.status.success(), "{}", text(&output));
    true
}

fn status(tunnel: &Tunnel) -> String {
    let mut ginnel = Command::new(GINNEL);
    let output = ginnel.args(["status", "--interface", &tunnel.interface]);
    let output = output.output().expect("ginnel runs");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Everything is carried although `variable` lets the shim refuse, and `line` is shown after.
fn carries_on(variable: &str, before: &str, after: &str, v6: bool) {
    let Some(world) = World::new() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    if !build(directory.path()) {
        return;
    }
    let start = |number: usize| {
        Tunnel::start_as(&world.spaces[number], Program::Ginnel, |command| {
            command.env("LD_PRELOAD", directory.path().join("shim.so"));
            command.env(variable, "1");
        })
    };
    let [Some(one), Some(other)] = [start(0), start(1)] else {
        return;
    };
    world.join([&one, &other], None, v6);
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
    let shown = status(&one);
    assert!(!shown.contains("not sent"), "{shown}");
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
fn a_node_writes_singly_what_its_kernel_refuses_joined() {
    let Some(network) = Network::new() else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    if !build(directory.path()) {
        return;
    }
    let mut up = network.command(At::Alpha, &["up"]);
    up.env("LD_PRELOAD", directory.path().join("shim.so"));
    up.env("REFUSE_JOINED", "1");
    let alpha = network.spawn(&mut up, "ready on ginnel0");
    let _beta = network.start(At::Beta, &["up"], "ready on ginnel0");
    let [here, there] = [At::Beta, At::Alpha].map(|at| network.space(at));
    let address = network.address("alpha");
    within(SHORT, "the first ping", || here.ping(address, 1) == 1);
    within(LONG, "it is given up", || {
        here.transfer(there, address, 4_000_000);
        alpha.said().contains("now written singly")
    });
    here.transfer(there, address, 4_000_000);
}
