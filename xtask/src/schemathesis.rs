//! Schemathesis, which makes up requests from an OpenAPI document: in a virtual environment below the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step;

/// What is installed, with its version.
const PACKAGE: &str = "schemathesis==4.32.5";

/// The program; installed once. Needs PyPI, by pip.
pub fn ensure(target: &Path) -> anyhow::Result<PathBuf> {
    let environment = target.join("schemathesis");
    let program = environment.join("bin/schemathesis");
    if !program.exists() {
        step::step("installing schemathesis", || {
            step::run_quietly(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
            let mut pip = Command::new(environment.join("bin/pip"));
            step::run_quietly(pip.args(["install", "--quiet", "--timeout", "30", PACKAGE])).map(drop)
        })?;
    }
    Ok(program)
}
