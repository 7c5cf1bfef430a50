//! What a person or a script sees: results on stdout, one error on stderr.
//!
//! Names and texts come from other people and machines. A letter that would do something to a
//! terminal, or to whoever reads it, is printed as an escape, whatever prints it.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use model::name::is_deceptive;
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use zeroize::Zeroizing;

use crate::remedy;

/// Prints one line of the result, or several.
pub(crate) fn line(text: impl std::fmt::Display) -> io::Result<()> {
    raw_line(&plain_lines(&written(text)))
}

fn raw_line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Writes a text, which may be a token or a key, into memory that is zeroed.
fn written(text: impl std::fmt::Display) -> Zeroizing<String> {
    let mut written = Zeroizing::new(String::new());
    write!(written, "{text}").expect("a string takes everything");
    written
}

/// Prints lines in white on black, if stdout is a terminal (ECMA-48: SGR), whatever colours it has.
pub(crate) fn dark(lines: &str) -> io::Result<()> {
    let (begin, end) = if io::stdout().is_terminal() {
        ("\x1b[97;40m", "\x1b[0m")
    } else {
        ("", "")
    };
    lines
        .lines()
        .try_for_each(|text| raw_line(&Zeroizing::new(format!("{begin}{}{end}", *plain(text)))))
}

/// Clears the terminal, if stdout is one (ECMA-48: CUP, ED).
pub(crate) fn clear() -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if stdout.is_terminal() {
        stdout.write_all(b"\x1b[H\x1b[2J")?;
    }
    Ok(())
}

/// Prints one JSON value and a line end.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    json_text(&Zeroizing::new(serde_json::to_string(value)?))
}

/// Prints a value that is JSON already, and a line end.
pub(crate) fn json_text(text: &str) -> io::Result<()> {
    raw_line(&plain_json(text))
}

/// Prints one line for the person at the terminal that is not part of the result, or several.
pub(crate) fn note(text: impl std::fmt::Display) {
    raw_note(&plain_lines(&written(text)));
}

