//! A private network that a team runs itself, in one binary.

fn main() {}
