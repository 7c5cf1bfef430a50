//! Replays the corpus of every target on stable, and writes it.

use std::{collections::BTreeSet, fs, panic, path::Path};

use ginnel_fuzz::{TARGETS, Target, corpus, input::Generator};

/// Makes two tests of each target, so that they run beside each other and can be chosen by name.
macro_rules! targets {
    ($($name:ident)+) => {
        const NAMES: &[&str] = &[$(stringify!($name),)+];
        $(mod $name {
            #[test]
            fn keeps_its_promises_on_the_corpus() {
                super::corpus_of(stringify!($name));
            }

            #[test]
            fn keeps_its_promises_on_a_mutated_corpus() {
                super::mutations_of(stringify!($name));
            }
        })+
    };
}

targets! {
    api_bodies
    model_config
    model_map
    model_text
    model_token
    netstack_connection
    netstack_foreign
    netstack_packets
    netstack_pair
    node_resolver
    packet_filter
    packet_icmp
    packet_ip
    packet_offload
    packet_options
    packet_tcp
    packet_translate
    packet_udp
    replay_files
    socks_messages
    ssh_acceptance
    ssh_agent
    ssh_bytes
    ssh_logins
    uapi_requests
    wireguard_device
    wireguard_messages
}

fn corpus_of(name: &str) {
    let directory = root().join("corpus").join(name);
    if std::env::var("FUZZ_CORPUS").as_deref() == Ok("write") {
        write(name, &directory);
    }
    let entries = fs::read_dir(directory).expect("every target has a corpus");
    let mut inputs = 0;
    for entry in entries {
        let path = entry.expect("the corpus is readable").path();
        let data = fs::read(&path).expect("the corpus is readable");
        run(&path.display().to_string(), target(name), &data);
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is there");
}

/// A little of what the fuzzer does, on stable: the corpus with bytes changed, cut and joined.
fn mutations_of(name: &str) {
    let runs = std::env::var("FUZZ_RUNS")
        .ok()
        .and_then(|runs| runs.parse().ok());
    let inputs = corpus::inputs(name);
    for seed in 0..runs.unwrap_or(RUNS) {
        let mut generator = Generator(seed);
        let mut data = inputs[generator.below(inputs.len())].clone();
        for _ in 0..=generator.below(4) {
            mutate(&mut generator, &mut data);
        }
        run(
            &format!("{name}, seed {seed}: {data:02x?}"),
            target(name),
            &data,
        );
    }
}

/// Mutated inputs of each target, unless `FUZZ_RUNS` says otherwise.
const RUNS: u64 = 300;

fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(other, _)| *other == name);
    found.expect("`targets!` names what `TARGETS` has").1
}

#[test]
fn every_target_has_its_binary_and_its_corpus() {
    let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let entries = fs::read_dir(root().join("fuzz_targets")).expect("the targets are readable");
    let binaries: BTreeSet<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    assert_eq!(binaries, names);
    assert_eq!(
        NAMES
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>(),
        names
    );
    assert!(
        TARGETS
            .iter()
            .all(|(name, _)| corpus::inputs(name).len() <= 24)
    );
}

/// Runs one input; a panic is preceded by what ran.
fn run(what: &str, target: Target, data: &[u8]) {
    let outcome = panic::catch_unwind(|| target(data));
    assert!(outcome.is_ok(), "{what}");
}

fn mutate(generator: &mut Generator, data: &mut Vec<u8>) {
    if data.is_empty() {
        data.extend(generator.bytes(8));
    }
    let place = generator.below(data.len());
    match generator.below(5) {
        0 => data[place] = generator.next().to_be_bytes()[0],
        1 => data[place] ^= 1 << generator.below(8),
        2 => data.truncate(place),
        3 => {
            let length = generator.below(32);
            let more = generator.bytes(length);
            data.splice(place..place, more);
        }
        _ => drop(data.remove(place)),
    }
}

/// Writes what the generator makes; other files stay.
fn write(name: &str, directory: &Path) {
    fs::create_dir_all(directory).expect("the corpus is writable");
    for (nth, input) in corpus::inputs(name).iter().enumerate() {
        fs::write(directory.join(format!("generated-{nth:02}")), input)
            .expect("the corpus is writable");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
