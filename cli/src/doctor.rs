//! `lighter doctor`: what this host has and lacks, what that means, and the fix.

use engine::dirs::Dirs;
use engine::doctor::{Check, Status, examine};
use serde_json::json;

use crate::args::FormatArgs;
use crate::output::{self, Format};

/// Exit code where a container cannot run.
const EXIT_UNFIT: u8 = 1;

/// Examines the host and prints every finding; gives the exit code.
pub fn run(dirs: &Dirs, args: &FormatArgs) -> anyhow::Result<u8> {
    let checks = examine(dirs);
    match args.format {
        Format::Json => output::print_json(&json!({"schema": "lighter.doctor.v1", "checks": checks}))?,
        Format::Table => output::print(&checks.iter().map(shown).collect::<String>())?,
    }
    let unfit = checks.iter().any(|check| check.status == Status::Fail);
    Ok(if unfit { EXIT_UNFIT } else { 0 })
}

fn shown(check: &Check) -> String {
    let mark = match check.status {
        Status::Ok => " ok ",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    let mut text = format!("[{mark}] {:<16} {}\n", check.name, check.finding);
    if check.status != Status::Ok {
        text.push_str(&format!("       {:<16} means: {}\n", "", check.meaning));
        text.push_str(&format!("       {:<16} fix:   {}\n", "", check.fix));
    }
    text
}
