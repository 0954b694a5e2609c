//! Builds the agent as a static program, whatever is being built around it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("agent_image lies in the workspace")?;
    for input in
        ["agent/Cargo.toml", "agent/src", "agent_protocol/Cargo.toml", "agent_protocol/src", "Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let agent = build(workspace, &out.join("target"))?;
    std::fs::copy(&agent, out.join("agent"))?;
    Ok(())
}

/// A cargo of its own with a target directory of its own: the outer one holds the lock of the outer one's.
/// `--target` keeps the flags away from build scripts and macros.
fn build(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace);
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--package",
        "agent",
        "--profile",
        "agent",
        "--target",
        TARGET,
    ]);
    cargo.arg("--target-dir").arg(target_dir);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    // What the outer cargo set for this script must not reach the inner one.
    for variable in
        ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the build of the agent ended with {status}").into());
    }
    Ok(target_dir.join(TARGET).join("agent/agent"))
}
