//! Clients of Firecracker's API, unmodified, against lighter's VMM. Those in Rust need npx and minutes to build, so they
//! are no part of `test`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{build, deps, kernel, step};

/// The client in Python that is installed, with its version.
const PYTHON_CLIENT: &str = "firecracker-python==0.0.5";
/// It has ended by then, in seconds, or it hangs.
const PATIENCE: &str = "240";

/// Builds the clients and runs them.
pub fn run() -> anyhow::Result<()> {
    deps::ensure(deps::KERNEL)?;
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let vmm = build::vmm(&lighter)?;
    let target = lighter.ancestors().nth(2).context("lighter was built outside a target directory")?;
    let clients = build::repository().join("tests/clients");
    step::step("fc-sdk and firepilot", || {
        let mut command = build::cargo();
        command.args(["test", "--quiet", "--locked"]).current_dir(&clients);
        command.env("CARGO_TARGET_DIR", target.join("clients"));
        command.env("LIGHTER_VMM", &vmm).env("LIGHTER_KERNEL", &kernel);
        // fc-api converts Firecracker's description with a program that npx fetches.
        step::run(command.env("npm_config_yes", "true"))
    })?;
    run_python(&install_python(target)?, &vmm, &kernel)
}

/// Installs the client in Python and gives the interpreter that has it. Needs PyPI, by pip.
pub fn install_python(target: &Path) -> anyhow::Result<PathBuf> {
    let environment = target.join("clients-python");
    let program = |name: &str| environment.join("bin").join(name);
    if !program("pip").exists() {
        step::run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    let mut pip = Command::new(program("pip"));
    step::run_quietly(pip.args(["install", "--quiet", "--timeout", "30", PYTHON_CLIENT]))?;
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
