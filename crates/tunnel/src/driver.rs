//! The task that keeps deadlines and waits for room to send.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use node::Node;
use tokio::time;

use super::Shared;

/// How far the time of day may run ahead of the monotonic clock before it means a suspend.
const SUSPEND: Duration = Duration::from_secs(10);

/// Drives until its task is aborted.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut daytime = Daytime::new(shared.turn().now);
    loop {
        let (deadline, blocked) = shared.turn().arm();
        tokio::select! {
            biased;
            () = shared.sockets.writable(blocked) => shared.turn().unblock(),
            () = sleep_until(deadline) => {
                let mut turn = shared.turn();
                let now = turn.now;
                daytime.look(&mut turn.node, now, os::clock::wall());
                turn.node.handle_timeout(now);
            }
            () = shared.kick.notified() => {}
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

/// The time of day beside the monotonic clock, which stands still in a suspend.
struct Daytime {
    now: Instant,
    wall: SystemTime,
}

impl Daytime {
    fn new(now: Instant) -> Self {
        Self {
            now,
            wall: os::clock::wall(),
        }
    }

    /// Begins new handshakes after a suspend: the other sides have let their sessions expire.
    fn look(&mut self, node: &mut Node, now: Instant, wall: SystemTime) {
        let expected = self.wall + now.saturating_duration_since(self.now);
        let gap = wall.duration_since(expected);
        if gap.is_ok_and(|gap| gap > SUSPEND) {
            tracing::info!("time has passed unseen: new handshakes");
            node.set_wall_clock(now, wall);
            for (public_key, _) in node.endpoints() {
                node.initiate(now, &public_key);
            }
        }
        *self = Self { now, wall };
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use model::config::Config;
    use node::Attachment;

    use super::*;

    const CONFIG: &str = "[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.0.0.2/32
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = 192.0.2.1:51820
AllowedIPs = 10.0.0.0/24
";

    /// Whether a handshake begins when the clocks have moved so far since the last look.
    #[track_caller]
    fn check(monotonic: Duration, wall: Duration, begins: bool) {
        let config = Config::parse(CONFIG.as_bytes()).expect("a configuration");
        let now = os::clock::Clock::start().now();
        let mut daytime = Daytime::new(now);
        let random = Box::new(crate::network::OsRandom);
        let key = &config.interface.private_key;
        let mut node = Node::new(now, daytime.wall, random, key, Attachment::None);
        node.apply_config(now, &config);
        let (now, wall) = (now + monotonic, daytime.wall + wall);
        daytime.look(&mut node, now, wall);
        let sent = node.poll_transmit(now, &mut [0; 2_048]);
        let to = sent.map(|(destination, _)| destination);
        let peer = SocketAddr::from(([192, 0, 2, 1], 51_820));
        assert_eq!(to, begins.then_some(peer), "{monotonic:?} {wall:?}");
        assert_eq!(daytime.wall, wall);
    }

    #[test]
    fn time_that_only_the_wall_clock_saw_is_a_suspend_and_begins_new_handshakes() {
        let minute = Duration::from_secs(60);
        check(minute, minute, false);
        check(minute, minute + SUSPEND, false);
        check(minute, minute + SUSPEND + Duration::from_secs(1), true);
        // The time of day was set back, or the process stood still while the machine ran.
        check(minute, Duration::ZERO, false);
        check(60 * minute, 60 * minute, false);
    }
}
