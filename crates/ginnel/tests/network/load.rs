//! Many connections and many bytes between two nodes in user mode, through the gateway.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use aws_lc_rs::digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{World, echoes, note, now, serve, serve_echo, wait_for};

const CONNECTIONS: usize = 1_000;

const TRANSFER: usize = 64 << 20;

#[test]
fn a_thousand_connections_at_once_leave_no_descriptor_behind() {
    os::process::raise_descriptor_limit().expect("up to the hard limit");
    let (world, laptop) = World::with_laptop();
    let shed = world.machine("shed", "echo", 7000, serve_echo());
    let (forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the service", || echoes(local, b"x"));
    let pids = [laptop.pid(), shed.pid(), forward.pid()];
    let descriptors = || pids.map(descriptors_of);
    settle(&world);
    let before = descriptors();
    let begin = now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("an event loop").block_on(many(local));
    note(&format!(
        "{CONNECTIONS} connections: {:?}",
        now().duration_since(begin)
    ));
    settle(&world);
    wait_for("the descriptors that were there before", || {
        let now = descriptors();
        now.iter().zip(before).all(|(now, before)| *now <= before)
    });
    assert!(echoes(local, b"afterwards"));
}

#[test]
fn sixty_four_megabytes_arrive_whole_in_both_directions() {
    let (world, _laptop) = World::with_laptop();
    let sink = serve(|mut stream| {
        let digest = digest_of(&mut stream);
        drop(stream.write_all(digest.as_ref()));
    });
    let source = serve(|mut stream| {
        drop(stream.write_all(&payload()));
        drop(stream.shutdown(Shutdown::Write));
    });
    let _shed = world.machine("shed", "sink", 7000, sink);
    world.publish("shed", "source", 7001, source);
    let expected = digest::digest(&digest::SHA256, &payload());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    let begin = now();
    let mut stream = TcpStream::connect(local).expect("it listens");
    stream.write_all(&payload()).expect("it is taken");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let mut digest = Vec::new();
    stream
        .read_to_end(&mut digest)
        .expect("an answer behind the half-close");
    let up = now();
    assert_eq!(digest, expected.as_ref());
    let (_forward, local) = world.forward("laptop", "source.svc.internal", 7001);
    let middle = now();
    let mut stream = TcpStream::connect(local).expect("it listens");
    assert_eq!(digest_of(&mut stream).as_ref(), expected.as_ref());
    let down = now().duration_since(middle);
    note(&format!(
        "64 MiB: up {:?}, down {down:?}",
        up.duration_since(begin)
    ));
}

/// Opens all connections, uses each, and closes none before the last has answered.
async fn many(local: SocketAddr) {
    let mut open = Vec::new();
    for number in 0..CONNECTIONS {
        open.push(tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(local).await?;
            exchange(&mut stream, number).await.map(|()| stream)
        }));
    }
    let mut streams = Vec::new();
    for opened in open {
        streams.push(opened.await.expect("no panic").expect("it answers"));
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        exchange(stream, number).await.expect("it still answers");
    }
}

async fn exchange(stream: &mut tokio::net::TcpStream, number: usize) -> std::io::Result<()> {
    let mut back = [0; 8];
    stream.write_all(&number.to_be_bytes()).await?;
    stream.read_exact(&mut back).await?;
    assert_eq!(back, number.to_be_bytes());
    Ok(())
}

fn settle(world: &World) {
    wait_for("no open connection", || {
        world.json("laptop", &["status"])["connections"] == 0
    });
}

fn descriptors_of(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    open.expect("it runs").count()
}

/// Bytes that no part of the way can guess or compress.
fn payload() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(TRANSFER);
    while bytes.len() < TRANSFER {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_be_bytes());
    }
    bytes
}

fn digest_of(stream: &mut TcpStream) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        context.update(&buffer[..length]);
    }
    context.finish()
}
