//! Small static programs that run inside the guest, each one file of `tests/guest`, built with rustc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Context;

use crate::image::run;

/// Builds all programs once a test program and gives their paths.
pub fn all() -> anyhow::Result<Vec<PathBuf>> {
    static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let names = std::fs::read_dir(&sources)
        .with_context(|| format!("no {}", sources.display()))?
        .map(|entry| Ok(PathBuf::from(entry?.file_name())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let output = match BUILT.get() {
        Some(built) => built,
        None => {
            let directory = tempfile::tempdir()?;
            for name in &names {
                build(&sources.join(name), &directory.path().join(name.with_extension("")))?;
            }
            BUILT.get_or_init(|| directory)
        }
    };
    Ok(names.iter().map(|name| output.path().join(name.with_extension(""))).collect())
}

fn build(source: &Path, program: &Path) -> anyhow::Result<()> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"]);
    rustc.args(["-Ctarget-feature=+crt-static", "-o"]).arg(program).arg(source);
    run(&mut rustc).map(drop)
}
