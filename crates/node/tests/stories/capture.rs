//! Stories of captures: tshark opens what nodes wrote in virtual time.
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use model::config::Config;
use node::capture::{Settings, buffer};
use packet::pcap_filter::Filter;

use crate::{
    reach::ping,
    world::{GATEWAY, Installation, World, endpoint, ip, netstack, prefix, public_key, secret},
};

fn start(world: &mut World, host: u8, keys: bool) {
    start_with(world, host, (true, keys), (keys, None));
}

fn start_with(
    world: &mut World,
    host: u8,
    (inner, outer): (bool, bool),
    (keys, filter): (bool, Option<&str>),
) {
    let settings = Settings {
        application: "stories".to_owned(),
        inner,
        outer,
        filter: filter.map(|text| Filter::parse(text).expect("it is well formed")),
        keys,
        port: 51_820,
        packets_max: None,
        bytes_max: None,
    };
    let (now, wall) = (
        world.now,
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    );
    assert!(world.node(host).start_capture(now, wall, settings));
}

/// Ends the capture of a host and returns the file.
fn end(world: &mut World, host: u8) -> Vec<u8> {
    let now = world.now;
    let mut capture = world.node(host).end_capture(now).expect("it runs");
    let mut file = buffer();
    capture.take(&mut file);
    file.to_vec()
}

/// Pipes a file through tshark; `None` where there is none.
fn tshark(file: &[u8], arguments: &[&str]) -> Option<Vec<String>> {
    let mut command = Command::new("tshark");
    // Names inside the file, and no question to a resolver.
    command.args(["-n", "-N", "n", "-r", "-"]).args(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = piped.stderr(Stdio::piped()).spawn() else {
        assert!(
            std::env::var("INTEROP").is_err(),
            "required, but no tshark runs"
        );
        eprintln!("SKIPPED: no tshark");
        return None;
    };
    let mut stdin = child.stdin.take().expect("piped");
    let file = file.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&file));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("text");
    Some(text.lines().map(str::to_owned).collect())
}

/// Sees that every datagram with data is opened by the keys in the file, and that its packets are
/// those of the inner interface.
fn check(file: &[u8], sessions_min: usize) -> Option<()> {
    let count = |filter: &str| tshark(file, &["-Y", filter]).map(|lines| lines.len());
    let sealed = count("wg.type == 4")?;
    let opened = count("wg.type == 4 && (ipv6 || wg.keepalive)")?;
    assert_eq!((opened, sealed > 0), (sealed, true));
    assert_eq!(count("wg.type == 2")?, count("wg.handshake_ok == 1")?);
    assert!(count("wg.type == 2")? >= sessions_min);
    let payloads = |interface: &str| {
        let filter = format!("frame.interface_name == \"{interface}\" && icmpv6.type >= 128");
        let fields = ["-T", "fields", "-e", "icmpv6.type", "-e", "data.data"];
        tshark(file, &[&["-Y", &filter][..], &fields[..]].concat())
    };
    let inner = payloads("inner")?;
    assert!(!inner.is_empty());
    assert_eq!(inner, payloads("outer")?);
    Some(())
}

fn plain(host: u8, peer: u8, preshared: bool) -> Config {
    let key = if preshared {
        format!("PresharedKey = {}\n", secret(99).to_base64())
    } else {
        String::new()
    };
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}\n\
         Endpoint = {}\n{key}",
        secret(host).to_base64(),
        ip(host),
        public_key(peer),
        ip(peer),
        endpoint(peer),
    );
    Config::parse(text.as_bytes()).expect("a well-formed file")
}

#[test]
fn with_keys_tshark_opens_every_session_of_either_side_over_three_rekeys() {
    for preshared in [false, true] {
        let mut world = World::new();
        for (host, peer) in [(11, 12), (12, 11)] {
            world.add(host, netstack(host));
            let now = world.now;
            world
                .node(host)
                .apply_config(now, &plain(host, peer, preshared));
            start(&mut world, host, true);
        }
        for _ in 0..50 {
            assert!(ping(&mut world, 11, 12));
            world.run(Duration::from_secs(8));
        }
        for host in [11, 12] {
            let file = end(&mut world, host);
            if check(&file, 4).is_none() {
                return;
            }
        }
    }
}

#[test]
fn a_capture_with_keys_begins_in_the_middle_and_opens_all_that_it_has() {
    let mut world = World::standing(&Installation::new(), &[11, 12, 13]);
    assert!(ping(&mut world, 11, 12));
    start(&mut world, GATEWAY, true);
    // Data goes under the older keys until the new handshakes are done, which begin no sooner than
    // REKEY_TIMEOUT after the last ones.
    world.run(Duration::from_secs(10));
    for _ in 0..30 {
        assert!(ping(&mut world, 11, 12) && ping(&mut world, 13, 11));
        world.run(Duration::from_secs(10));
    }
    let file = end(&mut world, GATEWAY);
    check(&file, 6);
}

/// Puts the keys of one file behind the header of another.
fn with_keys_of(keys: &[u8], file: &[u8]) -> Vec<u8> {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes[at..].first_chunk().expect("a block goes on");
        u32::from_le_bytes(*word)
    };
    let length = |bytes: &[u8]| usize::try_from(word(bytes, 4)).expect("it fits");
    let (header, rest) = file.split_at(length(file));
    let mut joined = header.to_vec();
    let mut blocks = keys;
    while !blocks.is_empty() {
        let (block, after) = blocks.split_at(length(blocks));
        // A decryption secrets block.
        if word(block, 0) == 10 {
            joined.extend_from_slice(block);
        }
        blocks = after;
    }
    joined.extend_from_slice(rest);
    joined
}

