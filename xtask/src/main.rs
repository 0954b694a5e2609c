//! Developer commands: `cargo xtask demo|test|kernel|check|clients|bench|fuzz`.
//!
//! Each subcommand is one module; this file only names them.

mod bench;
mod build;
mod check;
mod clients;
mod demo;
mod dependencies;
mod deps;
mod distribution_kernel;
mod fuzz;
mod kernel;
mod lessons;
mod schemathesis;
mod step;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, shows, tests and measures lighter")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and run a small real image in a microVM.
    Demo,
    /// Build the guest kernel, or find it in the cache, and print its path.
    Kernel(kernel::KernelArgs),
    /// Run everything that CI runs.
    Test(test::TestArgs),
    /// Measure lighter beside a peer.
    Bench(bench::BenchArgs),
    /// Fuzz every target with coverage, in turn, when nobody else wants the processor.
    Fuzz(fuzz::FuzzArgs),
    /// Run clients of Firecracker's API against lighter's VMM (fetches them).
    Clients,
    /// Check formatting, lints and which crate may know which.
    Check,
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Kernel(args) => kernel::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Clients => clients::run(),
        Command::Check => check::run(),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
