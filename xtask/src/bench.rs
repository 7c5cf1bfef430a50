//! Benches: each measures ours and a baseline in one run and prints their ratio.

mod capture;
mod control;
mod gateway;
mod handshake;
mod site;
mod ssh;
mod tcp;
pub(crate) mod tunnel;
mod user;

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::step;

/// A bench target of `xtask/benches`, which prints lines `CASE TAB OURS TAB BASELINE` in ns.
struct Bench {
    name: &'static str,
    measures: &'static str,
}

/// A bench with arguments and a table of its own.
struct World {
    name: &'static str,
    measures: &'static str,
    usage: &'static str,
    run: fn(&[&str]) -> Result<()>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "aead",
        measures: "`wireguard` sealing and opening a packet, against the AEAD alone",
    },
    Bench {
        name: "tap",
        measures: "`node` sealing and opening a packet while a capture runs, against none",
    },
];

const WORLDS: &[World] = &[
    World {
        name: "tunnel",
        measures: "`ginnel tun` between two namespaces, against other userspace tunnels",
        usage: tunnel::USAGE,
        run: tunnel::run,
    },
    World {
        name: "capture",
        measures: "a node in user mode and `ginnel tun` while `ginnel capture` runs, against none",
        usage: capture::USAGE,
        run: capture::run,
    },
    World {
        name: "control",
        measures: "what a change costs the control plane, by how many nodes there are",
        usage: control::USAGE,
        run: control::run,
    },
    World {
        name: "site",
        measures: "devices of two offices through a hub, beside wireguard-go and the kernel",
        usage: site::USAGE,
        run: site::run,
    },
    World {
        name: "ssh",
        measures: "bytes over SSH and the time of a login, beside OpenSSH",
        usage: ssh::USAGE,
        run: ssh::run,
    },
    World {
        name: "tcp",
        measures: "`netstack` beside the kernel's TCP over a seeded relay",
        usage: tcp::USAGE,
        run: tcp::run,
    },
    World {
        name: "user",
        measures: "user mode through its tunnel, against the kernel's TCP through `ginnel tun`",
        usage: user::USAGE,
        run: user::run,
    },
    World {
        name: "handshake",
        measures: "what handshakes and many peers cost, in `ginnel tun` and in other userspace \
                   tunnels",
        usage: handshake::USAGE,
        run: handshake::run,
    },
    World {
        name: "gateway",
        measures: "what forwarding between peers costs a gateway, against wireguard-go and the \
                   kernel's forwarding",
        usage: gateway::USAGE,
        run: gateway::run,
    },
];

/// Runs one bench with its arguments, or the named ones that take none, or all of those.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    if let Some((first, arguments)) = names.split_first()
        && let Some(world) = WORLDS.iter().find(|world| world.name == *first)
    {
        return (world.run)(arguments);
    }
    for name in names {
        let known = BENCHES.iter().any(|bench| bench.name == *name);
        ensure!(
            known,
            "`{name}` is not a bench; the benches are\n{}",
            help()
        );
    }
    for bench in BENCHES {
        if names.is_empty() || names.contains(&bench.name) {
            step::say(&table(bench, &output(bench)?)?);
        }
    }
    Ok(())
}

/// Returns one line for each bench, and what the arguments of each are.
pub(crate) fn help() -> String {
    let line = |name: &str, measures: &str| format!("  {name:<10}{measures}\n");
    let benches = BENCHES.iter().map(|bench| line(bench.name, bench.measures));
    let worlds = WORLDS.iter().map(|world| line(world.name, world.measures));
    let usages = WORLDS.iter().map(|world| format!("{}\n", world.usage));
    benches.chain(worlds).chain(usages).collect()
}

fn output(bench: &Bench) -> Result<String> {
    let mut command = step::cargo(&[
        "bench",
        "--quiet",
        "--package",
        "xtask",
        "--bench",
        bench.name,
    ]);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("run bench `{}`", bench.name))?;
    ensure!(output.status.success(), "bench `{}` failed", bench.name);
    String::from_utf8(output.stdout).context("a bench prints UTF-8")
}

/// Builds a bench target and returns its program, to be run in another namespace.
pub(crate) fn program(bench: &str) -> Result<String> {
    let arguments = ["bench", "--package", "xtask", "--bench", bench, "--no-run"];
    let mut command = step::cargo(&arguments);
    command.arg("--message-format=json").stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "building the bench failed");
    let lines = String::from_utf8(output.stdout).context("cargo prints UTF-8")?;
    for line in lines.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).context("parse cargo's word")?;
        // Cargo names what else it has built, too.
        let is_bench = message
            .pointer("/target/name")
            .is_some_and(|name| name == bench);
        if let Some(program) = message["executable"].as_str().filter(|_| is_bench) {
            return Ok(program.to_owned());
        }
    }
    bail!("cargo named no program");
}

fn table(bench: &Bench, lines: &str) -> Result<String> {
    let mut table = format!("\n{}: {}\n\n", bench.name, bench.measures);
    table += "| case | ours, ns | baseline, ns | ratio |\n|---|---|---|---|\n";
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let cells: Vec<_> = line.split('\t').collect();
        let &[case, ours, baseline] = cells.as_slice() else {
            bail!("bench `{}` printed `{line}`", bench.name);
        };
        let parse = |cell: &str| {
            cell.parse::<f64>()
                .with_context(|| format!("parse `{cell}`"))
        };
        let (ours, baseline) = (parse(ours)?, parse(baseline)?);
        table += &format!(
            "| {case} | {ours:.0} | {baseline:.0} | {:.2} |\n",
            ours / baseline
        );
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_bench_becomes_a_row_with_the_ratio() {
        let table = table(&BENCHES[0], "seal 1420\t1500\t1000\n").unwrap();
        assert!(
            table.ends_with("| seal 1420 | 1500 | 1000 | 1.50 |\n"),
            "{table}"
        );
    }
}
