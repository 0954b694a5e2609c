//! PID 1: writes to much memory, frees it, and waits. Argument: MiB.

use std::ffi::{c_char, c_int, c_ulong, c_void};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
}

const READ_WRITE: c_int = 1 | 2;
const PRIVATE_ANONYMOUS: c_int = 2 | 0x20;
const HUGEPAGE: c_int = 14;

fn main() {
    let mib: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("MiB");
    let len = mib << 20;
    // As lighter's agent does: no CPU keeps freed pages for itself.
    unsafe { mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null()) };
    std::fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "1024").unwrap();
    // Few page faults: each takes milliseconds where ring 0 is emulated.
    let bytes = unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0) };
    unsafe { madvise(bytes, len, HUGEPAGE) };
    for page in (0..len).step_by(4096) {
        unsafe { bytes.cast::<u8>().add(page).write_volatile(1) };
    }
    println!("filled");
    std::thread::sleep(std::time::Duration::from_millis(500));
    unsafe { munmap(bytes, len) };
    println!("freed");
    loop {
        std::thread::park();
    }
}
