//! Runs one command after another and says what each did and how long it took.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// The steps that ran, for the summary.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: String,
    duration: Duration,
    passed: bool,
    results: Vec<String>,
}

impl Steps {
    /// Runs `command` with its output shown, and remembers its test results.
    ///
    /// A step that fails does not keep the next from running: one run shows every fault.
    pub(crate) fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        note(&format!("\n== {name}: {}", text(&command)));
        let start = now();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start `{}`", text(&command)))?;
        let output = child.stdout.take().expect("standard output is piped");
        let mut results = Vec::new();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("read the output of a step")?;
            let line = String::from_utf8_lossy(&line);
            say(&format!("{line}\n"));
            if line.starts_with("test result:") {
                results.push(line.into_owned());
            }
        }
        let passed = child.wait().context("wait for a step")?.success();
        let duration = now() - start;
        note(&format!("== {name}: {}, {duration:.1?}", word(passed)));
        self.done.push(Step {
            name: name.to_owned(),
            duration,
            passed,
            results,
        });
        Ok(())
    }

    /// Prints every step with its duration and cargo's own result lines; fails if a step did.
    pub(crate) fn finish(self) -> Result<()> {
        let mut summary = String::from("\n");
        let (mut passed, mut failed) = (0, 0);
        for step in &self.done {
            let Step { name, duration, .. } = step;
            summary += &format!("{:<8}{name:<12}{duration:.1?}\n", word(step.passed));
        }
        summary += "\n";
        for result in self.done.iter().flat_map(|step| &step.results) {
            passed += count(result, " passed");
            failed += count(result, " failed");
            if count(result, " passed") + count(result, " failed") > 0 {
                summary += &format!("{result}\n");
            }
        }
        let total: Duration = self.done.iter().map(|step| step.duration).sum();
        summary += &format!("\nin {total:.0?}\n{passed} passed, {failed} failed\n");
        say(&summary);
        let faults: Vec<_> = self.done.iter().filter(|step| !step.passed).collect();
        let names: Vec<_> = faults.iter().map(|step| step.name.as_str()).collect();
        ensure!(faults.is_empty(), "failed: {}", names.join(", "));
        Ok(())
    }
}

/// Runs `command` and fails with its text if it does.
pub(crate) fn must(mut command: Command) -> Result<()> {
    let text = text(&command);
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("start `{text}`"))?;
    ensure!(status.success(), "`{text}` failed");
    Ok(())
}

/// Makes a cargo command that runs in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(crate::root());
    command
}

/// Writes to standard output; a reader that went away is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    drop(
        output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush()),
    );
}

/// Writes a line to standard error.
pub(crate) fn note(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

#[expect(
    clippy::disallowed_methods,
    reason = "a task runner measures its own steps"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn text(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    command.get_args().fold(program, |text, argument| {
        text + " " + &argument.to_string_lossy()
    })
}

fn word(passed: bool) -> &'static str {
    if passed { "ok" } else { "FAILED" }
}

/// Reads `N` from `N passed` in one of cargo's result lines.
fn count(result: &str, what: &str) -> u64 {
    let before = result
        .split(what)
        .next()
        .filter(|before| before.len() < result.len());
    let number = before.and_then(|before| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn passed_and_failed_are_read_from_a_result_line() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!((count(line, " passed"), count(line, " failed")), (12, 3));
        assert_eq!(count("test result: ok.", " passed"), 0);
    }
}
