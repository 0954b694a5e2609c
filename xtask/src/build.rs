//! Builds the products with cargo and says where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::step;

/// Root of the repository.
pub fn repository() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// Cargo, as the one that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

/// Builds the release `lighter` and gives its path.
pub fn lighter() -> anyhow::Result<PathBuf> {
    step::step("building lighter (release)", || {
        step::run(cargo().args(["build", "--release", "--quiet", "--locked", "--package", "lighter"]))?;
        let path = target_dir()?.join("release/lighter");
        path.canonicalize().with_context(|| format!("cargo built no {}", path.display()))
    })
}

/// The VMM with an API that `lighter` carries.
pub fn vmm(lighter: &Path) -> anyhow::Result<PathBuf> {
    carried(lighter, "vmm")
}

/// The jailer of that VMM that `lighter` carries.
pub fn jailer(lighter: &Path) -> anyhow::Result<PathBuf> {
    carried(lighter, "jailer")
}

/// The VMM of containers that `lighter` carries.
pub fn machine(lighter: &Path) -> anyhow::Result<PathBuf> {
    carried(lighter, "machine")
}

fn carried(lighter: &Path, program: &str) -> anyhow::Result<PathBuf> {
    let versions = step::run_quietly(Command::new(lighter).args(["version", "--format", "json"]))?;
    let versions: serde_json::Value = serde_json::from_str(&versions)?;
    versions[program].as_str().map(PathBuf::from).context("lighter names no such program")
}

fn target_dir() -> anyhow::Result<PathBuf> {
    let metadata =
        step::run_quietly(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target directory")
}
