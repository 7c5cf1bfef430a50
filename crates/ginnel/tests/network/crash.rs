//! A server or its PostgreSQL is killed in the middle of changes: what was acknowledged is there.
//!
//! `KILLS` says how often each test kills; the moments differ from round to round.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, Scope},
    time::Duration,
};

use crate::{
    outliving::Connection,
    world::{World, echoes, finish, may_mount, note, on_a_disk, serve_echo, signal, wait_for},
};

/// How many join at once.
const JOINERS: u32 = 3;

/// A moment of a change; rounds kill at multiples of it after what they waited for.
const MOMENT: Duration = Duration::from_millis(13);

#[test]
fn a_server_that_is_killed_in_the_middle_of_changes_has_all_that_it_acknowledged() {
    server_is_killed(World::new());
}

#[test]
fn a_server_on_postgres_that_is_killed_in_the_middle_of_changes_has_all_that_it_acknowledged() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    server_is_killed(World::with_flags(&["--database", &postgres.url()]));
}

#[test]
fn a_postgres_that_is_killed_and_comes_back_costs_no_acknowledged_change_and_no_connection() {
    let Some(mut postgres) = Postgres::start() else {
        return;
    };
    let world = World::with_flags(&["--database", &postgres.url()]);
    world.login("laptop");
    let _laptop = world.up("laptop");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (_forward, local) = world.forward("laptop", "echo.svc.internal", 7000);
    wait_for("the first echo", || echoes(local, b"x"));
    let open = Connection::open(local);
    let changes = Changes::new(&world);
    thread::scope(|scope| {
        let _stop = changes.begin(scope, &world);
        for round in 0..kills(2) {
            changes.wait_for_acknowledged(2);
            moment(round);
            let refused = changes.refusals().len();
            postgres.kill();
            open.goes_on();
            assert!(echoes(local, b"without the database"));
            wait_for("a refused change", || changes.refusals().len() > refused);
            open.goes_on();
            postgres.run();
            // The server takes up the database by itself.
            changes.wait_for_acknowledged(2);
            open.goes_on();
        }
    });
    changes.are_there(&world);
    for refusal in changes.refusals().iter() {
        assert!(refusal.contains("try again in some seconds"), "{refusal}");
    }
    for who in ["laptop", "shed"] {
        wait_for("the control plane in the status", || {
            world.json(who, &["status"])["control"]["reached"] == true
        });
    }
    world.join("late");
    let _late = world.up("late");
    wait_for("a node that came after the return", || {
        world.try_run("laptop", &["ping", "late", "-c", "1"]).code == Some(0)
    });
    open.goes_on();
}

/// Kills the server again and again while changes are made, and looks at what it has afterwards.
fn server_is_killed(mut world: World) {
    world.login("laptop");
    let changes = Changes::new(&world);
    for round in 0..kills(5) {
        thread::scope(|scope| {
            let _stop = changes.begin(scope, &world);
            changes.wait_for_acknowledged(1);
            moment(round);
            world.server.as_ref().expect("it runs").signal("KILL");
        });
        drop(world.server.take());
        world.restart_server();
        changes.are_there(&world);
    }
    let last = changes.names().last_key_value().map(|(number, _)| *number);
    // What it was given by the server that was killed works.
    drop(world.up(&joined(last.expect("some joined"))));
}

/// Lets the moment of a round come.
pub(crate) fn moment(round: u32) {
    thread::sleep(MOMENT * round);
}

/// How often a test kills.
pub(crate) fn kills(default: u32) -> u32 {
    let asked = std::env::var("KILLS").ok();
    asked.map_or(default, |asked| asked.parse().expect("a number"))
}

/// Machines that join and are renamed, one after another, and what was acknowledged of it.
pub(crate) struct Changes {
    /// All of them join by this one.
    token: String,
    /// The number of the next machine.
    next: AtomicU32,
    /// The names that a machine may have by what was acknowledged: two while a renaming is open.
    names: Mutex<BTreeMap<u32, Vec<String>>>,
    acknowledged: AtomicU32,
    refusals: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// Ends the changes when it is dropped, also by a failure.
pub(crate) struct Stop<'a>(&'a AtomicBool);

/// How many machines the token lets in.
const USES_MAX: u32 = 10_000;

