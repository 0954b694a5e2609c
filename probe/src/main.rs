//! What `lighter compare` runs inside: small benchmarks, and attempts to see and touch what should be out of reach.
//!
//! ```text
//! probe speed MILLISECONDS [NAME…]     one line a benchmark: name, amount per second
//! probe isolation [NAME=VALUE…]        one line an attempt: name, open|held, what was found
//! probe fill MIB                       takes so much memory and says `filled`
//! probe fill_disk PATH MIB             writes a file of that size and says `filled`, or why not
//! probe hold [FORKS WORD]              says `ready`, its kernel and where it is, and stays until its stdin ends
//! probe hello                          says `ready`
//! ```
//!
//! Nothing here can harm the host: every attempt is bounded, and aims at decoys whose names it is given.

mod disk;
mod isolation;
mod neighbour;
mod speed;
mod syscalls;
mod tcp;

use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["speed", budget, only @ ..] => {
            let budget = Duration::from_millis(budget.parse().unwrap_or(100));
            speed::run(budget, only);
        }
        ["isolation", decoys @ ..] => isolation::run(decoys),
        ["hello"] => println!("ready"),
        ["hold"] => neighbour::hold(0, ""),
        ["hold", number, word] => neighbour::hold(number.parse().unwrap_or(0), word),
        ["fill_disk", path, mib] => match disk::fill(path, mib.parse::<u64>().unwrap_or(0) << 20) {
            Ok(()) => println!("filled"),
            Err(error) => println!("{error}"),
        },
        ["fill", mib] => println!("{}", if fill(mib.parse().unwrap_or(0)) { "filled" } else { "refused" }),
        // What fork+exec starts.
        ["nothing"] => {}
        _ => {
            eprintln!("probe: speed MILLISECONDS [NAME…] | isolation [NAME=VALUE…] | hold | hello");
            std::process::exit(2);
        }
    }
}

/// Processes that end with this one's stdin, which they share, or after a minute.
pub fn forks(number: u32) {
    for _ in 0..number.min(100) {
        // SAFETY: this process still has one thread; the child only sleeps and leaves.
        unsafe {
            if libc::fork() == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::sleep(60);
                libc::_exit(0);
            }
        }
    }
}

/// Takes memory and writes to every page of it.
fn fill(mib: usize) -> bool {
    let length = mib << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new private mapping, written within its length.
    unsafe {
        let memory =
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return false;
        }
        for at in (0..length).step_by(4096) {
            memory.cast::<u8>().add(at).write_volatile(1);
        }
    }
    true
}
