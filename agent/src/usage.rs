//! What the guest's memory is used for: `/proc/meminfo`, proc_meminfo(5).

use agent_protocol::message::Usage;
use rustix::fs::{CWD, Mode, OFlags};

use crate::failure::{Context, Failure};

/// As it is now.
pub fn read() -> Result<Usage, Failure> {
    // What is asked for stands within the first lines.
    let mut text = [0; 512];
    let file = rustix::fs::openat(CWD, "/proc/meminfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let count = file.and_then(|file| rustix::io::read(file, &mut text[..])).during("read /proc/meminfo")?;
    Ok(parse(text.get(..count).unwrap_or_default()))
}

fn parse(text: &[u8]) -> Usage {
    let mut usage = Usage::default();
    for line in text.split(|byte| *byte == b'\n') {
        let value = line.iter().filter(|byte| byte.is_ascii_digit());
        let value = value.fold(0u64, |sum, digit| sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
        match line {
            [b'M', b'e', b'm', b'T', ..] => usage.total_kib = value,
            [b'M', b'e', b'm', b'A', ..] => usage.available_kib = value,
            [b'B', b'u', b'f', ..] | [b'C', b'a', b'c', ..] => {
                usage.cached_kib = usage.cached_kib.wrapping_add(value);
            }
            _ => {}
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_told_apart() {
        let text = b"MemTotal:  500 kB\nMemFree: 1 kB\nMemAvailable: 300 kB\nBuffers: 5 kB\nCached: 20 kB\nSwapCached: 9 kB\n";
        assert_eq!(parse(text), Usage { total_kib: 500, available_kib: 300, cached_kib: 25 });
        assert_eq!(parse(b""), Usage::default());
    }
}
