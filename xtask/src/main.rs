//! Developer commands: `cargo xtask demo|test|kernel|check|bench`.

fn main() {}
