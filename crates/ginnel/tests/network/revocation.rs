//! What is taken back ends what was begun with it: sessions that run, on both sides.

use std::{fs, process::Command};

use crate::{
    ssh::{log_in, world},
    world::{Process, World, finish, note, signal, wait_for, word},
};

/// A session in which a program waits, and where the program's number stands.
struct Session<'a> {
    world: &'a World,
    client: Process,
    name: String,
}

impl<'a> Session<'a> {
    fn begin(world: &'a World, who: &str, name: &str) -> Self {
        let path = world.path(name);
        let line = format!(
            "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600",
            path.display()
        );
        let client = world.spawn(&mut world.ginnel(who, &["ssh", "root@shed", &line]));
        wait_for("a session", || path.exists());
        let name = name.to_owned();
        Self {
            world,
            client,
            name,
        }
    }

    fn program(&self) -> u32 {
        let text = fs::read_to_string(self.world.path(&self.name)).expect("a file");
        text.trim().parse().expect("a number")
    }

    fn runs(&self) -> bool {
        is_running(self.program())
    }

    /// Waits until the program has ended and the person was told.
    fn ends(mut self) {
        let program = self.program();
        wait_for("the end of the program", || !is_running(program));
        let ended = self.client.ended();
        assert_eq!(ended.code, Some(255), "{ended:?}");
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.runs() {
            signal(self.program(), "KILL");
        }
    }
}

fn is_running(pid: u32) -> bool {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = line
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    // Whoever started it may not have waited for it yet.
    !matches!(state, None | Some('Z' | 'X'))
}

/// Signs a second device of the person in and lets it run.
fn second_device(world: &World) -> Process {
    let token = word(
        &world.run("laptop", &["token", "add", "--kind", "login"]),
        "ginnel-",
    );
    let line = ["login", &world.url, "--token", &token, "--name", "tablet"];
    world.run("tablet", &line);
    world.up("tablet")
}

fn last_serial(world: &World) -> String {
    let list = world.json("laptop", &["ssh-ca", "list"]);
    let rows = list.as_array().expect("a list").iter();
    let users = rows.filter(|row| row["kind"] == "user");
    let serials = users.filter_map(|row| row["serial"].as_u64());
    serials.max().expect("a certificate").to_string()
}

#[test]
fn a_serial_that_is_revoked_ends_its_session_and_no_other() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let stays = Session::begin(&world, "laptop", "stays");
    let goes = Session::begin(&world, "laptop", "goes");
    world.run(
        "laptop",
        &["ssh-ca", "revoke", "--serial", &last_serial(&world)],
    );
    goes.ends();
    assert!(stays.runs());
}

#[test]
fn a_node_and_then_a_person_that_are_revoked_lose_their_sessions() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let _tablet = second_device(&world);
    let stays = Session::begin(&world, "laptop", "stays");
    let goes = Session::begin(&world, "tablet", "goes");
    world.run("laptop", &["ssh-ca", "revoke", "--node", "tablet"]);
    goes.ends();
    assert!(stays.runs());
    // It may come in again: the node was not removed.
    let again = Session::begin(&world, "tablet", "again");
    world.run("laptop", &["ssh-ca", "revoke", "--user", "admin"]);
    stays.ends();
    again.ends();
}

#[test]
fn a_replaced_authority_ends_every_session_and_the_next_login_works_at_once() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let goes = Session::begin(&world, "laptop", "goes");
    world.run("laptop", &["ssh-ca", "rotate", "--now"]);
    goes.ends();
    // The host has a certificate of the new authority by itself.
    let took = wait_for("a login by the new authority", || {
        log_in(&world, "root@shed", "true").code == Some(0)
    });
    note(&format!(
        "a login by the new authority: {took:?} after the session ended"
    ));
}

#[test]
fn a_device_that_is_removed_loses_its_sessions() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let _tablet = second_device(&world);
    let goes = Session::begin(&world, "tablet", "goes");
    world.run("laptop", &["node", "remove", "tablet"]);
    let program = goes.program();
    wait_for("the end of the program", || !is_running(program));
}

#[test]
fn a_host_that_is_removed_ends_the_sessions_at_it() {
    let Some((world, _laptop, mut shed)) = world() else {
        return;
    };
    let goes = Session::begin(&world, "laptop", "goes");
    world.run("laptop", &["node", "remove", "shed"]);
    assert_eq!(shed.ended().code, Some(1));
    let program = goes.program();
    wait_for("the end of the program", || !is_running(program));
}

#[test]
fn a_host_that_is_renamed_proves_its_new_name() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    world.run("laptop", &["node", "set", "shed", "--name", "barn"]);
    wait_for("a login by the new name", || {
        log_in(&world, "root@barn", "true").code == Some(0)
    });
}

/// A control plane that was put back to an older state, by whomever, brings no older keys in.
#[test]
fn an_older_statement_of_keys_lets_nobody_in() {
    let Some((mut world, _laptop, shed)) = world() else {
        return;
    };
    drop(shed);
    let (from, to) = (world.path("shed"), world.path("shed.before"));
    let copied = finish(Command::new("cp").arg("-a").args([from, to]));
    assert_eq!(copied.code, Some(0), "{copied:?}");
    world.run("laptop", &["ssh-ca", "rotate"]);
    let shed = world.up_with("shed", &["--ssh"]);
    wait_for("the newer keys", || {
        let pin = fs::read_to_string(world.path("shed/ssh_authority.json")).unwrap_or_default();
        pin.contains("\"version\":2")
    });
    // The node starts with its old map, and without a server that could bring it a newer one.
    drop(shed);
    let mut server = world.server.take().expect("a server");
    server.signal("TERM");
    server.ended();
    let before = fs::read(world.path("shed.before/map.json")).expect("a file");
    fs::write(world.path("shed/map.json"), before).expect("a file");
    let line = [
        "ssh-server",
        "principals",
        "--account=root",
        "--serial=1",
        "--authority=AAAA",
    ];
    let ended = world.try_run("shed", &line);
    assert_eq!(ended.stdout, "", "{ended:?}");
    assert!(
        ended.stderr.contains("version 2 was seen before"),
        "{ended:?}"
    );
}
