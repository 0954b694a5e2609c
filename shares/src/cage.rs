//! What the server may do: little, and less than whoever started it.
//!
//! ```text
//! namespaces ─► tree of shares as the root ─► few capabilities, no new ones ─► system calls without the dangerous ones
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use jailer::privileges;
use rustix::process::{Pid, Resource, Rlimit, Signal, getgid, getppid, getrlimit, getuid, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags, set_no_new_privs, unshare_unsafe};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::serving::Files;
use crate::{Plan, tree};

/// What serving files takes: owners, modes and permissions as the guest's processes have them. Not among them:
/// CAP_MKNOD, so no device appears on the host, and CAP_DAC_READ_SEARCH, which opens files by their number.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP);
/// Files that a guest may have open or remember, where the host allows it: each takes a descriptor.
const MAX_FILES: u64 = 1 << 20;
/// What no file server does. Refused with EPERM.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CageError {
    /// A user without privilege needs a user namespace.
    #[error(
        "cannot make a user namespace for the server of host directories; as an ordinary user -v needs one: allow it \
         (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, or AppArmor), or run lighter as root"
    )]
    UserNamespace(#[source] io::Error),
    /// A directory or file cannot be shared.
    #[error("cannot share {}", share.display())]
    Share {
        /// Which one.
        share: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else of the way into the cage.
    #[error("cannot confine the server of host directories: {action}")]
    Step {
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its parent is gone already.
    #[error("whoever started the server of host directories is gone")]
    Orphan,
}

/// Makes this process the server of `plan`, which ends with its parent `parent`. Called with no other thread in the
/// process; it cannot do anything else afterwards.
pub fn enter(plan: &Plan, parent: Option<Pid>) -> Result<Files, CageError> {
    let step = |action| move |source: io::Error| CageError::Step { action, source };
    let is_user = !getuid().is_root();
    namespaces(is_user)?;
    let files = tree::enter(plan, || Files::new(is_user))?;
    files.import().map_err(step("open its root"))?;
    raise_file_limit();
    drop_capabilities().map_err(step("drop capabilities"))?;
    set_no_new_privs(true).map_err(|errno| step("give up new privileges")(errno.into()))?;
    if let Some(parent) = parent {
        let asked = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // Between its fork and the request above the parent may have died already.
        // In a PID namespace it has no number; whoever is gone does not take the answer that the server is ready.
        if asked.is_err() || getppid().is_some_and(|now| now != parent) {
            return Err(CageError::Orphan);
        }
    }
    refuse_calls().map_err(step("limit its system calls"))?;
    Ok(files)
}

/// Namespaces of its own; a user becomes the root of a user namespace that knows nobody else.
fn namespaces(is_user: bool) -> Result<(), CageError> {
    let step = |action| move |source: io::Error| CageError::Step { action, source };
    let (uid, gid) = (getuid(), getgid());
    if is_user {
        // SAFETY: nothing in this process relies on its user namespace, and there is no other thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }
            .map_err(|errno| CageError::UserNamespace(errno.into()))?;
        let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
        write("setgroups", "deny".to_owned())
            .and_then(|()| write("uid_map", format!("0 {} 1", uid.as_raw())))
            .and_then(|()| write("gid_map", format!("0 {} 1", gid.as_raw())))
            .map_err(CageError::UserNamespace)?;
    }
    let others = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // SAFETY: as above; descriptors stay shared with nobody.
    unsafe { unshare_unsafe(others) }.map_err(|errno| step("make namespaces")(errno.into()))
}

/// Without it a guest that looks at many files gets ENFILE sooner.
fn raise_file_limit() {
    let now = getrlimit(Resource::Nofile);
    for most in [Some(MAX_FILES), now.maximum] {
        let limit = Rlimit { current: most, maximum: most };
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}

fn drop_capabilities() -> io::Result<()> {
    if getuid().is_root() {
        // Fails in a user namespace, where there are none to begin with.
        let _ = rustix::thread::set_thread_groups(&[]);
    }
    privileges::keep_only(CAPABILITIES)
}

fn refuse_calls() -> io::Result<()> {
    let rules: BTreeMap<i64, _> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
