//! Runs the tasks of this repository: `cargo xtask help` lists them.

mod bench;
mod deny;
mod fuzz;
mod install;
mod postgres;
mod reproducible;
mod ring;
mod step;

use std::{env, path::Path, process::ExitCode};

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask TASK

  test [RING...] [--no-install]   install what the tests need (apt-get, when root), run the rings
  ci                              all rings where nothing may be skipped, then `deny`
  bench [NAME...]                 measure against a baseline, print a table of ratios
  deny [--install]                licences, banned crates and sources of every dependency
  fuzz [TARGET...] [--seconds N]  coverage-guided fuzzing; needs nightly and cargo-fuzz
  reproducible                    build the release binary in two places and compare
  help                            this text
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            step::note(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let Some((task, rest)) = arguments.split_first() else {
        step::say(&help());
        return Ok(());
    };
    let mut rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match task.as_str() {
        "test" => {
            let install = !take(&mut rest, "--no-install");
            ring::test(&rest, install)
        }
        "ci" => {
            none(&rest)?;
            ring::ci()
        }
        "bench" => bench::run(&rest),
        // The two ends of a bench's ping-pong, which runs in namespaces.
        "bench-echo" => bench::tunnel::echo(rest.first().unwrap_or(&"")),
        "bench-ping" => {
            bench::tunnel::ping(rest.first().unwrap_or(&""), rest.get(1).unwrap_or(&"1"))
        }
        "deny" => {
            let install = take(&mut rest, "--install");
            none(&rest)?;
            deny::run(install)
        }
        "fuzz" => fuzz::run(&rest),
        "reproducible" => {
            none(&rest)?;
            reproducible::run()
        }
        "help" | "--help" | "-h" => {
            step::say(&help());
            Ok(())
        }
        _ => bail!("`{task}` is not a task\n\n{}", help()),
    }
}

fn help() -> String {
    format!(
        "{HELP}\nRings of `test`, in their order:\n{}\nBenches:\n{}",
        ring::help(),
        bench::help()
    )
}

/// Removes `flag` from the arguments and tells whether it was there.
fn take(arguments: &mut Vec<&str>, flag: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| *argument != flag);
    arguments.len() < before
}

fn none(arguments: &[&str]) -> Result<()> {
    match arguments {
        [] => Ok(()),
        [first, ..] => bail!("unexpected argument `{first}`"),
    }
}

/// Returns the directory of the workspace.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
