//! How far a file has come: a line that changes on a terminal, nothing in a pipe.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use model::amount::Bytes;

/// The line is written no more often than this.
const REDRAW: Duration = Duration::from_millis(100);

/// Characters of a name; of a longer one the end is shown.
const NAME_MAX: usize = 40;

/// One file on its way.
pub(in crate::ssh) struct Progress {
    /// `None` where nobody looks.
    line: Option<Line>,
}

struct Line {
    clock: os::clock::Clock,
    name: String,
    total: u64,
    moved: u64,
    begin: Instant,
    drawn: Instant,
}

impl Progress {
    /// Begins with none of `total` bytes; a quiet one says nothing.
    pub(in crate::ssh) fn begin(name: &str, total: u64, quiet: bool) -> Self {
        if quiet || !io::stderr().is_terminal() {
            return Self { line: None };
        }
        let mut clock = os::clock::Clock::start();
        let now = clock.now();
        let line = Line {
            clock,
            name: shortened(name),
            total,
            moved: 0,
            begin: now,
            drawn: now,
        };
        Self { line: Some(line) }
    }

    /// Counts bytes that have arrived.
    pub(in crate::ssh) fn moved(&mut self, bytes: usize) {
        if let Some(line) = &mut self.line {
            line.moved = line.moved.saturating_add(bytes as u64);
            let now = line.clock.now();
            if now.saturating_duration_since(line.drawn) >= REDRAW {
                line.drawn = now;
                line.draw(now);
            }
        }
    }

    /// Leaves the last state on the terminal.
    pub(in crate::ssh) fn end(mut self) {
        if let Some(mut line) = self.line.take() {
            let now = line.clock.now();
            line.draw(now);
            // Nobody reads a closed stderr.
            drop(writeln!(io::stderr().lock()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // A file that failed: what is said about it stands on its own line.
        if self.line.is_some() {
            drop(writeln!(io::stderr().lock()));
        }
    }
}

impl Line {
    fn draw(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.begin);
        let text = describe(&self.name, self.moved, self.total, elapsed);
        let mut stderr = io::stderr().lock();
        // The rest of a longer line before is erased.
        drop(write!(stderr, "\r{text}\x1b[K"));
        drop(stderr.flush());
    }
}

fn describe(name: &str, moved: u64, total: u64, elapsed: Duration) -> String {
    let percent = moved.saturating_mul(100).checked_div(total).unwrap_or(100);
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let speed = moved.saturating_mul(1_000) / millis;
    format!(
        "{name}  {:3}%  {}  {}/s",
        percent.min(100),
        Bytes(moved),
        Bytes(speed)
    )
}

fn shortened(name: &str) -> String {
    let shown: Vec<char> = name.escape_debug().collect();
    let cut = shown.len().saturating_sub(NAME_MAX);
    shown[cut..].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_share_amount_and_speed() {
        let text = describe("a", 512 * 1024, 1024 * 1024, Duration::from_secs(2));
        assert_eq!(text, "a   50%  512.0 KiB  256.0 KiB/s");
        let text = describe("empty", 0, 0, Duration::ZERO);
        assert_eq!(text, "empty  100%  0 B  0 B/s");
    }

    #[test]
    fn a_name_cannot_write_on_the_terminal() {
        assert_eq!(shortened("a\u{1b}[2J"), "a\\u{1b}[2J");
        assert_eq!(shortened(&"x".repeat(100)).len(), NAME_MAX);
    }
}