impl Changes {
    pub(crate) fn new(world: &World) -> Self {
        Self {
            token: world.token(&["--uses", &USES_MAX.to_string()]),
            next: AtomicU32::new(0),
            names: Mutex::default(),
            acknowledged: AtomicU32::new(0),
            refusals: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// Makes changes until the result is dropped.
    pub(crate) fn begin<'a>(&'a self, scope: &'a Scope<'a, '_>, world: &'a World) -> Stop<'a> {
        self.stop.store(false, Ordering::Relaxed);
        for _ in 0..JOINERS {
            scope.spawn(|| {
                while !self.stop.load(Ordering::Relaxed) {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    self.join_and_rename(world, number);
                }
            });
        }
        Stop(&self.stop)
    }

    /// Makes one machine join and renames it.
    pub(crate) fn make_one(&self, world: &World) {
        self.join_and_rename(world, self.next.fetch_add(1, Ordering::Relaxed));
    }

    fn join_and_rename(&self, world: &World, number: u32) {
        let (old, new) = (joined(number), format!("renamed-{number}"));
        let join = ["join", &world.url, "--token", &self.token, "--name", &old];
        if !self.acknowledges(world, &old, &join) {
            return;
        }
        // Whether it is renamed is open until that is acknowledged.
        self.names().insert(number, vec![old.clone(), new.clone()]);
        if self.acknowledges(world, "laptop", &["node", "set", &old, "--name", &new]) {
            self.names().insert(number, vec![new]);
        }
    }

    fn acknowledges(&self, world: &World, who: &str, line: &[&str]) -> bool {
        let ended = world.try_run(who, line);
        let is_done = ended.code == Some(0);
        if is_done {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            self.refusals().push(ended.stderr);
        }
        is_done
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<String>>> {
        self.names.lock().expect("nobody panicked")
    }

    /// Takes what commands said that were refused.
    pub(crate) fn take_refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.refusals())
    }

    fn refusals(&self) -> MutexGuard<'_, Vec<String>> {
        self.refusals.lock().expect("nobody panicked")
    }

    /// Waits until so many more are acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_acknowledged(&self, more: u32) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        wait_for("acknowledged changes", || {
            self.acknowledged.load(Ordering::Relaxed) >= wanted
        });
    }

    /// Every acknowledged change is there, and each that is there is there as a whole.
    #[track_caller]
    pub(crate) fn are_there(&self, world: &World) {
        let nodes = world.json("laptop", &["node", "list"]);
        let nodes = nodes.as_array().expect("a list").iter();
        let found: Vec<_> = nodes.filter_map(|node| node["name"].as_str()).collect();
        for names in self.names().values() {
            let count = found.iter().filter(|name| names.iter().any(|n| n == *name));
            assert_eq!(count.count(), 1, "{names:?} in {found:?}");
        }
        let ours = |name: &&&str| name.starts_with("joined-") || name.starts_with("renamed-");
        let ours = found.iter().filter(ours).count();
        let tokens = world.json("laptop", &["token", "list"]);
        let mut tokens = tokens.as_array().expect("a list").iter();
        let token = tokens.find(|token| token["uses_max"] == USES_MAX);
        assert_eq!(token.expect("it is listed")["uses"], ours, "{found:?}");
        world.run("laptop", &["audit", "verify"]);
        let acknowledged = self.names().len();
        let refused = self.refusals().len();
        note(&format!(
            "{acknowledged} machines acknowledged, {ours} there, {refused} refusals"
        ));
    }
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The name of a machine before it is renamed, and of its state.
fn joined(number: u32) -> String {
    format!("joined-{number}")
}

/// A PostgreSQL in a directory of its own, reached by a Unix socket there.
pub(crate) struct Postgres {
    programs: PathBuf,
    directory: tempfile::TempDir,
    server: Option<Child>,
    /// How large the disk of its database is, if that has one of its own, which is gone with the
    /// server.
    disk_mebibytes: Option<u32>,
}

