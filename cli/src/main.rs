//! The `lighter` command.

fn main() {}
