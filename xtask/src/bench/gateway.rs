//! What a gateway spends on forwarding: ours without an interface, others before the kernel.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::tunnel;
use crate::step;

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  gateway takes --rounds N, --seconds N, --peers 2|100|1000, --ours PATH, --peer NAME=PATH (another
  program; ginnel-NAME is another build of ours) and --alone; it needs root and iproute2";

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (mut ours, mut alone) = (None, false);
    let (mut extra, mut passed) = (Vec::new(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if *argument == "--alone" {
            alone = true;
            continue;
        }
        let value = rest.next();
        let value = value.with_context(|| format!("{argument} takes a value"))?;
        match *argument {
            "--ours" => ours = Some((*value).into()),
            "--peer" => extra.push(tunnel::other(value)?),
            "--rounds" | "--seconds" | "--peers" => passed.extend([*argument, *value]),
            _ => bail!("unexpected argument `{argument}`\n{USAGE}"),
        }
    }
    let mut programs = vec![tunnel::ours(ours)?];
    if !alone {
        // boringtun has no batches at all, and is left out for time.
        let installed = tunnel::installed().into_iter();
        programs.extend(installed.filter(|peer| peer.name == "wireguard-go"));
    }
    programs.extend(extra);
    // A network of its own, so that it touches nobody's; it ends with the bench.
    let mut command = Command::new("unshare");
    let script = "ip link set lo up && exec \"$@\"";
    command.args(["--net", "sh", "-c", script, "sh"]);
    command.arg(super::program("gateway")?).args(passed);
    for peer in &programs {
        let path = peer.program.to_str().context("a path in UTF-8")?;
        let program = format!("{}={path}", peer.name);
        command.args(["--program", &program]);
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("run the bench")?;
    ensure!(output.status.success(), "the bench failed");
    let lines = String::from_utf8(output.stdout).context("a bench prints UTF-8")?;
    step::say(&table(&lines)?);
    Ok(())
}

/// Medians over the rounds, and ratios to the first program of a case.
fn table(lines: &str) -> Result<String> {
    let mut cases: Vec<String> = Vec::new();
    let mut rows: BTreeMap<(usize, usize), Vec<[f64; 4]>> = BTreeMap::new();
    let mut programs: Vec<String> = Vec::new();
    for line in lines.lines() {
        let cells: Vec<_> = line.split('\t').collect();
        let &[peers, burst, program, ref figures @ ..] = cells.as_slice() else {
            bail!("the bench printed `{line}`");
        };
        let figures: Result<Vec<f64>, _> = figures.iter().map(|cell| cell.parse()).collect();
        let figures = figures.ok().and_then(|figures| figures.try_into().ok());
        let figures = figures.with_context(|| format!("the bench printed `{line}`"))?;
        let case = place(&mut cases, &format!("{peers} peers, runs of {burst}"));
        let program = place(&mut programs, program);
        rows.entry((case, program)).or_default().push(figures);
    }
    let mut table = String::from(
        "\n| case | program | CPU-s per GB | ratio | k packets per CPU-s | Gbit/s | lost % |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for ((case, program), figures) in &rows {
        let [cpu, packets, speed, lost] = medians(figures);
        let first = rows.get(&(*case, 0)).map_or(figures, |ours| ours);
        table += &format!(
            "| {} | {} | {cpu:.2} | {:.2} | {:.0} | {speed:.2} | {lost:.2} |\n",
            cases[*case],
            programs[*program],
            cpu / medians(first)[0],
            packets / 1e3,
        );
    }
    Ok(table)
}

fn place(known: &mut Vec<String>, name: &str) -> usize {
    if let Some(place) = known.iter().position(|one| one == name) {
        return place;
    }
    known.push(name.to_owned());
    known.len() - 1
}

fn medians(figures: &[[f64; 4]]) -> [f64; 4] {
    std::array::from_fn(|column| {
        let mut values: Vec<_> = figures.iter().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_median_of_its_rounds_and_the_ratio_to_the_first_program() {
        let lines = "2\t32\tginnel\t2\t100000\t4\t0\n2\t32\tginnel\t3\t90000\t4\t0\n\
                     2\t32\tginnel\t9\t80000\t4\t0\n2\t32\twireguard-go\t6\t50000\t2\t1\n";
        let table = table(lines).unwrap();
        let expected = "| 2 peers, runs of 32 | ginnel | 3.00 | 1.00 | 90 | 4.00 | 0.00 |\n\
                        | 2 peers, runs of 32 | wireguard-go | 6.00 | 2.00 | 50 | 2.00 | 1.00 |\n";
        assert!(table.ends_with(expected), "{table}");
    }
}
