//! What handshakes and many peers cost: the state machine alone, then programs with their UAPI.
//!
//! Prints lines `PROGRAM TAB CASE TAB VALUE TAB UNIT`; `--program NAME=PATH` adds a program,
//! `--core` leaves the state machine to be measured alone.

mod active;
mod machine;
mod peers;
mod program;
mod usage;

use std::io::Write as _;

fn main() {
    let mut programs = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--program" {
            let text = arguments.next().expect("--program takes NAME=PATH");
            let (name, path) = text.split_once('=').expect("--program takes NAME=PATH");
            programs.push((name.to_owned(), path.to_owned()));
        }
    }
    machine::measure();
    for (name, path) in &programs {
        program::measure(name, path);
    }
}

/// Prints one line of the table.
fn print(program: &str, case: &str, value: f64, unit: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{program}\t{case}\t{value:.3}\t{unit}").expect("somebody reads");
}
