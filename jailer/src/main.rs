//! `lighter-jailer`: starts `lighter-vmm` confined, in place of Firecracker's jailer.

use std::process::ExitCode;

use jailer::program;

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    match program::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lighter-jailer: {}", program::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}
