//! Copying out of a mapped file that may be cut off meanwhile.
//!
//! Touching a page of a mapping whose file ends before it, or whose medium fails, raises SIGBUS. The copy
//! here is one instruction, `rep movsb`, which leaves in RCX what it has not done: the handler skips the
//! instruction, and the caller sees an error instead of the process its end. A SIGBUS anywhere else does
//! what it did without the handler.

use std::sync::OnceLock;

/// The file behind the source, or the memory file behind the target, does not have the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Length of `rep movsb`.
const INSTRUCTION_LEN: i64 = 2;

unsafe extern "C" {
    /// Where the copying instruction is.
    static lighter_devices_fault_copy: u8;
}

/// Copies `len` bytes and gives the number of those that were not copied.
///
/// # Safety
///
/// Both ranges are mapped, `to` for writing; their backing may be missing. No Rust reference covers them.
#[unsafe(naked)]
unsafe extern "C" fn rep_movsb(to: *mut u8, from: *const u8, len: usize) -> usize {
    core::arch::naked_asm!(
        "mov rcx, rdx",
        ".globl lighter_devices_fault_copy",
        ".hidden lighter_devices_fault_copy",
        "lighter_devices_fault_copy:",
        "rep movsb",
        "mov rax, rcx",
        "ret",
    )
}

/// A promise that SIGBUS is handled: [`install`] gives it.
#[derive(Clone, Copy, Debug)]
pub struct FaultCopy(());

impl FaultCopy {
    /// Copies `len` bytes.
    ///
    /// # Safety
    ///
    /// As for a plain copy of mapped memory: both ranges are mapped as a whole, `to` for writing, until this
    /// returns, and no Rust reference covers them. They may overlap or change meanwhile; then what is copied
    /// is unspecified bytes. Pages that their file no longer has are an error and no undefined behaviour.
    pub unsafe fn copy(self, to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: the caller's promise; the handler is installed, as `self` shows.
        match unsafe { rep_movsb(to, from, len) } {
            0 => Ok(()),
            _ => Err(Fault),
        }
    }
}

/// Installs the handler for the whole process, once; `None` where the system refuses.
pub fn install() -> Option<FaultCopy> {
    static INSTALLED: OnceLock<Option<FaultCopy>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is complete: a handler with three arguments, as SA_SIGINFO says, and an empty
        // mask. The handler only touches the context that it gets.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
        (result == 0).then_some(FaultCopy(()))
    })
}

extern "C" fn on_sigbus(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let copying = (&raw const lighter_devices_fault_copy) as i64;
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's `ucontext_t`, which nobody else
    // uses until the handler returns.
    let rip = unsafe {
        let registers = &raw mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        &mut *registers.cast::<i64>().add(libc::REG_RIP as usize)
    };
    if *rip == copying {
        *rip = rip.wrapping_add(INSTRUCTION_LEN);
        return;
    }
    // SAFETY: async-signal-safe; the instruction that failed runs again and now ends the process.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_file_that_was_cut_off_is_an_error_and_the_process_lives() {
        let copy = install().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        // SAFETY: a new mapping of a whole file; it is never unmapped.
        let mapped = unsafe {
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        let from: *const u8 = mapped.cast_const().cast();
        let mut target = vec![0u8; 8192];
        // SAFETY: both ranges have 8192 bytes.
        assert_eq!(unsafe { copy.copy(target.as_mut_ptr(), from, 8192) }, Ok(()));
        assert_eq!(target, [7; 8192]);
        file.set_len(4096).unwrap();
        target.fill(0);
        // SAFETY: as above; the second page has no backing any more.
        assert_eq!(unsafe { copy.copy(target.as_mut_ptr(), from, 8192) }, Err(Fault));
        assert_eq!(target, [[7; 4096], [0; 4096]].concat());
        // SAFETY: as above.
        assert_eq!(unsafe { copy.copy(target.as_mut_ptr(), from, 4096) }, Ok(()));
    }
}
