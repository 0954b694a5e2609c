//! What the guest's memory is used for: `/proc/meminfo`, proc_meminfo(5).

use agent_protocol::message::Usage;

use crate::failure::{Context, Failure};

/// As it is now.
pub fn read() -> Result<Usage, Failure> {
    let text = std::fs::read_to_string("/proc/meminfo")
        .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO));
    Ok(parse(&text.during("read /proc/meminfo")?))
}

fn parse(text: &str) -> Usage {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let cached: [u64; 2] = ["Buffers", "Cached"].map(field);
    Usage {
        total_kib: field("MemTotal"),
        available_kib: field("MemAvailable"),
        cached_kib: cached.iter().fold(0, |sum, part| sum.saturating_add(*part)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_by_their_whole_names() {
        let text = "MemTotal:  500 kB\nMemFree: 1 kB\nMemAvailable: 300 kB\nBuffers: 5 kB\nCached: 20 kB\nSwapCached: 9 kB\n";
        assert_eq!(parse(text), Usage { total_kib: 500, available_kib: 300, cached_kib: 25 });
        assert_eq!(parse(""), Usage::default());
    }
}
