//! The disk of the server's database is full, fails or is slow: changes are refused and leave
//! nothing, the rest goes on, and nothing has to be restarted.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    crash::{Changes, Postgres},
    outliving::Connection,
    world::{Process, World, echoes, finish, lacks, note, now, serve_echo, wait_for},
};

/// A laptop and a machine with an echo, whose gateway is in the process of the server.
struct Network {
    world: World,
    local: std::net::SocketAddr,
    open: Connection,
    _processes: [Process; 3],
}

impl Network {
    fn in_world(world: World) -> Self {
        world.login("laptop");
        let laptop = world.up("laptop");
        let shed = world.machine("shed", "echo", 7000, serve_echo());
        let (forward, local) = world.forward("laptop", "echo.svc.internal", 7000);
        wait_for("the first echo", || echoes(local, b"x"));
        let open = Connection::open(local);
        Self {
            world,
            local,
            open,
            _processes: [laptop, shed, forward],
        }
    }

    /// Traffic, names and reading go on, and whoever follows the map is not let go.
    #[track_caller]
    fn goes_on(&self) {
        self.open.goes_on();
        assert!(echoes(self.local, b"a new connection"));
        self.world.run("laptop", &["resolve", "echo.svc.internal"]);
        self.world.run("laptop", &["node", "list"]);
        for who in ["laptop", "shed"] {
            let status = self.world.json(who, &["status"]);
            assert_eq!(status["control"]["reached"], true, "{who}");
        }
    }
}

#[test]
fn a_full_disk_refuses_changes_and_nothing_else_and_takes_them_once_there_is_room() {
    let Some(world) = World::on_a_disk(16) else {
        return;
    };
    let network = Network::in_world(world);
    let world = &network.world;
    let token = world.token(&[]);
    let fill = fill(world.server_path("fill"));

    let join = ["join", &world.url, "--token", &token, "--name", "late"];
    let rename = ["node", "set", "shed", "--name", "barn"];
    let cert = world.path("key");
    let certify = ["cert", "--out", cert.to_str().expect("UTF-8")];
    for (who, line) in [
        ("late", &join[..]),
        ("laptop", &rename),
        ("laptop", &certify),
    ] {
        let refused = world.try_run(who, line);
        is_full(&refused.stderr);
        assert_eq!(refused.code, Some(1), "{refused:?}");
    }
    network.goes_on();
    let nodes = world.run("laptop", &["node", "list"]);
    assert!(nodes.contains("shed") && !nodes.contains("barn") && !nodes.contains("late"));
    world.run("laptop", &["audit", "verify"]);

    std::fs::remove_file(fill).expect("it is there");
    world.run("late", &join);
    world.run("laptop", &rename);
    world.run("laptop", &certify);
    // Whoever followed the map before follows it now.
    wait_for("the new name", || {
        world.try_run("laptop", &["resolve", "barn"]).code == Some(0)
    });
    network.goes_on();
    world.run("laptop", &["audit", "verify"]);
    assert!(cert.exists());
}

/// Each change meets the end of the disk a page later than the one before it.
#[test]
fn wherever_in_a_change_the_disk_is_full_nothing_is_left_of_it() {
    let Some(world) = World::on_a_disk(16) else {
        return;
    };
    let network = Network::in_world(world);
    let world = &network.world;
    let changes = Changes::new(world);
    let fill = fill(world.server_path("fill"));
    let mut length = std::fs::metadata(&fill).expect("it was filled").len();
    let mut refused = 0;
    // What a change takes of the room is gone for the next one.
    for _ in 0..PAGES {
        changes.make_one(world);
        let refusals = changes.take_refusals();
        network.open.goes_on();
        refusals.iter().for_each(|refusal| is_full(refusal));
        changes.are_there(world);
        refused += refusals.len();
        length -= PAGE;
        let file = File::options().write(true).open(&fill);
        let file = file.expect("it is there");
        file.set_len(length).expect("it gets shorter");
    }
    note(&format!(
        "{refused} changes refused at {PAGES} ends of the disk"
    ));
    assert!(refused >= 5, "{refused}");
    std::fs::remove_file(fill).expect("it is there");
    changes.make_one(world);
    assert_eq!(changes.take_refusals(), [] as [&str; 0]);
    changes.are_there(world);
    network.goes_on();
}

