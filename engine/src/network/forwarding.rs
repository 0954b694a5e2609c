//! IPv4 forwarding of the host, which NAT needs: switched on, and off again if it was off.

use std::io;
use std::path::Path;

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// Switches it on; notes in the file `memory` if it was off.
pub fn enable(memory: &Path) -> io::Result<()> {
    if std::fs::read_to_string(SWITCH)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(memory, "0\n")?;
    std::fs::write(SWITCH, "1\n")
}

/// Switches it off if `memory` says that it was.
pub fn restore(memory: &Path) -> io::Result<()> {
    if !memory.exists() {
        return Ok(());
    }
    std::fs::write(SWITCH, "0\n")?;
    std::fs::remove_file(memory)
}
