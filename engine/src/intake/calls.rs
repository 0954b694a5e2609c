//! Which system calls the processes that read images may make. A refused one ends them.

use std::collections::BTreeMap;
use std::io;

use jailer::filter::{self, sock_filter};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What one of them may do.
pub(super) struct Calls {
    role: &'static str,
    lists: &'static [&'static [libc::c_long]],
    network: bool,
    /// Calls that fail and do nothing else: libraries do without.
    absent: &'static [libc::c_long],
}

/// Reads layers that are open, writes a file that is open.
pub(super) const UNPACK: Calls =
    Calls { role: "unpack", lists: &[OWN], network: false, absent: &[libc::SYS_clone3, libc::SYS_openat] };
/// Makes files in the store, and talks to a registry.
pub(super) const FETCH: Calls =
    Calls { role: "fetch", lists: &[OWN, NAMED, NETWORK], network: true, absent: &[libc::SYS_clone3] };

/// Memory, threads, time and open files.
const OWN: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    // On the socket to the parent.
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fcntl,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_uname,
    libc::SYS_geteuid,
];
/// Files that have a name.
const NAMED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_flock,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
];
/// TCP and UDP: see [`Calls::families`].
const NETWORK: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
];
/// A thread in no new namespace: the flags that make namespaces, and CLONE_THREAD.
const CLONE_MASK: u64 = 0x7e03_0000;

impl Calls {
    /// Limits this process for good. Needs `no_new_privs`.
    pub fn install(&self) -> io::Result<()> {
        filter::tell_refusals(None)?;
        for program in [self.missing()?, self.permitted()?] {
            let program: Vec<sock_filter> = program
                .iter()
                .map(|word| sock_filter { code: word.code, jt: word.jt, jf: word.jf, k: word.k })
                .collect();
            filter::install(self.role, &program)?;
        }
        Ok(())
    }

    /// The list, and what is permitted with certain arguments only.
    fn permitted(&self) -> io::Result<BpfProgram> {
        use SeccompCmpOp::{Eq, MaskedEq};
        let no_code = || is(2, MaskedEq(libc::PROT_EXEC as u64), 0);
        let own_pid = u64::from(std::process::id());
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = self
            .lists
            .iter()
            .chain([&self.absent])
            .flat_map(|list| list.iter())
            .map(|&call| (call, Vec::new()))
            .collect();
        rules.insert(libc::SYS_mmap, vec![no_code()?]);
        rules.insert(libc::SYS_mprotect, vec![no_code()?]);
        rules.insert(libc::SYS_clone, vec![is(0, MaskedEq(CLONE_MASK), libc::CLONE_THREAD as u64)?]);
        rules.insert(libc::SYS_prctl, vec![is(0, Eq, libc::PR_SET_NAME as u64)?]);
        // What the limits are, not to set them.
        let no_new = SeccompCondition::new(2, SeccompCmpArgLen::Qword, Eq, 0).map_err(io::Error::other)?;
        let look = SeccompRule::new(vec![no_new]).map_err(io::Error::other)?;
        rules.insert(libc::SYS_prlimit64, vec![look]);
        rules.insert(libc::SYS_tgkill, vec![is(0, Eq, own_pid)?]);
        let requests = [libc::FIONREAD, libc::FIONBIO].map(|request| is(1, Eq, request));
        rules.insert(libc::SYS_ioctl, requests.into_iter().collect::<io::Result<_>>()?);
        compile(rules, SeccompAction::Trap, SeccompAction::Allow)
    }

    /// What libraries can do without: clone3, whose flags a filter cannot see; files that tell the number of
    /// processors; and sockets that are not of IP.
    fn missing(&self) -> io::Result<BpfProgram> {
        let rule = SeccompRule::new(vec![
            condition(0, SeccompCmpOp::Ne, libc::AF_INET as u64)?,
            condition(0, SeccompCmpOp::Ne, libc::AF_INET6 as u64)?,
        ]);
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            self.absent.iter().map(|&call| (call, Vec::new())).collect();
        if self.network {
            rules.insert(libc::SYS_socket, vec![rule.map_err(io::Error::other)?]);
        }
        compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
    }
}

fn condition(index: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
}

fn is(index: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    SeccompRule::new(vec![condition(index, operator, value)?]).map_err(io::Error::other)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
