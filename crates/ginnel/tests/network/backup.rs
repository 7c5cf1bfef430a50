//! A server is lost and made again from its backup, and the network goes on.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    outliving::endpoints,
    world::{Ended, World, files_below, finish, lacks, wait_for},
};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Writes a passphrase into a file and returns its path.
fn passphrase(world: &World, name: &str, words: &str) -> String {
    let path = world.path(name);
    fs::write(&path, format!("{words}\n")).expect("a file");
    text(&path).to_owned()
}

fn restore(world: &World, file: &Path, data: &Path, passphrase: &str) -> Ended {
    let line = [
        "restore",
        text(file),
        "--data",
        text(data),
        "--passphrase-file",
        passphrase,
    ];
    world.try_run("server", &line)
}

fn is_private(path: &PathBuf) -> bool {
    let mode = fs::metadata(path).expect("a file").permissions().mode();
    mode & 0o077 == 0
}

#[test]
fn a_server_that_was_lost_comes_back_and_its_nodes_go_on() {
    let (mut world, _laptop) = World::with_laptop();
    world.join("shed");
    let _shed = world.up("shed");
    wait_for("the endpoints on disk", || {
        endpoints(&world, "data/gateway").len() == 2
    });
    let right = passphrase(&world, "right", "a long and secret sentence");
    let (file, data) = (world.path("backup"), world.path("data"));
    let line = [
        "backup",
        text(&file),
        "--data",
        text(&data),
        "--passphrase-file",
        &right,
    ];
    let made = world.json("server", &line);
    assert!(made["rows"].as_u64() > Some(5), "{made}");
    assert!(is_private(&file), "only its owner reads it");
    world.server = None;
    fs::rename(&data, world.path("gone")).expect("it is lost");

    let whole = fs::read(&file).expect("a backup");
    let wrong = passphrase(&world, "wrong", "another sentence");
    let (mut altered, cut) = (whole.clone(), &whole[..whole.len() - 1]);
    altered[whole.len() / 2] ^= 1;
    let bad = world.path("bad");
    for (content, passphrase) in [(&whole[..], &wrong), (&altered, &right), (cut, &right)] {
        fs::write(&bad, content).expect("a file");
        let refused = restore(&world, &bad, &data, passphrase);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("altered"), "{refused:?}");
        assert!(!data.exists(), "nothing is left behind");
    }

    let restored = restore(&world, &file, &data, &right);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    assert!(files_below(&data).iter().all(is_private));
    let again = restore(&world, &file, &data, &right);
    assert!(
        again.stderr.contains("holds an installation already"),
        "{again:?}"
    );
    world.restart_server();
    wait_for("the way through its gateway", || {
        world.try_run("laptop", &["ping", "shed", "-c", "1"]).code == Some(0)
    });
    world.run("laptop", &["audit", "verify"]);
    world.join("shop");
    let _shop = world.up("shop");
    wait_for("the way to a new node", || {
        world.try_run("laptop", &["ping", "shop", "-c", "1"]).code == Some(0)
    });
}

/// Both ways with the program that the format comes from.
#[test]
fn age_opens_a_backup_and_what_age_sealed_comes_back() {
    if lacks("age") || lacks("age-keygen") {
        return;
    }
    let world = World::new();
    let (key, file, data) = (world.path("key"), world.path("backup"), world.path("data"));
    let made = finish(Command::new("age-keygen").arg("-o").arg(&key));
    assert_eq!(made.code, Some(0), "{made:?}");
    let recipient = finish(Command::new("age-keygen").arg("-y").arg(&key)).stdout;
    let recipient = recipient.trim();
    let line = [
        "backup",
        text(&file),
        "--data",
        text(&data),
        "--recipient",
        recipient,
    ];
    world.run("server", &line);
    let opened = finish(Command::new("age").args(["-d", "-i"]).args([&key, &file]));
    assert!(
        opened.stdout.starts_with("{\"backup\":{"),
        "{}",
        opened.stderr
    );
    let (clear, sealed) = (world.path("clear"), world.path("sealed"));
    fs::write(&clear, &opened.stdout).expect("a file");
    let mut age = Command::new("age");
    let ended = finish(age.args(["-r", recipient, "-o"]).args([&sealed, &clear]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let other = world.path("other");
    let line = [
        "restore",
        text(&sealed),
        "--data",
        text(&other),
        "--identity",
        text(&key),
    ];
    world.run("server", &line);
    assert!(other.join("ginnel.db").exists());
}
