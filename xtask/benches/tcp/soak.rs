//! A soak: bytes both ways over a bad link for so long, each of them compared, and no stall.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netstack::{CloseReason, Config, ConnectionId, Limits, Received, SendError, Stack};
use os::clock::Clock;

use crate::{
    CLIENT, MTU, PORT, SERVER,
    kernel::Host,
    pair,
    relay::{self, Path},
};

/// Bytes that one call moves.
const CHUNK: usize = 64 << 10;

/// Nothing has moved for so long: a stall. The longest RTO is a minute.
const STALL: Duration = Duration::from_secs(120);

/// 3 % lost, 5 % reordered, 1 % twice.
const PATH: Path = Path {
    rate: 100_000_000,
    queue: 500_000,
    delay: Duration::from_millis(5),
    loss: 0.03,
    reordering: 0.05,
    duplication: 0.01,
};

/// What one direction has moved.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    sent: u64,
    received: u64,
}

/// Runs for `duration` and returns a line for people.
pub(crate) fn run(duration: Duration, seed: u64) -> Result<String> {
    let (server, far) = Host::new("k", SERVER, false)?;
    let (near, inner) = pair()?;
    let finish = Arc::new(AtomicBool::new(false));
    let listener = server.inside(|| TcpListener::bind((SERVER, PORT)).context("listen"))?;
    let stop = AtomicBool::new(false);
    let (ours, theirs) = thread::scope(|scope| {
        let left = [(&near, CLIENT.parse()?)];
        let (far, stop) = (&far, &stop);
        scope.spawn(move || relay::run(&left, far, PATH, seed, stop));
        let serving = scope.spawn(|| serve(&listener, &finish));
        let ours = drive(&inner, duration, &finish);
        if ours.is_err() {
            // Who waits for us would wait for ever.
            finish.store(true, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            drop(server);
        }
        let theirs = serving.join().expect("the server does not panic");
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok((ours?, theirs?))
    })?;
    ensure!(
        (ours.sent, ours.received) == (theirs.received, theirs.sent),
        "we moved {ours:?}, the kernel {theirs:?}"
    );
    let megabytes = |bytes: u64| bytes / 1_000_000;
    Ok(format!(
        "soak of {} s, seed {seed}: {} MB sent and {} MB received, every byte right, no stall",
        duration.as_secs(),
        megabytes(ours.sent),
        megabytes(ours.received)
    ))
}

/// The byte at a place of the stream.
fn byte(at: u64) -> u8 {
    ((at ^ (at >> 11)).wrapping_mul(167) ^ (at >> 7)).to_le_bytes()[0]
}

fn fill(chunk: &mut [u8], from: u64) {
    for (byte_of, at) in chunk.iter_mut().zip(from..) {
        *byte_of = byte(at);
    }
}

fn compare(chunk: &[u8], from: u64) -> Result<()> {
    for (got, at) in chunk.iter().zip(from..) {
        ensure!(*got == byte(at), "byte {at} is wrong");
    }
    Ok(())
}

/// The kernel's side of one connection: sends until told to finish, and receives to the end.
fn serve(listener: &TcpListener, finish: &Arc<AtomicBool>) -> Result<Moved> {
    let (stream, _) = listener.accept().context("accept")?;
    let mut sender = stream.try_clone().context("clone the socket")?;
    sender
        .set_write_timeout(Some(STALL))
        .context("set a timeout")?;
    stream
        .set_read_timeout(Some(STALL))
        .context("set a timeout")?;
    let finish = Arc::clone(finish);
    let sending = thread::spawn(move || -> Result<u64> {
        let (mut sent, mut chunk) = (0, vec![0; CHUNK]);
        while !finish.load(Ordering::Relaxed) {
            fill(&mut chunk, sent);
            sender.write_all(&chunk).context("the kernel sends")?;
            sent += chunk.len() as u64;
        }
        sender.shutdown(Shutdown::Write).context("finish")?;
        Ok(sent)
    });
    let received = receive(&stream)?;
    let sent = sending.join().expect("the sender does not panic")?;
    Ok(Moved { sent, received })
}

fn receive(mut stream: &TcpStream) -> Result<u64> {
    let (mut received, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        match stream.read(&mut chunk).context("the kernel receives")? {
            0 => return Ok(received),
            length => {
                compare(&chunk[..length], received)?;
                received += length as u64;
            }
        }
    }
}

/// Our side: sends and receives for `duration`, then finishes and receives to the end.
fn drive(mut link: &File, duration: Duration, finish: &AtomicBool) -> Result<Moved> {
    let mut seed = [0; 32];
    os::random::fill(&mut seed);
    let mut stack = Stack::new(Config {
        addresses: vec![CLIENT.parse()?],
        mtu: MTU,
        seed,
        limits: Limits::default(),
    });
    let mut clock = Clock::start();
    let began = clock.now();
    let id = stack.connect(began, SocketAddr::new(SERVER.parse()?, PORT))?;
    let (mut moved, mut chunk) = (Moved::default(), vec![0; CHUNK]);
    let (mut progress, mut acknowledged) = (began, 0);
    let mut packet = [0; 2_048];
    loop {
        let now = clock.now();
        let patience = now + Duration::from_millis(50);
        let until = stack.poll_timeout().unwrap_or(patience).min(patience);
        relay::wait(&[link], until.saturating_duration_since(now));
        let now = clock.now();
        while let Ok(length) = link.read(&mut packet) {
            // Duplicates are discarded.
            let _ = stack.handle_packet(now, &packet[..length]);
        }
        stack.handle_timeout(now);
        while stack.poll_event().is_some() {}
        let before = moved.received;
        let ended = exchange(&mut stack, now, id, &mut moved, &mut chunk)?;
        let told = stack.statistics(id).map_or(0, |told| told.acknowledged);
        if told > acknowledged || moved.received > before {
            (acknowledged, progress) = (told, now);
        }
        ensure!(now < progress + STALL, "stalled after {moved:?}");
        if now >= began + duration && !finish.swap(true, Ordering::Relaxed) {
            stack.shutdown(now, id);
        }
        transmit(&mut stack, now, link)?;
        if ended && acknowledged == moved.sent {
            stack.release(now, id);
            linger(&mut stack, &mut clock, link)?;
            return Ok(moved);
        }
    }
}

/// Sends and receives what can be; true at the end of what the kernel sends.
fn exchange(
    stack: &mut Stack,
    now: Instant,
    id: ConnectionId,
    moved: &mut Moved,
    chunk: &mut [u8],
) -> Result<bool> {
    loop {
        fill(chunk, moved.sent);
        match stack.send(now, id, chunk) {
            // Finished: the last acknowledgement was of our FIN too.
            Ok(0) | Err(SendError::ShutDown | SendError::Closed(CloseReason::Finished)) => break,
            Ok(taken) => moved.sent += taken as u64,
            Err(error) => bail!("send: {error}"),
        }
    }
    loop {
        match stack.recv(now, id, chunk).context("receive")? {
            Received::Bytes(length) => {
                compare(&chunk[..length], moved.received)?;
                moved.received += length as u64;
            }
            Received::WouldBlock => return Ok(false),
            Received::End => return Ok(true),
        }
    }
}

/// Answers for a while, because the kernel's last FIN may not have heard our acknowledgement.
fn linger(stack: &mut Stack, clock: &mut Clock, mut link: &File) -> Result<()> {
    let end = clock.now() + Duration::from_secs(3);
    let mut packet = [0; 2_048];
    while clock.now() < end {
        relay::wait(&[link], Duration::from_millis(50));
        let now = clock.now();
        while let Ok(length) = link.read(&mut packet) {
            let _ = stack.handle_packet(now, &packet[..length]);
        }
        stack.handle_timeout(now);
        transmit(stack, now, link)?;
    }
    Ok(())
}

fn transmit(stack: &mut Stack, now: Instant, mut link: &File) -> Result<()> {
    let mut out = [0; 2_048];
    while let Some(length) = stack.poll_transmit(now, &mut out) {
        match link.write(&out[..length]) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(error).context("write to the link");
            }
            // A full link loses packets, as links do.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
