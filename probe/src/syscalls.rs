//! Which system calls reach the kernel: each is tried with arguments that make it fail.

use std::time::{Duration, Instant};

/// Numbers of x86-64 that are tried: all that Linux 6.12 has.
const LAST: usize = 462;
/// Without a try: what ends or stops the caller, waits, or does something even with wrong arguments. They are counted
/// neither way.
const SKIPPED: &[usize] = &[
    15,  // rt_sigreturn
    34,  // pause
    56,  // clone
    57,  // fork
    58,  // vfork
    60,  // exit
    62,  // kill
    68,  // msgget: makes a queue
    153, // vhangup
    162, // sync
    200, // tkill
    231, // exit_group
    234, // tgkill
    335, // uretprobe
    336, // uprobe
    435, // clone3
];
/// For one call; a call that takes longer waits, and so was reached.
const PATIENCE: Duration = Duration::from_secs(5);

const PENDING: u8 = 0;
const REACHED: u8 = 1;
const REFUSED: u8 = 2;
const UNKNOWN: u8 = 3;

/// How many calls reached the kernel's own code, and how many were refused or are not there.
pub fn count() -> std::io::Result<(usize, usize)> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping that the children share; bytes are written and read one by one within its length.
    let shared = unsafe {
        libc::mmap(std::ptr::null_mut(), LAST + 1, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if shared == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let results = shared.cast::<u8>();
    let mut next = 0;
    while next <= LAST {
        // SAFETY: this program has one thread.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(std::io::Error::last_os_error());
        }
        if pid == 0 {
            (next..=LAST)
                .filter(|number| !SKIPPED.contains(number))
                .for_each(|number| attempt(number, results));
            // SAFETY: _exit takes no pointers.
            unsafe { libc::_exit(0) };
        }
        wait(pid);
        // A call at which the child ended or stuck did reach the kernel.
        // SAFETY: the index is at most LAST.
        let result = |number: usize| unsafe { results.add(number).read_volatile() };
        match (next..=LAST).find(|number| !SKIPPED.contains(number) && result(*number) == PENDING) {
            None => break,
            Some(number) => {
                // SAFETY: the index is at most LAST.
                unsafe { results.add(number).write_volatile(REACHED) };
                next = number + 1;
            }
        }
    }
    // SAFETY: the mapping is LAST + 1 bytes long, and the children are gone.
    let all = unsafe { std::slice::from_raw_parts(results, LAST + 1) };
    let tried = |kind: u8| all.iter().filter(|result| **result == kind).count();
    Ok((tried(REACHED), tried(REFUSED) + tried(UNKNOWN)))
}

fn attempt(number: usize, results: *mut u8) {
    // SAFETY: no argument is a valid pointer, descriptor, process or length, so nothing is changed that anybody has.
    let result = unsafe {
        let result = libc::syscall(number as libc::c_long, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64);
        if result < 0 { std::io::Error::last_os_error().raw_os_error() } else { None }
    };
    let kind = match result {
        Some(libc::EPERM) => REFUSED,
        Some(libc::ENOSYS) => UNKNOWN,
        _ => REACHED,
    };
    // SAFETY: the index is at most LAST.
    unsafe { results.add(number).write_volatile(kind) };
}

fn wait(pid: libc::pid_t) {
    let start = Instant::now();
    loop {
        // SAFETY: the child is ours; its status may be ignored.
        let done = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        if done != 0 {
            return;
        }
        if start.elapsed() > PATIENCE {
            // SAFETY: it is not reaped yet, so the ID is its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
