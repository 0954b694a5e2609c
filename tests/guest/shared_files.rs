//! Locks and shared mappings of files in the directory named by the first argument, as databases use them.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::AsRawFd;
use std::path::Path;

const SIZE: usize = 3 << 12;

#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    len: i64,
    pid: i32,
}

const F_SETLK: i32 = 6;
const F_WRLCK: i16 = 1;

unsafe extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn msync(addr: *mut u8, len: usize, flags: i32) -> i32;
    fn fcntl(fd: i32, command: i32, lock: *mut Flock) -> i32;
}

fn open(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).expect("open")
}

/// fcntl(2): the lock is the process's.
fn lock_record(file: &File) -> bool {
    let mut lock = Flock { kind: F_WRLCK, whence: 0, start: 0, len: 10, pid: 0 };
    // SAFETY: the structure is x86-64 Linux's `struct flock` and outlives the call.
    unsafe { fcntl(file.as_raw_fd(), F_SETLK, &mut lock) == 0 }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let path = Path::new(&arguments[1]).join("locked");
    if arguments.len() > 2 {
        std::process::exit(if lock_record(&open(&path)) { 0 } else { 3 });
    }
    let (one, other) = (open(&path), open(&path));
    one.lock().expect("flock");
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)), "flock does not exclude");
    one.unlock().expect("unlock");
    other.try_lock().expect("flock again");

    assert!(lock_record(&one), "fcntl");
    let child = std::process::Command::new(&arguments[0]).args([&arguments[1], "child"]).status();
    assert_eq!(child.expect("a child").code(), Some(3), "fcntl does not exclude");

    let mapped = open(&Path::new(&arguments[1]).join("mapped"));
    mapped.set_len(SIZE as u64).expect("set_len");
    // SAFETY: a new shared mapping of a file that is as long, with PROT_READ | PROT_WRITE.
    let memory = unsafe { mmap(std::ptr::null_mut(), SIZE, 3, 1, mapped.as_raw_fd(), 0) };
    assert!(!memory.is_null() && memory as isize != -1, "mmap");
    for page in 0..SIZE >> 12 {
        // SAFETY: within the mapping.
        unsafe { memory.add(page << 12).write_volatile(b'0' + page as u8) };
    }
    // SAFETY: the mapping's own range, MS_SYNC.
    assert_eq!(unsafe { msync(memory, SIZE, 4) }, 0, "msync");
    let content = std::fs::read(Path::new(&arguments[1]).join("mapped")).expect("read");
    assert!((0..SIZE >> 12).all(|page| content[page << 12] == b'0' + page as u8), "read differs");
    // Left to the kernel: it reaches the host although the machine ends right after this process.
    // SAFETY: within the mapping.
    unsafe { memory.add(1).write_volatile(b'z') };
    println!("locks and mappings hold");
}
