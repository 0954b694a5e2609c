//! Which system calls a thread may make. A refused one ends the whole process, after one line on stderr.
//!
//! The kernel does not execute a refused call (SECCOMP_RET_TRAP) but sends SIGSYS. The handler names the call and is
//! gone by then (SA_RESETHAND); its own end, as any second refused call, is the kernel's default action: death by
//! SIGSYS. No filter permits to install a handler again.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

pub use libc::sock_filter;

/// What the line on stderr begins with; the number of the call and the thread's role follow.
pub const REFUSED: &str = "lighter: refused system call ";

thread_local! {
    static ROLE: Cell<&'static str> = const { Cell::new("no role") };
}

/// Exit code after a refusal; 0: death by SIGSYS.
static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

/// Installs the handler. Before the first [`install`]. With `exit_code` the process ends with that instead of dying by
/// SIGSYS.
pub fn tell_refusals(exit_code: Option<i32>) -> io::Result<()> {
    EXIT_CODE.store(exit_code.unwrap_or_default(), Ordering::Relaxed);
    // SAFETY: all zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_refused as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_NODEFER;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what signal handlers may.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Limits this thread, and those it makes, to what `program` permits; `role` is its name in messages. Needs
/// `no_new_privs`.
pub fn install(role: &'static str, program: &[sock_filter]) -> io::Result<()> {
    ROLE.set(role);
    let len = program.len().try_into().map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` names a slice that outlives the call, which only reads it.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Offset of `si_syscall` in `siginfo_t` (x86-64: three words, four bytes of padding, an address).
const SI_SYSCALL: usize = 24;

extern "C" fn on_refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole siginfo_t, 128 bytes, and for SIGSYS of a filter this field is set.
    let call = unsafe { info.byte_add(SI_SYSCALL).cast::<i32>().read() };
    let mut line = Line { bytes: [0; 128], len: 0 };
    line.push(REFUSED.as_bytes());
    line.push_number(call.unsigned_abs());
    line.push(b" of thread ");
    line.push(ROLE.get().as_bytes());
    line.push(b"\n");
    // SAFETY: the buffer has so many bytes. getppid is in no filter: with the handler gone it ends the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        match EXIT_CODE.load(Ordering::Relaxed) {
            0 => libc::syscall(libc::SYS_getppid),
            code => libc::_exit(code),
        };
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// Text made without allocating.
struct Line {
    bytes: [u8; 128],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *place = *byte;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_and_lines_end_at_their_limit() {
        let mut line = Line { bytes: [0; 128], len: 0 };
        line.push_number(4021);
        line.push(&[b'x'; 300]);
        assert_eq!((&line.bytes[..5], line.len), (&b"4021x"[..], 128));
    }
}