fn raw_note(text: &str) {
    // Nobody reads a closed stderr, so there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Says why the arguments are not understood, or what `--help` asks for, and returns the exit code
/// that belongs to it.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // An argument is quoted, and a script may have it from somebody else. The end of a line in it
    // is none of the text.
    let mut text = error.to_string();
    let mut is_hostile = false;
    for word in std::env::args_os().skip(1) {
        let word = word.to_string_lossy();
        let value = word.split_once('=').map_or("", |(_, value)| value);
        for part in [&*word, value] {
            if part.contains(is_deceptive) {
                is_hostile = true;
                text = text.replace(part, &plain(part));
            }
        }
    }
    if is_hostile || text.lines().any(|line| line.contains(is_deceptive)) {
        note(text.trim_end());
    } else {
        // With the colours of the terminal. Nobody reads a closed one.
        drop(error.print());
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Prints `error` and what to do about it, and returns the exit code that belongs to it.
pub(crate) fn report(error: &anyhow::Error, as_json: bool) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader, such as `head`, has all that it wanted.
        return ExitCode::SUCCESS;
    }
    let remedy = remedy::remedy_of(error);
    if as_json {
        let value = serde_json::json!({ "error": format!("{error:#}"), "remedy": remedy });
        raw_note(&plain_json(&value.to_string()));
    } else {
        // It may quote what others said, and is one line.
        note(format_args!("ginnel: {}", *plain(&format!("{error:#}"))));
        if let Some(remedy) = remedy {
            note(format_args!("  {remedy}"));
        }
    }
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One column of a table: its title and how to write one item in it.
pub(crate) type Column<T> = (&'static str, fn(&T) -> String);

/// Prints a list: a table for people, or a JSON array.
pub(crate) fn list<T: Serialize>(
    items: &[T],
    columns: &[Column<T>],
    as_json: bool,
) -> io::Result<()> {
    if as_json {
        return json(&items);
    }
    let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
    let cells = |item| columns.iter().map(|(_, cell)| cell(item)).collect();
    table(&titles, items.iter().map(cells).collect())
}

/// Prints rows of cells below their titles.
pub(crate) fn table(titles: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let mut all = vec![titles.iter().map(|title| (*title).to_owned()).collect()];
    let cells = |row: Vec<String>| -> Vec<String> {
        row.iter().map(|cell| plain(cell).to_string()).collect()
    };
    all.extend(rows.into_iter().map(cells));
    all.iter()
        .try_for_each(|row| line(padded(row, &widths(&all))))
}

/// Prints one item: a field a line for people, or a JSON object.
pub(crate) fn show<T: Serialize>(item: &T, columns: &[Column<T>], as_json: bool) -> io::Result<()> {
    if as_json {
        return json(item);
    }
    let widest = columns.iter().map(|(title, _)| title.len()).max();
    let width = widest.unwrap_or_default();
    columns.iter().try_for_each(|(title, cell)| {
        line(format_args!(
            "{:width$}  {}",
            title.to_lowercase(),
            *plain(&cell(item))
        ))
    })
}

/// Says that a change is done; nothing but `{}` in JSON.
pub(crate) fn done(text: impl std::fmt::Display, as_json: bool) -> io::Result<()> {
    if as_json {
        return json(&serde_json::json!({}));
    }
    line(text)
}

/// Writes a text with escapes for the letters that would do something to a terminal or its reader.
pub(crate) fn plain(text: &str) -> Zeroizing<String> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    for letter in text.chars() {
        if is_deceptive(letter) {
            plain.extend(letter.escape_default());
        } else {
            plain.push(letter);
        }
    }
    plain
}

/// Does the same and leaves the ends of lines, also those of a terminal in raw mode.
fn plain_lines(text: &str) -> Zeroizing<String> {
    let mut lines = Zeroizing::new(String::with_capacity(text.len()));
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            lines.push('\n');
        }
        let (line, end) = match line.strip_suffix('\r') {
            Some(line) => (line, "\r"),
            None => (line, ""),
        };
        lines.push_str(&plain(line));
        lines.push_str(end);
    }
    lines
}

/// Writes JSON with escapes of its own for the same letters (RFC 8259, 7): it stays the same value.
pub(crate) fn plain_json(text: &str) -> Zeroizing<String> {
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    for letter in text.chars() {
        // Ends of lines stand between values; inside of them they are escaped already.
        if is_deceptive(letter) && letter != '\n' {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                write!(plain, "\\u{unit:04x}").expect("a string takes everything");
            }
        } else {
            plain.push(letter);
        }
    }
    plain
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(move |row| row[column].chars().count())
            .max()
    };
    (0..columns)
        .map(|column| width(column).unwrap_or_default())
        .collect()
}

fn padded(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths);
    let text: Vec<String> = cells
        .map(|(cell, width)| format!("{cell:width$}"))
        .collect();
    text.join("  ").trim_end().to_owned()
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn interrupted() -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_do_something_to_a_terminal_is_shown_instead() {
        for (text, shown) in [
            ("plain “é” 漢 😀", "plain “é” 漢 😀"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}gnp.exe\u{2066}", "\\u{202e}gnp.exe\\u{2066}"),
            ("$(id) -rf \\ '\"", "$(id) -rf \\ '\""),
        ] {
            assert_eq!(*plain(text), shown);
        }
        let lines = plain_lines("one\r\ntwo\r\u{1b}[2J\rthree\r");
        assert_eq!(*lines, "one\r\ntwo\\r\\u{1b}[2J\\rthree\r");
    }

    #[test]
    fn json_has_no_such_letter_and_is_the_same_value() {
        let all = ('\0'..='\u{3000}').chain(['\u{feff}', '😀']);
        let value = serde_json::json!({ "a": all.collect::<String>(), "\u{202e}": ["\n", 1] });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = plain_json(&text);
            assert!(!shown.contains(|letter| is_deceptive(letter) && letter != '\n'));
            let read: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(read, value);
        }
    }
}
