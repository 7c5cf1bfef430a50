//! One small datagram back and forth: what a request and its answer wait for.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::step;

/// Sends every datagram back, for ever.
pub(crate) fn echo(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address).context("bind")?;
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

/// Prints the number of round trips, and their median and 99th percentile in µs.
pub(crate) fn measure(address: &str, seconds: &str) -> Result<()> {
    let seconds: u64 = seconds.parse().context("parse seconds")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut buffer = [0; 64];
    let mut trips = Vec::new();
    let end = step::now() + Duration::from_secs(seconds);
    let mut lost = 0;
    while step::now() < end {
        let before = step::now();
        socket.send(&buffer)?;
        match socket.recv(&mut buffer) {
            Ok(_) => trips.push(step::now() - before),
            Err(_) => lost += 1,
        }
        ensure!(lost < 10, "no answers");
    }
    trips.sort();
    let at = |part: usize| {
        let place = (trips.len() * part / 1000).min(trips.len().saturating_sub(1));
        trips
            .get(place)
            .map_or(0.0, |trip| trip.as_secs_f64() * 1e6)
    };
    step::say(&format!("{} {:.2} {:.2}\n", trips.len(), at(500), at(990)));
    Ok(())
}
