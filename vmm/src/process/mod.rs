//! The VMM process: reads a configuration from one descriptor, runs the VM, reports on another.
//!
//! ```text
//! engine ── config (JSON) ──► lighter-vmm vmm --config-fd N --event-fd M ── events (JSON lines) ──► engine
//! ```

mod args;
mod opening;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use jailer::cage::{self, Cage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

pub use self::args::{ProcessArgs, USAGE};
use crate::clock;
use crate::config::{VmConfig, VmEvent};
use crate::seccomp;
use crate::stop::StopSignals;
use crate::text::with_causes;
use crate::vm::{Happening, Vm};

/// The VM ran and ended, whatever the guest did.
pub const EXIT_OK: i32 = 0;
/// The VM could not be built or run; a [`VmEvent::Failed`] says why.
pub const EXIT_FAILED: i32 = 125;

/// Longest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Size that the descriptor table gets at once. Growing it later, with threads, stalls for milliseconds.
const FD_TABLE_SIZE: RawFd = 256;

/// Runs one VM to its end and gives the process's exit code. Takes both descriptors.
///
/// Called first thing in `main`, with no other thread in the process. The last event on `event_fd` is
/// [`VmEvent::Exited`] or [`VmEvent::Failed`]; the caller leaves the process right afterwards. SIGTERM and
/// SIGINT end the VM.
pub fn run(args: &ProcessArgs) -> i32 {
    let process_start_ns = clock::monotonic_ns();
    // SAFETY: the caller gives both descriptors away.
    let (config, events) =
        unsafe { (OwnedFd::from_raw_fd(args.config_fd), OwnedFd::from_raw_fd(args.event_fd)) };
    let mut events = Events(File::from(events));
    match run_vm(File::from(config), &mut events, args, process_start_ns) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            events.send(&VmEvent::Failed { message: with_causes(error.as_ref()) });
            EXIT_FAILED
        }
    }
}

fn run_vm(
    config: File,
    events: &mut Events,
    args: &ProcessArgs,
    process_start_ns: u64,
) -> Result<(), Box<dyn Error>> {
    prepare_process();
    let signals = StopSignals::open()?;
    let config = read_config(config)?;
    if let Some(start) = args.cage {
        let given = opening::open(&config);
        let cage = Cage { start, given: given.sockets, network: false, limits: given.limits };
        for missing in cage::enter(&cage) {
            eprintln!("lighter-vmm: {}", with_causes(&missing));
        }
    }
    // The kernel forgets the request when a process gives up privileges.
    if let Some(parent) = args.parent {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Before the request the parent may have died already.
        if !events.parent_lives(parent) {
            return Err("whoever started the VMM is gone".into());
        }
    }
    let mut vm = match &config.restore {
        Some(restore) => Vm::from_snapshot(&config, &restore.snapshot)?,
        None => Vm::build(&config)?,
    };
    close_handed_over(&config);
    vm.stop_on(signals);
    if !args.no_seccomp {
        vm.limit_calls(seccomp::MACHINE.prepare(None)?);
    }
    if let Some(path) = &config.control {
        vm.control_at(path)?;
    }
    let built_ns = clock::monotonic_ns();
    vm.start()?;
    let emulated_ring0 = vm.emulated_ring0();
    let exit = vm.run(|happening| {
        events.send(&match happening {
            Happening::FirstRun { at_ns: first_run_ns } => {
                VmEvent::Started { process_start_ns, built_ns, first_run_ns, emulated_ring0 }
            }
            Happening::DriverReady { device } => VmEvent::DriverReady { device },
        });
    })?;
    // Told before the VM is taken down, which takes a while: nobody needs to wait for that.
    events.send(&VmEvent::Exited(exit));
    Ok(())
}

/// Closes what the parent left open for the devices, which have duplicates: an interface that is taken out of the VM
/// must be gone.
fn close_handed_over(config: &VmConfig) {
    let net = config.net.iter().chain(&config.plugged.net).map(|net| net.fd);
    for fd in net.chain(config.fs.iter().filter_map(|fs| fs.fd)).filter(|fd| *fd > libc::STDERR_FILENO) {
        // SAFETY: the parent gave these descriptors to this process for its devices alone, and nothing else here has
        // learnt of them.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

fn read_config(config: File) -> Result<VmConfig, Box<dyn Error>> {
    let mut text = Vec::with_capacity(4096);
    let len = config.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text)?;
    if len as u64 > MAX_CONFIG_BYTES {
        return Err(format!("the configuration is longer than {MAX_CONFIG_BYTES} bytes").into());
    }
    Ok(serde_json::from_slice(&text).map_err(|error| format!("the configuration is invalid: {error}"))?)
}

/// What must happen while there is one thread. Neither is worth failing for.
pub(crate) fn prepare_process() {
    // SAFETY: duplicating a descriptor to the lowest free number from FD_TABLE_SIZE - 1 on and closing it
    // again touches no descriptor that is in use.
    unsafe {
        let fd = libc::fcntl(libc::STDERR_FILENO, libc::F_DUPFD_CLOEXEC, FD_TABLE_SIZE - 1);
        if fd >= 0 {
            libc::close(fd);
        }
    }
    // SAFETY: sets a number in the allocator; no other thread uses it meanwhile. An arena for each vCPU
    // thread would cost memory in every VM.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// The event descriptor. A reader that is gone does not matter to the VM.
struct Events(File);

impl Events {
    /// In a PID namespace of our own the parent has no number: there it lives while somebody can read.
    fn parent_lives(&self, parent: Pid) -> bool {
        match getppid() {
            Some(now) => now == parent,
            None => {
                let mut pipe = [PollFd::new(&self.0, PollFlags::empty())];
                poll(&mut pipe, Some(&Timespec::default())).is_ok_and(|_| pipe[0].revents().is_empty())
            }
        }
    }

    fn send(&mut self, event: &VmEvent) {
        let mut line = serde_json::to_vec(event).expect("invariant: events are plain data");
        line.push(b'\n');
        let _ = self.0.write_all(&line);
    }
}