impl Postgres {
    /// Starts a new one; `None` where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Self> {
        Self::made(None)
    }

    /// Starts one whose database lies on a disk of its own; `None` where nobody may mount one.
    pub(crate) fn on_a_disk(mebibytes: u32) -> Option<Self> {
        if !may_mount() {
            return None;
        }
        if !is_root() {
            // As root of a user namespace it would be no other user.
            note("SKIPPED: only root runs a PostgreSQL on a disk of its own");
            return None;
        }
        let postgres = Self::made(Some(mebibytes))?;
        let location = postgres.disk().join("tablespace");
        let location = location.display();
        postgres.psql(&format!("CREATE TABLESPACE small LOCATION '{location}'"));
        postgres.psql("CREATE DATABASE small TABLESPACE small");
        Some(postgres)
    }

    fn made(disk_mebibytes: Option<u32>) -> Option<Self> {
        let Some(programs) = programs() else {
            let required = std::env::var("INTEROP").is_ok_and(|value| value == "required");
            assert!(!required, "required, but PostgreSQL is not installed");
            note("SKIPPED: PostgreSQL is not installed");
            return None;
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut postgres = Self {
            programs,
            directory,
            server: None,
            disk_mebibytes,
        };
        if is_root() {
            // PostgreSQL refuses to run as root, and its own user must reach the directory.
            let mut chown = Command::new("chown");
            let ended = finish(chown.arg("postgres").arg(postgres.directory.path()));
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        let mut initdb = postgres.program("initdb");
        let ended = finish(initdb.args(["--auth=trust", "--username=postgres", "--no-sync"]));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        postgres.run();
        Some(postgres)
    }

    pub(crate) fn url(&self) -> String {
        let host = self.directory.path().display();
        let database = match self.disk_mebibytes {
            Some(_) => "small",
            None => "",
        };
        format!("postgres:///{database}?host={host}&user=postgres")
    }

    /// Returns where its disk is, as everybody sees it.
    pub(crate) fn disk_from_outside(&self) -> PathBuf {
        let server = self.server.as_ref().expect("it runs").id();
        let disk = self.disk();
        let disk = disk.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{server}/root")).join(disk)
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    #[track_caller]
    fn psql(&self, statement: &str) {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.arg("--host").arg(self.directory.path());
        psql.args(["--username=postgres", "--no-psqlrc", "--command", statement]);
        let ended = finish(&mut psql);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    /// Runs the server until it answers.
    #[track_caller]
    pub(crate) fn run(&mut self) {
        wait_for("PostgreSQL", || {
            // After a kill it refuses to start until the last process of the one before is gone.
            if self.has_ended() {
                let log = self.directory.path().join("log");
                let log = File::options().create(true).append(true).open(log);
                let log = log.expect("create a log");
                let mut server = self.program("postgres");
                server.arg("-k").arg(self.directory.path());
                server.args(["-c", "listen_addresses="]);
                if let Some(mebibytes) = self.disk_mebibytes {
                    let made = "mkdir \"$1/tablespace\" && chown postgres \"$1/tablespace\"";
                    server = on_a_disk(&server, &self.disk(), mebibytes, made);
                }
                server.stderr(log).stdout(Stdio::null());
                self.server = Some(server.spawn().expect("start"));
            }
            let mut ready = Command::new(self.programs.join("pg_isready"));
            finish(ready.arg("--host").arg(self.directory.path())).code == Some(0)
        });
    }

    fn has_ended(&mut self) -> bool {
        let server = self.server.as_mut();
        server.is_none_or(|server| server.try_wait().expect("our child").is_some())
    }

    /// Sends a signal to every process of it: one that stands still answers nothing.
    pub(crate) fn signal_all(&self, name: &str) {
        let Some(server) = &self.server else {
            return;
        };
        // Those of one that is killed are its children no more.
        let children = children(server.id());
        for process in [server.id()].into_iter().chain(children) {
            signal(process, name);
        }
    }

    /// Ends every process of it at once, also those that stand still.
    pub(crate) fn kill_all(&mut self) {
        self.signal_all("KILL");
        self.kill();
    }

    /// Ends the postmaster without a warning; its other processes notice.
    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("our child");
            server.wait().expect("it ends");
        }
    }

    /// A program of PostgreSQL for this cluster, that runs as somebody else than root.
    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/").stdin(Stdio::null());
        command.arg("-D").arg(self.directory.path().join("data"));
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log"));
            note(&log.unwrap_or_default());
        }
        if let Some(server) = &mut self.server {
            // At once, but it takes its processes and its shared memory with it.
            signal(server.id(), "QUIT");
            signal(server.id(), "CONT");
            for child in children(server.id()) {
                signal(child, "CONT");
            }
            drop(server.wait());
        }
    }
}

/// Returns the processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let tasks = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let tasks = tasks.unwrap_or_default();
    tasks
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Where Debian has the programs of the newest version.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = versions.flatten().map(|entry| entry.path()).max()?;
    Some(newest.join("bin"))
}

fn is_root() -> bool {
    finish(Command::new("id").arg("-u")).stdout.trim() == "0"
}