#[test]
fn a_full_disk_of_a_postgres_refuses_changes_and_nothing_else() {
    let Some(postgres) = Postgres::on_a_disk(32) else {
        return;
    };
    let network = Network::in_world(World::with_flags(&["--database", &postgres.url()]));
    let world = &network.world;
    let changes = Changes::new(world);
    let fill = fill(postgres.disk_from_outside().join("fill"));
    // Its pages have room for some changes more.
    let mut refusals = Vec::new();
    while refusals.is_empty() {
        changes.make_one(world);
        refusals = changes.take_refusals();
    }
    changes.make_one(world);
    refusals.extend(changes.take_refusals());
    assert!(refusals.len() >= 2, "it was full for once only");
    refusals.iter().for_each(|refusal| is_full(refusal));
    network.goes_on();
    changes.are_there(world);
    std::fs::remove_file(fill).expect("it is there");
    changes.make_one(world);
    assert_eq!(changes.take_refusals(), [] as [&str; 0]);
    network.goes_on();
    changes.are_there(world);
}

#[test]
fn a_disk_that_fails_or_is_full_at_any_write_of_a_change_leaves_nothing_of_it() {
    let Some(mut network) = traceable() else {
        return;
    };
    let changes = Changes::new(&network.world);
    for (error, calls) in [
        ("ENOSPC", &["write,pwrite64"][..]),
        ("EIO", &["write,pwrite64", "fdatasync,fsync"]),
        ("EROFS", &["write,pwrite64"]),
    ] {
        for call in calls {
            let world = &network.world;
            let (mut points, mut ignored) = (0, 0);
            for first in 1.. {
                let fault = format!("error={error}:when={first}+");
                let tracer = Tracer::attach(world, call, &fault);
                changes.make_one(world);
                let met = tracer.detach();
                let refusals = changes.take_refusals();
                network.open.goes_on();
                if !met {
                    assert_eq!(refusals, [] as [&str; 0], "nothing failed");
                    break;
                }
                // What is written after a change is durable, into the file itself, may be written
                // another time.
                match refusals.len() {
                    0 => ignored += 1,
                    _ => points += 1,
                }
                for refusal in &refusals {
                    match error {
                        "ENOSPC" => is_full(refusal),
                        _ => is_failing(refusal),
                    }
                }
                changes.are_there(world);
                // The same works at once when the disk does.
                changes.make_one(world);
                assert_eq!(changes.take_refusals(), [] as [&str; 0]);
            }
            note(&format!(
                "{error} of {call}: {points} refused, {ignored} put off"
            ));
            assert!(points > 0, "{error} at {call}");
        }
    }
    network.goes_on();
    // What was acknowledged is on the disk, too.
    network.world.server.take().expect("it runs").kill();
    network.world.restart_server();
    changes.are_there(&network.world);
}

#[test]
fn a_disk_that_takes_two_seconds_holds_changes_up_and_nothing_else() {
    let Some(network) = traceable() else {
        return;
    };
    let world = &network.world;
    let changes = Changes::new(world);
    for call in ["fdatasync,fsync", "write,pwrite64"] {
        // One of the writes of each change: a change has dozens.
        let when = if call.starts_with('f') { "1+" } else { "2" };
        let tracer = Tracer::attach(world, call, &format!("delay_enter=2000000:when={when}"));
        let begin = now();
        thread::scope(|scope| {
            let change = scope.spawn(|| changes.make_one(world));
            let mut looks = 0;
            while !change.is_finished() {
                let look = now();
                network.goes_on();
                looks += 1;
                let took = now().duration_since(look);
                assert!(took < Duration::from_secs(20), "{took:?}");
            }
            assert!(looks > 0, "the change was too fast");
        });
        let took = now().duration_since(begin);
        assert!(tracer.detach(), "nothing was slow");
        assert_eq!(changes.take_refusals(), [] as [&str; 0]);
        assert!(took >= Duration::from_secs(2), "{took:?}");
        // Two changes; a request has 15 seconds.
        assert!(took < Duration::from_secs(40), "{took:?}");
        note(&format!("{call} of two seconds: {took:?} for two changes"));
        changes.are_there(world);
    }
    network.goes_on();
}

