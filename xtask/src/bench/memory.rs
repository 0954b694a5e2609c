//! Memory of a VMM process without its guest's, from `/proc/PID/smaps`.

use anyhow::Context;

/// A mapping at least so large is guest memory: nothing else in a VMM is.
const GUEST_MAPPING_KIB: u64 = 16 << 10;

/// KiB of one process outside guest memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Pages that no other process shares, clean or dirty.
    pub private_kib: u64,
    /// Shared pages counted in proportion.
    pub pss_kib: u64,
}

/// Reads the footprint of process `pid`; `guest_files` are mapped into the guest (its kernel).
pub fn footprint(pid: u32, guest_files: &[&str]) -> anyhow::Result<Footprint> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).context("cannot read smaps")?;
    Ok(parse(&smaps, guest_files))
}

fn parse(smaps: &str, guest_files: &[&str]) -> Footprint {
    let mut total = Footprint::default();
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(key) = first.strip_suffix(':') else {
            let name = words.nth(4).unwrap_or_default();
            guest = guest_files.iter().any(|file| name.ends_with(file)) || name.contains("guest");
            continue;
        };
        let Some(kib) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
        match key {
            "Size" => guest |= kib >= GUEST_MAPPING_KIB,
            "Private_Clean" | "Private_Dirty" if !guest => total.private_kib += kib,
            "Pss" if !guest => total.pss_kib += kib,
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_and_the_guest_kernel_do_not_count() {
        let smaps = "00400000-00500000 r-xp 00000000 08:01 12 /usr/bin/lighter\nSize: 1024 kB\nPss: 100 kB\nPrivate_Clean: 60 kB\nPrivate_Dirty: 4 kB\n\
            7f00-7f01 rw-p 00000000 00:00 0 \nSize: 262144 kB\nPss: 9000 kB\nPrivate_Dirty: 9000 kB\n\
            7f02-7f03 rw-p 00000000 08:01 13 /cache/vmlinux\nSize: 9000 kB\nPss: 50 kB\nPrivate_Dirty: 50 kB\n";
        assert_eq!(parse(smaps, &["vmlinux"]), Footprint { private_kib: 64, pss_kib: 100 });
    }
}
