//! Python's SSH client, which says what no client should, against our server on loopback.

use std::process::{Command, Stdio};

use super::openssh::{PYTHON, World, run, user};

/// Grants windows that no channel can have (RFC 4254, 5.2), before and while the server sends, also
/// of a channel that there is not.
const WINDOWS: &str = "\
import sys, paramiko
port, user, key, certificate = sys.argv[1:]
transport = paramiko.Transport(('127.0.0.1', int(port)))
transport.start_client(timeout=60)
key = paramiko.Ed25519Key(filename=key)
key.load_certificate(certificate)
transport.auth_publickey(user, key)
session = transport.open_session(timeout=60)
session.settimeout(60)

def grant(channel):
    for amount in [1, 2**31, 2**32 - 1, 2**32 - 1]:
        message = paramiko.Message()
        message.add_byte(bytes([93]))
        message.add_int(channel)
        message.add_int(amount)
        transport._send_user_message(message)

grant(session.remote_chanid)
grant(session.remote_chanid + 1)
session.exec_command('head -c 3000000 /dev/zero; sleep 1; head -c 1000000 /dev/zero; exit 7')
count = 0
while True:
    data = session.recv(65536)
    if not data:
        break
    if count < 100000:
        grant(session.remote_chanid)
    count += len(data)
print(count, session.recv_exit_status())
";

/// CVE-2025-54804: the sum was computed without a bound.
#[test]
fn windows_beyond_their_bound_stay_at_the_bound() {
    let Some(world) = World::new(&["paramiko"]) else {
        return;
    };
    let mut python = Command::new(PYTHON);
    python.args(["-c", WINDOWS, &world.port.to_string(), &user()]);
    python.arg(world.path("me")).arg(world.path("me-cert.pub"));
    python.stdin(Stdio::null());
    assert_eq!(run(python), "4000000 7\n");
    assert_eq!(run(world.ssh(&["host", "echo next"])), "next\n");
    assert!(!world.log().contains("panicked"), "{}", world.log());
}