/// What a file system allots at once.
const PAGE: u64 = 4_096;

/// How many ends of the disk changes meet.
const PAGES: u32 = 24;

/// Writes until the disk of the server is full.
fn fill(path: PathBuf) -> PathBuf {
    let mut file = File::create(&path).expect("there is room for a name");
    let page = vec![0xa5; usize::try_from(PAGE).expect("small")];
    loop {
        match file.write_all(&page) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return path,
            Err(error) => panic!("{error}"),
        }
    }
}

#[track_caller]
fn is_full(refusal: &str) {
    assert!(
        refusal.contains("server: the disk of the server's database is full; nothing was changed")
            && refusal.contains("free space on the disk"),
        "{refusal}"
    );
}

#[track_caller]
fn is_failing(refusal: &str) {
    assert!(
        refusal.contains("server: the disk of the server's database fails")
            && refusal.contains("try again in some seconds"),
        "{refusal}"
    );
}

/// A network whose server can be traced.
fn traceable() -> Option<Network> {
    if lacks("strace") {
        return None;
    }
    let mut strace = Command::new("strace");
    let traced = finish(strace.args(["-qq", "-o", "/dev/null", "true"]));
    if traced.code != Some(0) {
        let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
        assert!(!required, "required, but nobody may trace: {traced:?}");
        note("SKIPPED: nobody may trace a process");
        return None;
    }
    Some(Network::in_world(World::new()))
}

/// strace, which lets calls of the server on the files of its database fail or wait.
struct Tracer {
    tracer: Child,
    told: PathBuf,
}

impl Tracer {
    /// Returns once every thread of the server is traced.
    #[track_caller]
    fn attach(world: &World, calls: &str, fault: &str) -> Self {
        let server = world.server.as_ref().expect("it runs").pid();
        let told = world.path("strace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-p", &server.to_string()]);
        for name in ["ginnel.db", "ginnel.db-wal", "ginnel.db-shm"] {
            strace.arg("-P").arg(world.path("data").join(name));
        }
        strace.args(["-e", &format!("inject={calls}:{fault}")]);
        strace.args(["-e", &format!("trace={calls}")]);
        strace.arg("-o").arg(&told);
        let tracer = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        let tracer = tracer.expect("start strace");
        let id = tracer.id().to_string();
        wait_for("strace", || {
            let threads = std::fs::read_dir(format!("/proc/{server}/task"));
            threads.expect("it runs").flatten().all(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status"));
                let status = status.unwrap_or_default();
                let traced = status
                    .lines()
                    .find_map(|line| line.strip_prefix("TracerPid:"));
                traced.is_none_or(|tracer| tracer.trim() == id)
            })
        });
        Self { tracer, told }
    }

    /// Lets the server go, and tells whether a call was tampered with.
    fn detach(mut self) -> bool {
        let ended = finish(Command::new("kill").arg(self.tracer.id().to_string()));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        self.tracer.wait().expect("it ends");
        let mut told = String::new();
        let file = File::open(&self.told);
        let read = file.expect("strace wrote").read_to_string(&mut told);
        read.expect("UTF-8");
        told.contains("(INJECTED)") || told.contains("(DELAYED)")
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.tracer.kill());
        drop(self.tracer.wait());
    }
}
