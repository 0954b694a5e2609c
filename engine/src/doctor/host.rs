//! The host's kernel and what it offers: TUN, nftables, passt, cgroups, user namespaces.

use std::path::Path;

use rustix::system::uname;

use super::{Check, Status};
use crate::network::permission;

/// The oldest kernel with everything that lighter asks for: process descriptors that can be waited for.
const OLDEST_KERNEL: (u32, u32) = (5, 4);

/// `host_kernel`, `tun`, `network`, `user_network`, `cgroups` and `user_namespaces`.
pub fn checks() -> Vec<Check> {
    let release = uname().release().to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    vec![
        host_kernel(&release),
        tun(),
        network(&permission::missing()),
        user_network(&permission::missing_for_user_mode()),
        cgroups(&mounts),
        user_namespaces(),
    ]
}

fn host_kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Check::ok("host_kernel", format!("Linux {release}"), "new enough");
    }
    let (major, minor) = OLDEST_KERNEL;
    let meaning = "lighter is neither made for nor tried on kernels so old";
    let fix = format!("use Linux {major}.{minor} or newer");
    Check::bad("host_kernel", Status::Warn, format!("Linux {release}"), meaning, fix)
}

fn tun() -> Check {
    match Path::new("/dev/net/tun").exists() {
        true => Check::ok("tun", "/dev/net/tun is there", "it connects guests to a bridge"),
        false => Check::bad(
            "tun",
            Status::Warn,
            "/dev/net/tun is not there",
            "containers have no network but loopback",
            "load the module: `modprobe tun`",
        ),
    }
}

fn network(missing: &[String]) -> Check {
    if missing.is_empty() {
        return Check::ok("network", "bridge and NAT can be made", "--network bridge works");
    }
    Check::bad(
        "network",
        Status::Warn,
        "this user cannot make a bridge",
        "containers have a network in user mode, if that works, and are not in networks together",
        format!("what is missing: {}", missing.join(" and ")),
    )
}

fn user_network(missing: &[String]) -> Check {
    if missing.is_empty() {
        return Check::ok("user_network", "passt is there", "--network user works, also without root");
    }
    Check::bad(
        "user_network",
        Status::Warn,
        "there is no network in user mode",
        "containers of users without root have no network but loopback",
        format!("what is missing: {}", missing.join(" and ")),
    )
}

fn cgroups(mounts: &str) -> Check {
    const MEANING: &str = "limits for the VMM processes can be set";
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    let unified = mounts.lines().any(|line| line.starts_with("cgroup2 /sys/fs/cgroup cgroup2"));
    match (has("cgroup2"), has("cgroup")) {
        (true, false) => Check::ok("cgroups", "version 2", MEANING),
        (true, true) if unified => Check::ok("cgroups", "version 2", MEANING),
        (true, true) => Check::ok("cgroups", "version 1 and 2 side by side (hybrid)", MEANING),
        (false, true) => Check::ok("cgroups", "version 1", MEANING),
        (false, false) => Check::bad(
            "cgroups",
            Status::Warn,
            "no cgroups are mounted",
            "nothing limits what a VMM process takes beside its guest's memory",
            "mount them: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`",
        ),
    }
}

fn user_namespaces() -> Check {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let debian = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone").unwrap_or_default();
    if limit.trim().parse::<u64>().unwrap_or_default() > 0 && debian.trim() != "0" {
        return Check::ok("user_namespaces", "users may make them", "a VMM of a user can be confined");
    }
    Check::bad(
        "user_namespaces",
        Status::Warn,
        "users may not make user namespaces",
        "a VMM that root did not start cannot be confined in namespaces",
        "`sysctl user.max_user_namespaces=15000`, on Debian also `sysctl kernel.unprivileged_userns_clone=1`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(host_kernel("6.12.3-amd64").status, Status::Ok);
        assert_eq!(host_kernel("5.4.0").status, Status::Ok);
        assert_eq!(host_kernel("5.3.18").status, Status::Warn);
        assert_eq!(host_kernel("4.19").status, Status::Warn);
        assert_eq!(host_kernel("odd").status, Status::Warn);
    }

    #[test]
    fn cgroup_versions_are_told_apart() {
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n";
        let hybrid = format!("{v1}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        assert_eq!(cgroups(v1).finding, "version 1");
        assert!(cgroups(&hybrid).finding.contains("hybrid"));
        assert_eq!(cgroups("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").finding, "version 2");
        assert_eq!(cgroups("proc /proc proc rw 0 0\n").status, Status::Warn);
    }

    #[test]
    fn a_missing_privilege_is_told_with_its_fix() {
        let check = network(&["the capability CAP_NET_ADMIN".to_owned()]);
        assert!(check.status == Status::Warn && check.fix.contains("CAP_NET_ADMIN"));
    }
}
