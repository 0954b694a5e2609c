//! A disk whose `/init` says that it runs and waits: the same PID 1 for every contender.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::step;

/// What `/init` prints on the console.
pub const MARK: &str = "PID 1 runs";

const SOURCE: &str = r#"
fn main() {
    println!("PID 1 runs");
    loop {
        std::thread::park();
    }
}
"#;

/// Builds the program and an EROFS image with it in `directory`; gives the image.
pub fn disk(directory: &Path) -> anyhow::Result<PathBuf> {
    let source = directory.join("init.rs");
    let tree = directory.join("tree");
    for name in ["dev", "proc", "sys"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    std::fs::write(&source, SOURCE).context("cannot write the source of init")?;
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition=2024",
        "-Copt-level=2",
        "-Cpanic=abort",
        "-Cstrip=symbols",
        "-Ctarget-feature=+crt-static",
    ]);
    step::run_quietly(rustc.arg("-o").arg(tree.join("init")).arg(&source))?;
    let disk = directory.join("init.erofs");
    step::run_quietly(Command::new("mkfs.erofs").arg("-x-1").arg(&disk).arg(&tree))?;
    Ok(disk)
}
