//! The agent: PID 1 of every guest.
//!
//! It carries out one batched plan of the host and streams a process's output back; it holds no policy.
//! Guest system calls are what a start costs on hosts that emulate guest ring 0, so there is one thread,
//! one `poll` and as few calls as the work allows.
//!
//! ```text
//! boot::prepare -> listen and connect -> event_loop::run -> session: Start -> container::enter -> process::spawn
//! ```

mod boot;
pub mod clock;
pub mod container;
pub mod event_loop;
pub mod failure;
mod forward;
pub mod network;
mod power;
pub mod process;
mod read_ahead;
pub mod resolver;
pub mod session;
mod slots;
mod splice;
mod sysfs;
pub mod tools;
mod transport;
pub mod usage;

use failure::Failure;

/// Serves the guest until the machine ends.
pub fn main() {
    if let Err(failure) = run() {
        // PID 1 has nobody else to tell: the console is what the host shows when a boot fails.
        eprintln!("lighter-agent: {}", failure.message);
    }
    power::off();
}

fn run() -> Result<(), Failure> {
    let began = clock::boottime_ns();
    boot::prepare()?;
    let listener = transport::listen(agent_protocol::AGENT_PORT)?;
    let host = transport::connect_to_host()?;
    event_loop::run(listener, host, began)
}
