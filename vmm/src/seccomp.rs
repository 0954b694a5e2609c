//! Which system calls the threads of a VMM may make: the tables in `resources/seccomp`, compiled by the build script.
//!
//! ```text
//! vcpu     runs the guest: KVM_RUN, notifications, time
//! worker   the event loop: the devices' files and sockets; with the API also what its calls do
//! saver    writes a snapshot; has the worker's filter as well, which made it
//! ```

use std::io;

use jailer::filter::{self, sock_filter};

/// What one thread may do.
#[derive(Clone, Copy)]
pub struct Filter {
    /// The thread's role.
    pub role: &'static str,
    /// Names of the calls, some of which are permitted with certain arguments only.
    pub calls: &'static [&'static str],
    program: &'static [sock_filter],
}

/// What the threads of one program may do.
pub struct Filters {
    /// Each vCPU's thread.
    pub vcpu: Filter,
    /// The thread that owns the VM.
    pub worker: Filter,
    /// The thread that writes a snapshot.
    pub saver: Filter,
    /// Of the worker too: says that there is no clone3, whose flags a filter cannot see.
    legacy: Filter,
}

impl Filter {
    /// Limits this thread, and those that it makes, from now on.
    pub fn install(&self) -> io::Result<()> {
        filter::install(self.role, self.program)
    }
}

impl Filters {
    /// Limits this thread, the owner of the VM, once the vCPUs have threads.
    pub fn install_worker(&self) -> io::Result<()> {
        self.legacy.install()?;
        self.worker.install()
    }

    /// What must be there before the first filter. A refused call ends the process with `exit_code`, without one by
    /// SIGSYS.
    pub fn prepare(&'static self, exit_code: Option<i32>) -> io::Result<&'static Self> {
        rustix::thread::set_no_new_privs(true)?;
        filter::tell_refusals(exit_code)?;
        Ok(self)
    }
}

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    /// What no thread of a VMM has any business with.
    const NEVER: &[&str] = &[
        "execve",
        "execveat",
        "fork",
        "vfork",
        "clone",
        "ptrace",
        "mount",
        "umount2",
        "pivot_root",
        "unshare",
        "setns",
        "setuid",
        "setresuid",
        "capset",
        "bpf",
        "keyctl",
        "init_module",
        "kexec_load",
        "process_vm_readv",
        "process_vm_writev",
        "kill",
        "rt_sigaction",
        "seccomp",
        "getppid",
        "memfd_create",
        "perf_event_open",
        "userfaultfd",
        "reboot",
        "chroot",
        "open_by_handle_at",
    ];

    #[test]
    fn what_leads_out_is_in_no_table() {
        for filter in [&MACHINE, &API].iter().flat_map(|table| [table.vcpu, table.worker, table.saver]) {
            for call in NEVER {
                // The saver is a thread, with a filter more.
                let thread = ["clone", "seccomp"].contains(call) && filter.role == "worker";
                assert!(thread || !filter.calls.contains(call), "{} may {call}", filter.role);
            }
        }
        assert!(
            !MACHINE.worker.calls.iter().any(|call| call.starts_with("open")),
            "{:?}",
            MACHINE.worker.calls
        );
        // What a ring does no filter sees: a machine's are made before, each for one disk.
        assert!(!MACHINE.worker.calls.contains(&"io_uring_setup"), "{:?}", MACHINE.worker.calls);
    }

    #[test]
    fn the_worker_can_make_a_saver_with_a_filter_of_its_own() {
        for table in [&MACHINE, &API] {
            let may = |call: &&str| table.worker.calls.contains(call);
            assert!(["clone", "clone3", "seccomp", "rseq", "set_robust_list"].iter().all(may));
            // It has the worker's filter too.
            assert!(table.saver.calls.iter().all(may), "{:?}", table.saver.calls);
        }
    }
}
