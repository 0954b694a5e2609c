//! From a plan to a running process.
//!
//! The child reports over a pipe that closes at its exec: nothing said means that it runs.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::os::fd::OwnedFd;

use agent_protocol::message::{FailureKind, ProcessPlan};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Uid};

use super::capabilities::Set;
use super::identity::{self, Identity};
use super::{Process, lookup, rlimits, stdio};
use crate::failure::{Context, Failure, check, last_errno};

/// What the first process of a container does beside all others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Mounts `/proc` for the new PID namespace that it is the init of.
    Yes,
    /// Finds everything there.
    No,
}

/// Everything that the child needs, made before the fork.
struct Program {
    file: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    capabilities: Set,
    identity: Identity,
}

/// Starts a process of the container. Returns when its exec succeeded or failed.
pub fn spawn(plan: &ProcessPlan, first: First) -> Result<Process, Failure> {
    let program = prepare(plan)?;
    let (ours, theirs) = stdio::open(plan)?;
    let (report, reporter) = pipe_with(PipeFlags::CLOEXEC).during("make a pipe")?;
    // SAFETY: the agent has one thread, so the child may do all that a process may.
    let pid = check(unsafe { libc::fork() }).during("fork")?;
    if pid == 0 {
        let Err(failure) = become_process(plan, &program, theirs, first);
        tell(&reporter, &failure);
        // SAFETY: _exit takes no pointers; nothing of the agent's is to be run at the child's end.
        unsafe { libc::_exit(127) };
    }
    drop(theirs);
    drop(reporter);
    let pid = Pid::from_raw(pid).ok_or_else(|| Failure::agent("fork gave no process ID"))?;
    match listen(&report) {
        None => Ok(Process::new(pid, ours)),
        // The loop reaps the child like any other.
        Some(failure) => Err(failure),
    }
}

fn prepare(plan: &ProcessPlan) -> Result<Program, Failure> {
    let identity = identity::resolve(plan)?;
    let name = plan.args.first().map(String::as_str).unwrap_or_default();
    make_directory(&plan.cwd)?;
    rustix::process::chdir(plan.cwd.as_str()).during(&format!("working directory {}", plan.cwd))?;
    let file = lookup::find(name, &plan.env)?;
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    let strings = |list: &[String]| {
        list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, NulError>>()
    };
    let nul = |_| Failure::agent("a NUL byte in the command or the environment");
    Ok(Program {
        file: CString::new(file).map_err(nul)?,
        args: strings(&plan.args).map_err(nul)?,
        env: strings(&env).map_err(nul)?,
        capabilities: Set::parse(&plan.capabilities)?,
        identity,
    })
}

/// `mkdir -p`, owned by root.
fn make_directory(path: &str) -> Result<(), Failure> {
    if !path.starts_with('/') {
        return Err(Failure::agent(format!("working directory {path:?} is not absolute")));
    }
    if rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok() {
        return Ok(());
    }
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    for part in ends.filter_map(|end| path.get(..end)) {
        match rustix::fs::mkdirat(CWD, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).during(&format!("make the working directory {part}")),
        }
    }
    Ok(())
}

/// In the child: returns only if something failed.
fn become_process(
    plan: &ProcessPlan,
    program: &Program,
    theirs: stdio::Theirs,
    first: First,
) -> Result<Infallible, Failure> {
    reset_signals();
    rustix::process::setsid().during("setsid")?;
    if first == First::Yes {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "/proc", "proc", flags, None).during("mount /proc")?;
    }
    theirs.install().during("standard streams")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rlimits::apply(&plan.rlimits)?;
    take_identity(&program.identity, program.capabilities).during("change of user")?;
    if plan.no_new_privs {
        rustix::thread::set_no_new_privs(true).during("no_new_privs")?;
    }
    Err(exec(program))
}

fn take_identity(identity: &Identity, capabilities: Set) -> Result<(), Errno> {
    capabilities.limit_bounding()?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    if uid.is_root() { capabilities.apply() } else { Ok(()) }
}

/// Signal actions and mask as a fresh process has them.
fn reset_signals() {
    // SAFETY: the set is a plain bit mask, filled before use; SIG_DFL is no function of ours; numbers that
    // may not be set are refused by the kernel, which harms nothing.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        // The Rust runtime ignores it; nothing else is changed in the agent.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn exec(program: &Program) -> Failure {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(&program.args), pointers(&program.env));
    // SAFETY: all strings end with NUL, both lists with null, and all live until the call returns.
    unsafe { libc::execve(program.file.as_ptr(), args.as_ptr(), env.as_ptr()) };
    let errno = last_errno();
    let file = program.file.to_string_lossy();
    let (kind, hint) = match errno {
        Errno::NOENT => (FailureKind::NotFound, " (its interpreter or loader is not in the image)"),
        Errno::NOEXEC => (FailureKind::NotExecutable, " (no executable of this machine, and no `#!` line)"),
        _ => (FailureKind::NotExecutable, ""),
    };
    Failure { kind, message: format!("{file}: {errno}{hint}") }
}

/// One byte for the kind, then the message.
fn tell(reporter: &OwnedFd, failure: &Failure) {
    let kind = match failure.kind {
        FailureKind::NotFound => 0,
        FailureKind::NotExecutable => 1,
        FailureKind::Agent => 2,
    };
    let mut report = vec![kind];
    report.extend(failure.message.as_bytes());
    // Shorter than a pipe holds. If it is lost the parent sees an exec that succeeded and a status of 127.
    let _ = rustix::io::write(reporter, &report);
}

/// Waits for the exec; `None` if it succeeded.
fn listen(report: &OwnedFd) -> Option<Failure> {
    let mut buffer = [0u8; 4096];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(report, &mut buffer[..])).unwrap_or(0);
    let (kind, message) = buffer.get(..count)?.split_first()?;
    let kind = match kind {
        0 => FailureKind::NotFound,
        1 => FailureKind::NotExecutable,
        _ => FailureKind::Agent,
    };
    Some(Failure { kind, message: String::from_utf8_lossy(message).into_owned() })
}
