//! Runs the tasks of this repository: ci, test and bench.

fn main() {}
