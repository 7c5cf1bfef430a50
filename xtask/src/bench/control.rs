//! What a change costs a control plane, by how many nodes there are and where its rows lie.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::tunnel;
use crate::{postgres::Cluster, step};

/// What the help says about arguments.
pub(crate) const USAGE: &str = "\
  control takes --nodes N (again for each size; 100, 1000 and 10000 if absent), --store
  sqlite|postgres and --ours PATH; it needs PostgreSQL, and twice as many descriptors as nodes";

const NODES: [&str; 3] = ["100", "1000", "10000"];
const STORES: [&str; 2] = ["sqlite", "postgres"];

/// Runs the bench and prints its table.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let (mut ours, mut nodes, mut stores) = (None, Vec::new(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = *rest
            .next()
            .with_context(|| format!("{argument} takes a value"))?;
        match *argument {
            "--ours" => ours = Some(PathBuf::from(value)),
            "--nodes" => nodes.push(value),
            "--store" if STORES.contains(&value) => stores.push(value),
            _ => bail!("unexpected argument `{argument} {value}`\n{USAGE}"),
        }
    }
    if nodes.is_empty() {
        nodes.extend(NODES);
    }
    if stores.is_empty() {
        stores.extend(STORES);
    }
    let program = tunnel::ours(ours)?.program;
    let bench = super::program("control")?;
    let mut results = Vec::new();
    for store in stores {
        for nodes in &nodes {
            let mut command = Command::new(&bench);
            command.arg("--program").arg(&program);
            command.args(["--nodes", nodes]);
            let cluster = match store {
                "postgres" => Cluster::start()?,
                _ => None,
            };
            match &cluster {
                Some(cluster) => {
                    command.args(["--database", &cluster.url()]);
                }
                None => ensure!(store != "postgres", "PostgreSQL is not installed"),
            }
            step::note(&format!("== {nodes} nodes, {store}"));
            command.stdin(Stdio::null()).stderr(Stdio::inherit());
            let output = command.output().context("run the bench")?;
            ensure!(output.status.success(), "the bench failed");
            let lines = String::from_utf8(output.stdout).context("a bench prints UTF-8")?;
            results.push((format!("{nodes} nodes, {store}"), lines));
        }
    }
    step::say(&table(&results)?);
    Ok(())
}

/// A column for each run, a row for each figure.
fn table(results: &[(String, String)]) -> Result<String> {
    let (mut head, mut rule) = ("\n| |".to_owned(), "|---|".to_owned());
    let mut rows: Vec<(&str, String)> = Vec::new();
    for (name, lines) in results {
        head += &format!(" {name} |");
        rule += "---|";
        for (place, line) in lines.lines().enumerate() {
            let (figure, value) = line
                .split_once('\t')
                .with_context(|| format!("the bench printed `{line}`"))?;
            let value: f64 = value.parse().with_context(|| format!("parse `{line}`"))?;
            let digits = usize::from(value < 100.0);
            let cell = format!(" {value:.digits$} |");
            match rows.get_mut(place) {
                Some((known, cells)) if *known == figure => cells.push_str(&cell),
                Some(_) => bail!("the bench printed `{line}` out of order"),
                None => rows.push((figure, cell)),
            }
        }
    }
    let rows = rows
        .iter()
        .map(|(figure, cells)| format!("| {figure} |{cells}\n"));
    Ok(format!("{head}\n{rule}\n{}", rows.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_is_a_column_and_each_figure_a_row() {
        let run = |name: &str, lines: &str| (name.to_owned(), lines.to_owned());
        let results = [run("a", "x\t1.5\ny\t200\n"), run("b", "x\t2\ny\t300\n")];
        let expected = "\n| | a | b |\n|---|---|---|\n| x | 1.5 | 2.0 |\n| y | 200 | 300 |\n";
        assert_eq!(table(&results).unwrap(), expected);
        let results = [run("a", "x\t1\n"), run("b", "y\t1\n")];
        assert!(table(&results).is_err());
    }
}