#[test]
fn with_a_filter_the_keys_of_other_peers_never_leave() {
    let mut world = World::standing(&Installation::new(), &[11, 12]);
    let filter = format!("host {}", endpoint(11).ip());
    start_with(&mut world, GATEWAY, (false, true), (true, Some(&filter)));
    for host in [11, 12] {
        start_with(&mut world, host, (false, true), (false, None));
    }
    // Over two rekeys, begun by either side.
    for _ in 0..40 {
        assert!(ping(&mut world, 11, 12) && ping(&mut world, 12, 11));
        world.run(Duration::from_secs(10));
    }
    let keys = end(&mut world, GATEWAY);
    let files = [11, 12].map(|host| end(&mut world, host));
    let [of_captured, of_other] = files.map(|file| with_keys_of(&keys, &file));
    let Some(opened) = tshark(
        &of_other,
        &["-Y", "wg.handshake_ok == 1 || wg.type == 4 && ipv6"],
    ) else {
        return;
    };
    assert_eq!(opened.len(), 0, "{opened:?}");
    let count = |file: &[u8], filter: &str| {
        let lines = tshark(file, &["-Y", filter]);
        lines.expect("it ran before").len()
    };
    assert!(count(&of_other, "wg.type == 4") > 80);
    assert!(count(&of_captured, "wg.type == 4 && ipv6") > 80);
    assert!(count(&keys, "wg.type == 4") > 80);
    assert_eq!(
        count(&keys, "wg.type == 4"),
        count(&keys, "wg.type == 4 && (ipv6 || wg.keepalive)")
    );
    assert!(count(&keys, "wg.type == 2") >= 3);
}

#[test]
fn without_keys_the_file_has_the_packets_their_verdicts_and_no_key() {
    let mut installation = Installation::new();
    installation.org(1).rules = Some(std::collections::BTreeMap::new());
    let mut world = World::standing(&installation, &[11, 12]);
    start(&mut world, GATEWAY, false);
    assert!(!ping(&mut world, 11, 12), "no rule allows it");
    let now = world.now;
    let nobody = std::net::IpAddr::V6(prefix(1).resolver());
    world.stack(11).ping(now, nobody, 1, 32).expect("room");
    world.run(Duration::from_secs(2));
    let file = end(&mut world, GATEWAY);
    for host in [11, 12, GATEWAY] {
        let raw = [host; 32];
        let text = secret(host).to_base64();
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        for form in [&raw[..], text.as_bytes(), hex.as_bytes()] {
            assert!(!file.windows(form.len()).any(|part| part == form));
        }
    }
    let fields = ["-T", "fields", "-e", "frame.comment"];
    let refused = [
        &["-Y", "icmpv6.type == 128 && frame.comment"][..],
        &fields[..],
    ]
    .concat();
    let Some(comments) = tshark(&file, &refused) else {
        return;
    };
    assert_eq!(comments, ["discarded: node.policy"]);
}

#[test]
fn tshark_shows_the_names_of_nodes_also_of_those_that_came_meanwhile() {
    let mut installation = Installation::new();
    let (id, newcomer) = installation
        .org(1)
        .nodes
        .pop_last()
        .expect("the web server");
    let mut world = World::standing(&installation, &[11, 12, 21, 22]);
    start(&mut world, GATEWAY, false);
    start(&mut world, 11, false);
    assert!(ping(&mut world, 11, 12) && ping(&mut world, 21, 22));
    // Once ahead of the map and then in it: a name stands in the file once.
    let now = world.now;
    let inserted = world
        .node(GATEWAY)
        .insert_node(now, model::id::OrgId(1), id, &newcomer);
    assert!(inserted);
    installation.org(1).nodes.insert(id, newcomer);
    world.publish(&installation);
    world.add(13, netstack(13));
    world.publish(&installation);
    world.run(Duration::from_secs(6));
    assert!(ping(&mut world, 11, 13));
    let renamed = installation.org(1).nodes.get_mut(&model::id::NodeId(12));
    renamed.expect("it is there").name = crate::world::label("store");
    world.publish(&installation);
    assert!(ping(&mut world, 11, 12));
    let files = [GATEWAY, 11].map(|host| end(&mut world, host));
    let requests = ["-Y", "icmpv6.type == 128", "-T", "fields"];
    let hosts = ["-e", "ipv6.src_host", "-e", "ipv6.dst_host"];
    let arguments = [&requests[..], &hosts[..]].concat();
    let expected = [
        ("acme", "laptop", "db"),
        ("umbrella", "laptop", "db"),
        ("acme", "laptop", "web"),
        ("acme", "laptop", "store"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(org, from, to)| format!("{from}.{org}.internal\t{to}.{org}.internal"))
        .collect();
    let of_org = expected.iter().filter(|line| line.contains("acme"));
    for (file, expected) in files
        .iter()
        .zip([expected.clone(), of_org.cloned().collect()])
    {
        // What a client knows is its own organisation.
        let own = file.windows(8).any(|part| part == b"umbrella");
        assert_eq!(own, expected.len() == 4);
        let Some(mut lines) = tshark(file, &arguments) else {
            return;
        };
        // The resolver, which probes go to, has no name.
        lines.retain(|line| line.matches(".internal").count() == 2);
        lines.dedup();
        assert_eq!(lines, expected);
    }
}
