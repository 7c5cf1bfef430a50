//! The relay as a link between two namespaces of whoever asks: for benches of whole programs.

use std::{
    fs::File,
    io::Read as _,
    net::IpAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use os::tun::{OffloadMax, Options, Tun};

use crate::{plan, relay};

/// Bytes of a packet on the link, as on Ethernet.
const MTU: u32 = 1_500;

/// Makes an interface in each of two namespaces and relays between them until standard input ends.
///
/// The arguments are `NAMESPACE=INTERFACE` for each end, the round-trip time in milliseconds, the
/// share of packets that is lost, and the seed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [left, right, round_trip, loss, seed] = arguments else {
        anyhow::bail!("--between takes two NAMESPACE=INTERFACE, a round trip, a loss and a seed");
    };
    let round_trip = round_trip.parse().context("parse the round trip")?;
    let path = plan::path(round_trip, loss.parse().context("parse the loss")?);
    let seed = seed.parse().context("parse the seed")?;
    let (left, right) = (end(left)?, end(right)?);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    thread::spawn(move || {
        // An error ends it as the end does.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        stopping.store(true, Ordering::Relaxed);
    });
    // There is one end on the left, so that its address decides nothing.
    let nobody = IpAddr::from([0, 0, 0, 0]);
    relay::run(&[(&left, nobody)], &right, path, seed, &stop);
    Ok(())
}

/// Makes the interface and returns its other side.
fn end(text: &str) -> Result<File> {
    let (namespace, interface) = text.split_once('=').context("give NAMESPACE=INTERFACE")?;
    let tun = Tun::open(&Options {
        name: interface,
        offload: OffloadMax::Off,
        multi_queue: false,
        exclusive: false,
    });
    let tun = tun.context("open a TUN")?;
    let mtu = MTU.to_string();
    for words in [
        &["link", "set", interface, "netns", namespace][..],
        &["-n", namespace, "link", "set", interface, "mtu", &mtu],
        &[
            "-n",
            namespace,
            "link",
            "set",
            interface,
            "txqueuelen",
            "10000",
        ],
    ] {
        let done = Command::new("ip")
            .args(words)
            .status()
            .context("start ip")?;
        ensure!(done.success(), "ip {} failed", words.join(" "));
    }
    Ok(File::from(tun.into_descriptor()))
}
