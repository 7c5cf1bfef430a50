//! What `ginnel capture` writes, as capinfos and tshark see it.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use crate::world::{finished, world};

#[test]
fn tshark_reads_the_packets_of_both_sides_from_a_file_for_its_owner_alone() {
    let Some(world) = world() else { return };
    let file = world.run().join("both.pcapng");
    let path = file.to_str().expect("UTF-8").to_owned();
    let line = [
        "capture",
        "--interface",
        "both",
        "--count",
        "12",
        "-w",
        &path,
    ];
    let capture = world.ginnel(line).stderr(Stdio::piped()).spawn();
    let mut capture = capture.expect("start");
    world.wait_for("the capture", |_| {
        fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    });
    // A handshake of two datagrams, then each packet on both sides.
    finished(&mut world.ginnel(["ping", "-c", "5", "-i", "0.1", "10.88.0.1"]));
    let mut errors = String::new();
    let mut stderr = capture.stderr.take().expect("piped");
    stderr.read_to_string(&mut errors).expect("text");
    assert!(capture.wait().expect("it ends").success(), "{errors}");
    let mode = fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let read = |filter: &str| {
        let mut tshark = Command::new("tshark");
        let text = finished(tshark.args(["-n", "-r", &path, "-Y", filter]));
        text.lines().count()
    };
    assert_eq!(read("frame"), 12);
    assert_eq!(read("wg.type == 1"), 1);
    assert_eq!(read("wg.type == 2"), 1);
    assert!(read("frame.interface_name == \"inner\" && icmp.type == 8") >= 2);
    assert!(read("frame.comment contains \"handshake completed with 10.99.0.2:51820\"") >= 1);
    let told = finished(Command::new("capinfos").arg(&path));
    assert!(told.contains("Number of interfaces in file: 2"), "{told}");
}
