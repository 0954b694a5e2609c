//! Forwarding by the host, which NAT needs: switched on, and off again if it was off.

use std::io;
use std::path::Path;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on, also of IPv6 if `ipv6`; the file `memory` says what was changed.
pub fn enable(memory: &Path, ipv6: bool) -> io::Result<()> {
    set(memory, IPV4, "0", "1")?;
    if ipv6 && std::fs::read_to_string(IPV6)?.trim() == "0" {
        // A host that forwards does not listen to routers any more, unless told to: it would lose its own way out.
        for interface in std::fs::read_dir(IPV6_INTERFACES)?.filter_map(Result::ok) {
            let switch = interface.path().join("accept_ra");
            set(memory, &switch.to_string_lossy(), "1", "2")?;
        }
        set(memory, IPV6, "0", "1")?;
    }
    Ok(())
}

/// Puts back what `memory` says.
pub fn restore(memory: &Path) -> io::Result<()> {
    let Ok(text) = std::fs::read_to_string(memory) else { return Ok(()) };
    for (switch, before) in text.lines().rev().filter_map(|line| line.split_once(' ')) {
        // An interface that is gone took its switch with it.
        let _ = std::fs::write(switch, before);
    }
    std::fs::remove_file(memory)
}

/// Changes a switch that is `from`, and remembers it.
fn set(memory: &Path, switch: &str, from: &str, to: &str) -> io::Result<()> {
    if std::fs::read_to_string(switch)?.trim() != from {
        return Ok(());
    }
    let before = std::fs::read_to_string(memory).unwrap_or_default();
    std::fs::write(memory, format!("{before}{switch} {from}\n"))?;
    std::fs::write(switch, to)
}
