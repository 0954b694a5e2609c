//! Clients of Firecracker's API, unmodified, against lighter's VMM. Needs the network and npx, so no part of `test`.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::{build, deps, kernel, step};

/// The client in Python that is installed, with its version.
const PYTHON_CLIENT: &str = "firecracker-python==0.0.5";

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
    step::step("firecracker-python", || {
        let environment = target.join("clients-python");
        if !environment.join("bin/pip").exists() {
            step::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        }
        let program = |name: &str| Command::new(environment.join("bin").join(name));
        step::run(program("pip").args(["install", "--quiet", PYTHON_CLIENT]))?;
        step::run(program("python").args([&clients.join("firecracker_python.py"), Path::new(&vmm), &kernel]))
    })
}
