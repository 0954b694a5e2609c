//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`: files of the agent, laid over the image's, which
//! stay as they are.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use agent_protocol::message::ContainerPlan;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mounts::directory;
use crate::failure::{Context, Failure, last_errno};

/// A file of the agent on its way to its place in the container.
pub struct Overlay {
    tree: OwnedFd,
    target: &'static str,
}

/// Writes the files. Called in the agent's own root: a hostile image's links cannot lead anywhere from here.
pub fn prepare(plan: &ContainerPlan) -> Result<Vec<Overlay>, Failure> {
    let resolv_conf = plan.network.as_ref().map(|network| network.resolv_conf.as_str()).unwrap_or_default();
    let files = [
        ("/run/hostname", "/etc/hostname", format!("{}\n", plan.hostname)),
        ("/run/hosts", "/etc/hosts", hosts(plan)),
        ("/run/resolv.conf", "/etc/resolv.conf", resolv_conf.to_owned()),
    ];
    files.into_iter().map(|(source, target, text)| overlay(source, target, &text)).collect()
}

fn overlay(source: &str, target: &'static str, text: &str) -> Result<Overlay, Failure> {
    std::fs::write(source, text).during(&format!("write {source}"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).during(&format!("take {source} for {target}"))?;
    Ok(Overlay { tree, target })
}

/// Lays the files over the container's. Called inside its root.
pub fn lay(overlays: Vec<Overlay>) -> Result<(), Failure> {
    directory("/etc", 0o755)?;
    for Overlay { tree, target } in overlays {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, target, flags, Mode::from_raw_mode(0o644))
            .during(&format!("make {target}"))?;
        move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .during(&format!("mount on {target}"))?;
    }
    Ok(())
}

fn hosts(plan: &ContainerPlan) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let network = plan.network.as_ref();
    let own = network
        .and_then(|network| network.ipv4)
        .map_or("127.0.1.1".to_owned(), |(address, _)| address.to_string());
    let _ = writeln!(text, "{own}\t{}", plan.hostname);
    for (address, names) in network.iter().flat_map(|network| &network.extra_hosts) {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// Adds the host's entropy to the guest's generator and credits it. A kernel that refuses goes on with what
/// it has (RDRAND, virtio-rng).
pub fn credit_entropy(entropy: &[u8; 32]) {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        bytes: libc::c_int,
        buffer: [u8; 32],
    }
    /// `_IOW('R', 0x03, int[2])`, random(4).
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    let Ok(random) = std::fs::File::open("/dev/urandom") else { return };
    let info = PoolInfo { entropy_bits: 256, bytes: 32, buffer: *entropy };
    // SAFETY: the ioctl reads a rand_pool_info and the `bytes` bytes that follow its header, all in `info`.
    if unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&random), RNDADDENTROPY, &raw const info) } < 0 {
        eprintln!("lighter-agent: the host's entropy was not taken: {}", last_errno());
    }
}
