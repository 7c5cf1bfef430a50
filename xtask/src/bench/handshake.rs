//! What handshakes and many peers cost, in `ginnel tun` and in other userspace tunnels.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::tunnel::{self, Peer};
use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  handshake takes --core (the state machine alone, without root), --peer NAME=PATH, --ours PATH and
  --alone; it needs root and wireguard-tools";

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let programs = parse(arguments)?;
    let bench = super::program("handshake")?;
    // A network of its own, so that it touches nobody's; it ends with the bench.
    let script = "ip link set lo up && exec \"$@\"";
    let mut command = if programs.is_empty() {
        Command::new(&bench)
    } else {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh", &bench]);
        command
    };
    for peer in &programs {
        let path = peer.program.to_str().context("a path in UTF-8")?;
        command
            .arg("--program")
            .arg(format!("{}={path}", peer.name));
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("run the bench")?;
    ensure!(output.status.success(), "the bench failed");
    let lines = String::from_utf8(output.stdout).context("a bench prints UTF-8")?;
    step::say(&table(&lines)?);
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Vec<Peer>> {
    let (mut ours, mut alone, mut extra) = (None, false, Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .with_context(|| format!("{argument} takes a value"))
        };
        match *argument {
            "--core" => return Ok(Vec::new()),
            "--alone" => alone = true,
            "--ours" => ours = Some((*value()?).into()),
            "--peer" => extra.push(tunnel::other(value()?)?),
            _ => bail!("unexpected argument `{argument}`\n{USAGE}"),
        }
    }
    let mut programs = vec![tunnel::ours(ours)?];
    if !alone {
        programs.extend(tunnel::installed());
        programs.extend(extra);
    }
    Ok(programs)
}

fn table(lines: &str) -> Result<String> {
    let mut table = String::from("\n| program | case | value |\n|---|---|---|\n");
    for line in lines.lines() {
        let cells: Vec<_> = line.split('\t').collect();
        let &[program, case, value, unit] = cells.as_slice() else {
            bail!("the bench printed `{line}`");
        };
        table += &format!("| {program} | {case} | {value} {unit} |\n");
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_bench_becomes_a_row() {
        let table = table("core\tCPU\t1.5\tµs\n").unwrap();
        assert!(table.ends_with("| core | CPU | 1.5 µs |\n"), "{table}");
    }
}
