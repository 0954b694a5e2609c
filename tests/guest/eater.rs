//! Eats memory: on each line of stdin it takes so many MiB, or gives them back if it has some.

use std::ffi::{c_int, c_void};
use std::io::BufRead as _;

unsafe extern "C" {
    fn mmap(at: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
    fn madvise(at: *mut c_void, len: usize, advice: c_int) -> c_int;
}

const READ_WRITE: c_int = 1 | 2;
const PRIVATE_ANONYMOUS: c_int = 2 | 0x20;
const HUGEPAGE: c_int = 14;

fn main() {
    let mib: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("MiB");
    let len = mib << 20;
    let mut eaten = None;
    for _ in std::io::stdin().lock().lines() {
        match eaten.take() {
            None => {
                // SAFETY: new memory of this length, in large pages: each fault takes milliseconds where ring 0 is
                // emulated.
                let bytes = unsafe { mmap(std::ptr::null_mut(), len, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0) };
                unsafe { madvise(bytes, len, HUGEPAGE) };
                for page in (0..len).step_by(4096) {
                    // SAFETY: within the mapping.
                    unsafe { bytes.cast::<u8>().add(page).write_volatile(1) };
                }
                eaten = Some(bytes);
                println!("full");
            }
            Some(bytes) => {
                // SAFETY: the mapping from above; nothing points into it any more.
                unsafe { munmap(bytes, len) };
                println!("free");
            }
        }
    }
}
