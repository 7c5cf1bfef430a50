//! Secrets stay where they belong: in files of their owner, in no log and in no process list.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::world::{
    Process, World, command_line, echoes, files_below, finish, serve_echo, wait_for,
};

#[test]
fn no_secret_is_in_a_log_or_a_process_list_and_state_is_for_its_owner_alone() {
    let (world, _laptop) = World::with_laptop();
    let join = world.token(&["--uses", "1"]);
    let gateway = world.token(&["--kind", "gateway"]);
    let endpoint = crate::world::free_udp();
    let line = [
        "-vvv",
        "gateway",
        &world.url,
        "--endpoint",
        &endpoint,
        "--wireguard",
        &endpoint,
        "--name",
        "edge",
    ];
    let mut command = world.ginnel("edge", &line);
    command.env("GINNEL_TOKEN", &gateway);
    let mut edge = world.spawn(&mut command);
    edge.until("is ready");
    let mut command = world.ginnel("shed", &["-vvv", "join", &world.url, "--name", "shed"]);
    command.env("GINNEL_TOKEN", &join);
    let mut joining = world.spawn(&mut command);
    assert_eq!(joining.ended().code, Some(0));
    world.publish("shed", "echo", 7000, serve_echo());
    let _shed = loud(&world, "shed", &["up"]);
    let file = world.path("token.txt");
    fs::write(&file, world.token(&[])).expect("write");
    let mut joining = world.ginnel("barn", &["join", &world.url, "--name", "barn"]);
    joining.arg("--token-file").arg(&file);
    assert_eq!(finish(&mut joining).code, Some(0));
    let _agent = loud(&world, "barn", &["agent"]);
    let (_forward, local) = world.forward("barn", "echo.svc.internal", 7000);
    wait_for("the service", || echoes(local, b"x"));

    let mut secrets = vec![world.admin.clone(), join, gateway];
    for who in ["laptop", "shed", "edge", "barn"] {
        secrets.extend(secrets_of(&world.path(who)));
    }
    secrets.extend(secrets_of(&world.path("data/gateway")));
    assert!(secrets.len() > 3 + 4 * 2, "{}", secrets.len());
    let logs = world.logs();
    assert!(logs.contains("TRACE") || logs.contains("DEBUG"), "{logs}");
    for secret in &secrets {
        assert!(!logs.contains(secret), "`{}...` is in a log", &secret[..12]);
        for pid in world.pids() {
            let line = command_line(pid);
            assert!(
                !line.contains(secret),
                "`{}...` is in: {line}",
                &secret[..12]
            );
        }
    }
    for who in ["laptop", "shed", "edge", "barn", "data"] {
        private(&world.path(who));
    }
}

/// Starts a command that logs all that it can.
fn loud(world: &World, who: &str, line: &[&str]) -> Process {
    let mut command = world.ginnel(who, line);
    command.env("GINNEL_LOG", "trace");
    let mut process = world.spawn(&mut command);
    process.until("ready");
    process
}

/// Reads the private key and the tokens in a state directory.
fn secrets_of(state: &Path) -> Vec<String> {
    let mut secrets = Vec::new();
    if let Ok(key) = fs::read_to_string(state.join("private.key")) {
        secrets.push(key.trim().to_owned());
    }
    for name in ["node.json", "session.json"] {
        let text = fs::read_to_string(state.join(name)).unwrap_or_default();
        let words = text.split('"').filter(|word| word.starts_with("ginnel-"));
        secrets.extend(words.map(str::to_owned));
    }
    secrets
}

#[track_caller]
fn private(state: &Path) {
    let mut folders = vec![state.to_owned()];
    for path in files_below(state) {
        folders.extend(path.parent().map(PathBuf::from));
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        let kind = metadata.file_type();
        assert!(kind.is_file() || kind.is_socket(), "{}", path.display());
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    for folder in folders {
        let mode = fs::metadata(&folder)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
}
