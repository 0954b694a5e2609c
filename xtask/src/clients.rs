//! Clients of Firecracker's API, unmodified, against lighter's VMM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{build, deps, kernel, step};

/// The client in Python that is installed, with its version.
const PYTHON_CLIENT: &str = "firecracker-python==0.0.5";
/// What `tests/clients/npx` reads Firecracker's description with.
const YAML: &str = "PyYAML==6.0.3";
/// It has ended by then, in seconds, or it hangs.
const PATIENCE: &str = "240";

/// Builds the clients and runs them.
pub fn run() -> anyhow::Result<()> {
    deps::ensure(deps::KERNEL)?;
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let target = lighter.ancestors().nth(2).context("lighter was built outside a target directory")?;
    let python = install_python(target)?;
    step::step("clients in Rust", || {
        let mut command = build::cargo();
        command.args(["test", "--quiet", "--locked"]).args(rust_arguments(target));
        step::run(command.envs(rust_environment(&lighter, &kernel, &python)?))
    })?;
    run_python(&python, &build::vmm(&lighter)?, &kernel)
}

/// Which tests are the clients in Rust, a workspace of its own.
pub fn rust_arguments(target: &Path) -> [OsString; 4] {
    let manifest = build::repository().join("tests/clients/Cargo.toml");
    ["--manifest-path".into(), manifest.into(), "--target-dir".into(), target.join("clients").into()]
}

/// What they are built and run with: `python` has what `tests/clients/npx` needs.
pub fn rust_environment(
    lighter: &Path,
    kernel: &Path,
    python: &Path,
) -> anyhow::Result<Vec<(&'static str, OsString)>> {
    let own = [build::repository().join("tests/clients"), python.with_file_name("")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?;
    Ok(vec![
        ("PATH", path),
        ("LIGHTER_VMM", build::vmm(lighter)?.into()),
        ("LIGHTER_JAILER", build::jailer(lighter)?.into()),
        ("LIGHTER_KERNEL", kernel.into()),
    ])
}

/// Installs the client in Python, and what building those in Rust needs, and gives the interpreter that has it. Needs PyPI, by pip.
pub fn install_python(target: &Path) -> anyhow::Result<PathBuf> {
    let environment = target.join("clients-python");
    let program = |name: &str| environment.join("bin").join(name);
    if !program("pip").exists() {
        step::run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    let mut pip = Command::new(program("pip"));
    step::run_quietly(pip.args(["install", "--quiet", "--timeout", "30", PYTHON_CLIENT, YAML]))?;
    Ok(program("python"))
}

/// Runs it against `vmm`.
pub fn run_python(python: &Path, vmm: &Path, kernel: &Path) -> anyhow::Result<()> {
    step::step("firecracker-python", || {
        let script = build::repository().join("tests/clients/firecracker_python.py");
        let mut command = Command::new("timeout");
        step::run(command.arg(PATIENCE).args([python, &script, vmm, kernel]))
    })
}
