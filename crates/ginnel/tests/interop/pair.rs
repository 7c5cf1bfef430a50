//! Stories between ginnel in space 0 and another program in space 1, told for each program.

use std::time::Duration;

use super::world::{LONG, Program, Tunnel, World, inner, outer, received, text, wg_line, within};

/// A tunnel between ginnel, in space 0, and another program, in space 1.
pub(crate) struct Pair {
    pub(crate) ours: Tunnel,
    pub(crate) theirs: Tunnel,
    pub(crate) world: World,
}

impl Pair {
    /// Makes ginnel and another program and joins them; `None` if something is not installed.
    pub(crate) fn with(program: Program, preshared_key: Option<&str>, v6: bool) -> Option<Self> {
        Self::new(Program::Ginnel, program, preshared_key, v6)
    }

    /// Makes both ends and joins them; `None` if something is not installed.
    pub(crate) fn new(
        ours: Program,
        theirs: Program,
        preshared_key: Option<&str>,
        v6: bool,
    ) -> Option<Self> {
        let world = World::new()?;
        let ours = world.tunnel(0, ours)?;
        let theirs = world.tunnel(1, theirs)?;
        world.join([&ours, &theirs], preshared_key, v6);
        Some(Self {
            ours,
            theirs,
            world,
        })
    }

    fn handshake_from(&self, initiator: usize) {
        let space = &self.world.spaces[initiator];
        let to = inner(1 - initiator, false);
        within(LONG, "the first echo is answered", || {
            space.ping(to, 1) == 1
        });
        // Of ours, because boringtun shows an age instead of a time.
        assert!(self.ours.latest_handshake() > 0);
    }
}

/// Echo and TCP, IPv4 and IPv6 inside, in the direction of `initiator`.
pub(crate) fn carries_everything(program: Program, initiator: usize, preshared: bool, v6: bool) {
    let key = wg_line(&["genpsk"], "");
    let Some(pair) = Pair::with(program, preshared.then_some(&key), v6) else {
        return;
    };
    pair.handshake_from(initiator);
    let responder = 1 - initiator;
    let [one, other] = [initiator, responder].map(|number| &pair.world.spaces[number]);
    for v6 in [false, true] {
        let to = inner(responder, v6);
        assert_eq!(one.ping(to, 5), 5, "{to}");
        one.transfer(other, to, 4_000_000);
    }
    assert_eq!(other.ping(inner(initiator, true), 3), 3, "the other way");
}

/// With a preshared key on one side only, nothing passes; with it on both, everything.
pub(crate) fn a_wrong_preshared_key_lets_nothing_pass(program: Program) {
    let Some(pair) = Pair::with(program, None, false) else {
        return;
    };
    let key = wg_line(&["genpsk"], "");
    pair.ours.set_peer(&pair.theirs, 1, Some(&key), false);
    assert_eq!(pair.world.spaces[0].ping(inner(1, false), 2), 0);
    assert_eq!(pair.ours.latest_handshake(), 0);
    pair.theirs.remove_peer(&pair.ours);
    pair.theirs.set_peer(&pair.ours, 0, Some(&key), false);
    pair.handshake_from(0);
}

/// A peer first reached over IPv4 is then reached over IPv6 as quickly.
pub(crate) fn the_first_ipv6_datagram_after_ipv4_use_arrives(program: Program) {
    let Some(pair) = Pair::with(program, None, false) else {
        return;
    };
    pair.handshake_from(0);
    pair.ours.set_peer(&pair.theirs, 1, None, true);
    let [one, other] = &pair.world.spaces;
    assert_eq!(one.ping(inner(1, false), 3), 3);
    assert_eq!(pair.ours.show_peer("endpoints"), "[fd99::2]:51820");
    pair.theirs.set_peer(&pair.ours, 0, None, false);
    assert_eq!(other.ping(inner(0, true), 3), 3);
}

/// The address of one side changes during a ping; the other side follows.
pub(crate) fn roaming_loses_at_most_a_moment(program: Program, mover: usize) {
    let Some(pair) = Pair::with(program, None, false) else {
        return;
    };
    pair.handshake_from(mover);
    let space = &pair.world.spaces[mover];
    let mut ping = space.command("ping");
    ping.args(["-n", "-i", "0.2", "-W", "1", "-c", "25"]);
    ping.arg(inner(1 - mover, false).to_string());
    let ping = ping.stdout(std::process::Stdio::piped());
    let ping = ping.spawn().expect("ping runs");
    std::thread::sleep(Duration::from_secs(1));
    let old = format!("{}/24", outer(mover, false));
    // Another prefix length: the kernel removes secondary addresses with their primary one.
    space.ip(&["address", "add", "10.99.0.77/25", "dev", &space.link]);
    space.ip(&["address", "delete", &old, "dev", &space.link]);
    let tunnels = [&pair.ours, &pair.theirs];
    if mover == 1 {
        // wireguard-go insists on the address that is gone (sendmsg says ENETUNREACH, which it
        // does not expect) until its socket is made anew.
        pair.theirs.set(&["listen-port", "51821"]);
    }
    let output = ping.wait_with_output().expect("ping ends");
    let answered = received(&text(&output));
    assert!(
        answered >= 20,
        "{answered} of 25 answered\n{}",
        text(&output)
    );
    let seen = tunnels[1 - mover].show_peer("endpoints");
    let port = 51820 + mover;
    assert_eq!(
        seen,
        format!("10.99.0.77:{port}"),
        "the other side followed"
    );
}

/// For 150 s echo requests go both ways, from two pairs whose initiators differ; the sessions are
/// renewed after 120 s (whitepaper section 6.1) and nothing is lost.
pub(crate) fn rekeying_loses_nothing(program: Program) {
    let pairs: Option<Vec<_>> = (0..2)
        .map(|initiator| {
            let pair = Pair::with(program, None, initiator == 1)?;
            pair.handshake_from(initiator);
            Some((initiator, pair))
        })
        .collect();
    let Some(pairs) = pairs else { return };
    let first: Vec<_> = pairs
        .iter()
        .map(|(_, pair)| pair.ours.latest_handshake())
        .collect();
    let pings: Vec<_> = pairs
        .iter()
        .map(|(initiator, pair)| {
            let mut ping = pair.world.spaces[*initiator].command("ping");
            ping.args(["-n", "-q", "-i", "0.25", "-W", "2", "-c", "600"]);
            ping.arg(inner(1 - initiator, true).to_string());
            ping.stdout(std::process::Stdio::piped());
            ping.spawn().expect("ping runs")
        })
        .collect();
    for ((ping, (initiator, pair)), first) in pings.into_iter().zip(&pairs).zip(first) {
        let output = ping.wait_with_output().expect("ping ends");
        let answered = received(&text(&output));
        assert!(answered >= 599, "initiator {initiator}: {}", text(&output));
        // Of ours, because boringtun shows an age instead of a time.
        let renewed = pair.ours.latest_handshake();
        assert!(renewed >= first + 115, "{first}, then {renewed}");
    }
}
