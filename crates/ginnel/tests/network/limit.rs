//! An agent and a server that run out of descriptors: they wait, say so, and serve on.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::world::{Process, World, echoes, now, serve_echo, wait_for};

const DESCRIPTORS: u32 = 256;

const CONNECTIONS: usize = 400;

/// What the limit leaves for connections, at least: the rest is the program's own.
const OPEN_MIN: usize = 200;

/// Both programs look again after 50 ms; a little less, for the clocks differ.
const PAUSE: Duration = Duration::from_millis(45);

#[test]
fn an_agent_out_of_descriptors_serves_the_others_in_their_turn() {
    os::process::raise_descriptor_limit().expect("up to the hard limit");
    let world = World::new();
    world.login("laptop");
    let begin = now();
    let laptop = world.up_limited("laptop", DESCRIPTORS);
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the service", || echoes(local, b"x"));
    let answered = connect_all(local);
    let mut open: Vec<_> = (0..OPEN_MIN)
        .map(|_| answered.recv().expect("a connection").expect("it answers"))
        .collect();
    wait_for("the end of the descriptors", || {
        laptop.stderr().contains("accept a command")
    });
    let refused = world.try_run("laptop", &["dial", "shed", "7000", "--timeout", "1"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(
        refused.stderr.contains("local agent: no answer within"),
        "{refused:?}"
    );
    for stream in &mut open {
        exchange(stream).expect("what is open goes on");
    }
    pauses(&laptop, "accept a command", begin);
    // Each that ends makes room for one that waits.
    drop(open);
    for _ in OPEN_MIN..CONNECTIONS {
        let waited = answered.recv().expect("a connection");
        drop(waited.expect("its turn came"));
    }
    wait_for("new connections", || echoes(local, b"afterwards"));
}

#[test]
fn a_server_out_of_descriptors_forwards_on_and_answers_when_there_are_some() {
    os::process::raise_descriptor_limit().expect("up to the hard limit");
    let mut world = World::new();
    world.server = None;
    let begin = now();
    world.restart_server_limited(DESCRIPTORS);
    world.login("laptop");
    let _laptop = world.up("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "shed", 7000);
    wait_for("the service", || echoes(local, b"x"));
    let mut open = TcpStream::connect(local).expect("it listens");
    exchange(&mut open).expect("it answers");
    let api = world.url.trim_start_matches("https://").to_owned();
    let idle: Vec<_> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(&api).expect("the backlog has a place"))
        .collect();
    let server = world.server.as_ref().expect("it runs");
    let sentence = "a connection was not accepted";
    wait_for("the end of the descriptors", || {
        server.stderr().contains(sentence)
    });
    exchange(&mut open).expect("what is open goes on");
    assert!(echoes(local, b"new"), "the gateway needs no descriptor");
    pauses(server, sentence, begin);
    drop(idle);
    wait_for("an answer of the API", || {
        world.try_run("laptop", &["whoami"]).code == Some(0)
    });
    exchange(&mut open).expect("what is open goes on");
    pauses(server, sentence, begin);
}

/// Opens all connections at once; each arrives when it has answered.
fn connect_all(local: SocketAddr) -> mpsc::Receiver<std::io::Result<TcpStream>> {
    let (sender, answered) = mpsc::channel();
    for _ in 0..CONNECTIONS {
        let sender = sender.clone();
        thread::spawn(move || {
            let opened = TcpStream::connect(local).and_then(|mut stream| {
                exchange(&mut stream)?;
                Ok(stream)
            });
            // A test that has failed takes no more.
            drop(sender.send(opened));
        });
    }
    answered
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut back = [0; 4];
    stream.write_all(b"open")?;
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"open");
    Ok(())
}

/// Asserts that between two failures of `process`, which runs since `begin`, there was a pause,
/// and that nothing in it has panicked.
#[track_caller]
fn pauses(process: &Process, sentence: &str, begin: std::time::Instant) {
    let log = process.stderr();
    let failures = u32::try_from(log.matches(sentence).count()).expect("a short log");
    let lasted = now().duration_since(begin);
    assert!(PAUSE * failures <= lasted, "{failures} times in {lasted:?}");
    assert!(!log.contains("panicked"), "{log}");
}
