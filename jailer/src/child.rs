//! Starting a process in namespaces of its own.
//!
//! A process is in another PID namespace only from its birth on, and an ordinary user gets one only with a user
//! namespace around it, so both are asked for when it is made.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use rustix::process::{getgid, getuid};

/// Stack of the child until it runs its program.
const STACK: usize = 64 << 10;

/// Namespaces that a child begins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Its parent's.
    None,
    /// A PID namespace: it takes root to ask for that.
    Pid,
    /// A PID namespace in a user namespace that knows only the caller, as its root.
    User,
}

/// A process that was started; somebody waits for it.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    status: Option<ExitStatus>,
}

impl Child {
    /// The child of ours whose process ID is `id`, which nobody else waits for.
    pub fn of(id: u32) -> Self {
        Child { pid: id as libc::pid_t, status: None }
    }

    /// Its process ID, as the caller sees it.
    pub fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Ends it. Nothing happens where it was waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        // SAFETY: plain system call; the number is that of our child until we waited for it.
        check(unsafe { libc::kill(self.pid, libc::SIGKILL) }).map(drop)
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(libc::WNOHANG)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.wait_with(0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn wait_with(&mut self, flags: c_int) -> io::Result<Option<ExitStatus>> {
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: `status` is a local that outlives the call.
            match check(unsafe { libc::waitpid(self.pid, &raw mut status, flags) }) {
                Ok(0) => return Ok(None),
                Ok(_) => self.status = Some(ExitStatus::from_raw(status)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.status)
    }
}

/// What the child reads while it shares its parent's memory.
struct Plan {
    program: CString,
    arguments: Vec<*const c_char>,
    null: RawFd,
    stderr: RawFd,
    /// Files of the new user namespace and what to write there.
    maps: Vec<(&'static std::ffi::CStr, CString)>,
    /// Why it did not come to its program.
    error: c_int,
}

/// Starts `program` without environment, in a process group of its own, its standard streams being `/dev/null` and
/// `stderr`. Descriptors without FD_CLOEXEC are inherited.
///
/// # Errors
/// EPERM, ENOSPC, EUSERS and the like where the host does not permit the namespaces; those of execve(2).
pub fn spawn(
    program: &Path,
    arguments: &[String],
    stderr: BorrowedFd<'_>,
    namespaces: Namespaces,
) -> io::Result<Child> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let program = CString::new(program.as_os_str().as_bytes())?;
    let strings = arguments.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()?;
    let pointers = std::iter::once(program.as_ptr()).chain(strings.iter().map(|text| text.as_ptr()));
    let mut plan = Plan {
        arguments: pointers.chain([std::ptr::null()]).collect(),
        program,
        null: null.as_raw_fd(),
        stderr: stderr.as_raw_fd(),
        maps: if namespaces == Namespaces::User { user_maps()? } else { Vec::new() },
        error: 0,
    };
    let flags = match namespaces {
        Namespaces::None => 0,
        Namespaces::Pid => libc::CLONE_NEWPID,
        Namespaces::User => libc::CLONE_NEWPID | libc::CLONE_NEWUSER,
    };
    let pid = clone(&mut plan, flags)?;
    let mut child = Child { pid, status: None };
    if plan.error != 0 {
        child.wait()?;
        return Err(io::Error::from_raw_os_error(plan.error));
    }
    Ok(child)
}

/// The caller's own user and group become the root of a user namespace.
fn user_maps() -> io::Result<Vec<(&'static std::ffi::CStr, CString)>> {
    let line = |id: u32| CString::new(format!("0 {id} 1"));
    Ok(vec![
        (c"/proc/self/setgroups", CString::new("deny")?),
        (c"/proc/self/uid_map", line(getuid().as_raw())?),
        (c"/proc/self/gid_map", line(getgid().as_raw())?),
    ])
}

/// Makes the child and returns once it runs its program, or is gone.
fn clone(plan: &mut Plan, namespaces: c_int) -> io::Result<libc::pid_t> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let top: *mut c_void = stack.as_mut_ptr_range().end.cast();
    // No handler of ours may run in the child, which shares our memory.
    let mut all = empty_set();
    let mut before = empty_set();
    // SAFETY: both sets are initialised locals.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | namespaces;
    // SAFETY: the child runs `enter` on a stack of its own, whose end `top` is aligned. This thread stands still until
    // the child has left the shared memory (CLONE_VFORK), so `plan` and the stack outlive its use of them.
    let result = check(unsafe { libc::clone(enter, top, flags, (&raw mut *plan).cast()) });
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    result
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: all zero is a valid, empty sigset_t on Linux.
    unsafe { std::mem::zeroed() }
}

/// The child's life before its program. It shares its parent's memory, so it makes system calls and nothing else.
extern "C" fn enter(plan: *mut c_void) -> c_int {
    // SAFETY: `clone` passes a `Plan`, which nobody else looks at meanwhile. Every pointer handed on is into it, into
    // constants or to locals; the calls are system calls without locks or allocations.
    unsafe {
        let plan = &mut *plan.cast::<Plan>();
        let attempt = || -> Result<(), ()> {
            let ok = |result: c_int| if result < 0 { Err(()) } else { Ok(()) };
            ok(libc::setpgid(0, 0))?;
            ok(libc::dup2(plan.null, 0))?;
            ok(libc::dup2(plan.null, 1))?;
            ok(libc::dup2(plan.stderr, 2))?;
            for (file, text) in &plan.maps {
                let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                ok(fd)?;
                let bytes = text.as_bytes();
                ok(libc::write(fd, bytes.as_ptr().cast(), bytes.len()) as c_int)?;
                libc::close(fd);
            }
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let none = empty_set();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            let environment = [std::ptr::null::<c_char>()];
            ok(libc::execve(plan.program.as_ptr(), plan.arguments.as_ptr(), environment.as_ptr()))
        };
        if attempt().is_err() {
            plan.error = *libc::__errno_location();
        }
        libc::_exit(127)
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::os::fd::AsFd as _;

    use super::*;

    fn output(namespaces: Namespaces, script: &str) -> io::Result<(String, ExitStatus)> {
        let mut stderr = tempfile::tempfile()?;
        let arguments = ["-c".to_owned(), format!("exec >&2; {script}")];
        let mut child = spawn(Path::new("/bin/sh"), &arguments, stderr.as_fd(), namespaces)?;
        let status = child.wait()?;
        let mut text = String::new();
        stderr.rewind()?;
        stderr.read_to_string(&mut text)?;
        Ok((text, status))
    }

    #[test]
    fn a_child_runs_its_program_and_its_end_is_known() {
        let (text, status) = output(Namespaces::None, "echo hello; exit 3").unwrap();
        assert_eq!((text.as_str(), status.code()), ("hello\n", Some(3)));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_of_the_start() {
        let stderr = tempfile::tempfile().unwrap();
        let error = spawn(Path::new("/no/program"), &[], stderr.as_fd(), Namespaces::None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn in_a_pid_namespace_the_child_is_the_first_process() {
        // A host may forbid both; then the error says so.
        for namespaces in [Namespaces::Pid, Namespaces::User] {
            match output(namespaces, "echo $$; id -u") {
                Ok((text, _)) => assert_eq!(text, "1\n0\n", "{namespaces:?}"),
                Err(error) => assert!(
                    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC | libc::EUSERS)),
                    "{error}"
                ),
            }
        }
    }

    #[test]
    fn a_child_can_be_killed_and_waited_for_again_and_again() {
        let stderr = tempfile::tempfile().unwrap();
        let arguments = ["60".to_owned()];
        let mut child = spawn(Path::new("/bin/sleep"), &arguments, stderr.as_fd(), Namespaces::None).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        child.kill().unwrap();
    }
}
