//! `lighter-vmm`: one VM, as lighter's own process or in place of Firecracker.

use std::process::ExitCode;

use vmm::process::{self, ProcessArgs};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    // Left without returning: what the VM holds is the kernel's to take back.
    if args.first().is_none_or(|first| first != "vmm") {
        std::process::exit(vmm::api::main(args));
    }
    match ProcessArgs::parse(args) {
        Some(args) => std::process::exit(process::run(&args)),
        None => {
            eprintln!("lighter-vmm: {}", process::USAGE);
            ExitCode::from(125)
        }
    }
}
