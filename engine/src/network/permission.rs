//! Whether this process may make a bridge, and what is missing if not.

use std::fs::OpenOptions;

use super::{nft, tap, user};

/// Number of CAP_NET_ADMIN (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;

/// What a bridge needs and this process has not; empty if all is there.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !has_capability(&status, CAP_NET_ADMIN) {
        missing.push("the capability CAP_NET_ADMIN (run lighter as root)".to_owned());
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open(tap::DEVICE) {
        missing.push(format!("access to {} ({error}; `modprobe tun` makes it)", tap::DEVICE));
    }
    if nft::find("nft").is_none() {
        missing.push("the program nft (Debian: apt-get install nftables)".to_owned());
    }
    missing
}

/// What a network in user mode needs and is not there; empty if all is there.
pub fn missing_for_user_mode() -> Vec<String> {
    let mut missing = Vec::new();
    if nft::find(user::PROGRAM).is_none() {
        missing.push("the program passt (Debian: apt-get install passt)".to_owned());
    }
    if !user::has_way_out() {
        missing.push("a default route of the host".to_owned());
    }
    missing
}

/// Whether `/proc/PID/status` says that the process has the capability.
fn has_capability(status: &str, number: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> number & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_decides() {
        let status = "Name:\tx\nCapPrm:\t0000000000001000\nCapEff:\t0000000000001000\n";
        assert!(has_capability(status, CAP_NET_ADMIN) && !has_capability(status, 21));
        assert!(!has_capability("CapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n", CAP_NET_ADMIN));
        assert!(!has_capability("", CAP_NET_ADMIN));
    }
}
