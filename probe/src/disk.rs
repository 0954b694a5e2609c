//! The disk filler: writes a little, and asks how much more there would be room for.

use std::fs::{self, File};
use std::io::Write as _;

use crate::isolation::Found;

const MIB: u64 = 1 << 20;
/// Bytes that are really written. So few harm no host.
const WRITTEN: u64 = MIB / 4;
/// The host's file system and a layer on it do not say exactly the same, as others write too.
const SAME: f64 = 0.98;

/// `host`: free bytes of the host's disk on which the container's files lie.
pub fn filler(host: &str) -> Found {
    let Ok(host) = host.parse::<u64>() else { return (false, "no disk".into()) };
    let path = "/lighter-probe-filler";
    let filled = fill(path, WRITTEN);
    let free = free("/");
    let _ = fs::remove_file(path);
    match filled {
        Ok(()) => verdict(free, host),
        Err(error) => (false, error.to_string()),
    }
}

/// Without an end of its own before that of the host's disk the instance could fill that.
fn verdict(free: u64, host: u64) -> Found {
    let open = free as f64 >= host as f64 * SAME;
    let end = if open { "no end before the host's disk is full" } else { "its own disk ends" };
    (open, format!("{end}: {} MiB free of {} MiB", free / MIB, host / MIB))
}

/// Writes `bytes` to the new file `path`.
pub fn fill(path: &str, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let chunk = vec![0x5a; 64 << 10];
    let mut written = 0;
    while written < bytes {
        file.write_all(&chunk)?;
        written += chunk.len() as u64;
    }
    file.sync_data()
}

/// Free bytes of the file system of `path`; none where nobody knows.
fn free(path: &str) -> u64 {
    let Ok(path) = std::ffi::CString::new(path) else { return 0 };
    // SAFETY: statvfs is a plain structure that the call fills; the path ends with zero.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        match libc::statvfs(path.as_ptr(), &raw mut found) {
            0 => found.f_bavail.saturating_mul(found.f_frsize),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_smaller_disk_of_its_own_holds_a_filler() {
        assert!(verdict(100 * MIB, 100 * MIB).0 && verdict(10_240 * MIB, 48 * MIB).0);
        assert!(!verdict(10_240 * MIB, 50_000 * MIB).0);
        assert!(free("/") > 0 && free("/no/such/place") == 0);
        assert!(fill("/dev/full", 1).is_err());
    }
}
