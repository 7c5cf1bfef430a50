//! Relays on loopback that deliver everything later, as a longer link would.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::step;

/// What is delivered later, and when.
type Late = (Instant, Vec<u8>);

/// Relays TCP to a port of loopback; each direction, and the way of the first SYN and its answer,
/// takes `delay`.
pub(super) fn tcp(target: u16, delay: Duration) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            thread::spawn(move || lead(near, target, delay));
        }
    });
    Ok(port)
}

fn lead(near: TcpStream, target: u16, delay: Duration) {
    // The kernel has accepted at once; a link would have taken a round trip.
    thread::sleep(delay * 2);
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else {
        return;
    };
    for stream in [&near, &far] {
        drop(stream.set_nodelay(true));
    }
    let pairs = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
    for (from, to) in pairs {
        if let (Ok(from), Ok(to)) = (from, to) {
            thread::spawn(move || copy(from, to, delay));
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, late) = mpsc::channel::<Late>();
    thread::spawn(move || {
        for (due, bytes) in late {
            thread::sleep(due.saturating_duration_since(step::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        drop(to.shutdown(Shutdown::Write));
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let due = step::now() + delay;
        if sender.send((due, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

/// Relays datagrams between `listen` and `target`, each direction taking `delay`. Each source has a
/// socket of its own behind it, as behind a NAT.
pub(super) fn udp(listen: UdpSocket, target: SocketAddr, delay: Duration) {
    thread::spawn(move || {
        let mut known: Vec<(SocketAddr, mpsc::Sender<Late>)> = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = listen.recv_from(&mut buffer) {
            let sender = match known.iter().find(|(source, _)| *source == from) {
                Some((_, sender)) => sender.clone(),
                None => {
                    let Ok(sender) = flow(&listen, from, target, delay) else {
                        continue;
                    };
                    known.push((from, sender.clone()));
                    sender
                }
            };
            // It lives as long as this thread.
            drop(sender.send((step::now() + delay, buffer[..length].to_vec())));
        }
    });
}

fn flow(
    listen: &UdpSocket,
    source: SocketAddr,
    target: SocketAddr,
    delay: Duration,
) -> Result<mpsc::Sender<Late>> {
    let behind = UdpSocket::bind("127.0.0.1:0")?;
    behind.connect(target)?;
    let (sender, late) = mpsc::channel::<Late>();
    let out = behind.try_clone()?;
    thread::spawn(move || {
        for (due, bytes) in late {
            thread::sleep(due.saturating_duration_since(step::now()));
            drop(out.send(&bytes));
        }
    });
    let (back, late) = mpsc::channel::<Late>();
    let near = listen.try_clone()?;
    thread::spawn(move || {
        for (due, bytes) in late {
            thread::sleep(due.saturating_duration_since(step::now()));
            drop(near.send_to(&bytes, source));
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = behind.recv(&mut buffer) {
            if back
                .send((step::now() + delay, buffer[..length].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    Ok(sender)
}
