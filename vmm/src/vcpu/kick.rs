//! Forces a vCPU thread out of KVM_RUN.
//!
//! The kicker sends a real-time signal. The handler runs on the vCPU's own thread and sets
//! `kvm_run.immediate_exit`, so a signal that arrives between the thread's last look at its commands and
//! KVM_RUN is not lost: KVM_RUN then returns EINTR at once.

use std::cell::Cell;
use std::ptr;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs; null on every other thread.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks.
pub fn signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler for the whole process; any number of times.
pub fn install() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(signal(), on_kick)
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Kickable` keeps the pointer valid while it is set, and only this thread uses it.
        unsafe { flag.write_volatile(1) };
    }
}

/// While it lives, kicks sent to this thread reach the vCPU.
pub struct Kickable(());

impl Kickable {
    /// Makes the current thread kickable. The caller keeps `vcpu` alive longer than the result.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Kickable(())
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
