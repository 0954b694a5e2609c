//! One VM as lighter's own process: what every container's machine runs in, so it has nothing in it that serves others.

use std::process::ExitCode;

use vmm::process::{self, ProcessArgs};

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    match ProcessArgs::parse(args) {
        // Left without returning: what the VM holds is the kernel's to take back.
        Some(args) => std::process::exit(process::run(&args)),
        None => {
            eprintln!("lighter-machine: {}", process::USAGE);
            ExitCode::from(125)
        }
    }
}
