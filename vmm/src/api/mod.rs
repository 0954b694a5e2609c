//! `lighter-vmm` in place of Firecracker: its command line, its API socket, its configuration file.
//!
//! ```text
//! main ─► Arguments ─► Resources ◄── calls before the start (preboot)
//!                          │ InstanceStart, /snapshot/load, --config-file
//!                          ▼
//!                         Vm ◄── calls after it (running)
//! ```
//!
//! One thread: the one that owns the VM serves the socket too. `docs/api.md` says what is offered.

mod arguments;
mod fault;
mod files;
mod hinting;
mod hotplug;
mod imds;
mod instance;
mod log;
mod metadata;
mod metrics;
mod preboot;
mod resources;
mod running;
mod snapshot;

pub use self::arguments::{Arguments, Asked as AskedArguments};
use self::instance::Instance;

/// The guest ended by itself, or nothing was to be done.
pub const EXIT_OK: i32 = 0;
/// The VM could not be built or run.
pub const EXIT_FAILED: i32 = 1;
/// A thread made a system call that its filter refuses.
pub const EXIT_REFUSED_CALL: i32 = 148;
/// The configuration cannot be used.
pub const EXIT_CONFIGURATION: i32 = 152;
/// The command line cannot be used.
pub const EXIT_ARGUMENTS: i32 = 153;
/// SIGTERM or SIGINT ended the VM; as a shell reports it.
pub const EXIT_STOPPED: i32 = 143;

/// Runs the program with what follows its name and gives its exit code.
///
/// Called first thing in `main`, with no other thread in the process.
pub fn main(arguments: impl IntoIterator<Item = String>) -> i32 {
    match Arguments::parse(arguments) {
        Ok(AskedArguments::Run(arguments)) => Instance::run(*arguments),
        Ok(AskedArguments::Print(text)) => {
            println!("{text}");
            EXIT_OK
        }
        Err(error) => {
            eprintln!("lighter-vmm: {error}\n{}", arguments::USAGE);
            EXIT_ARGUMENTS
        }
    }
}
