//! The host's directories, volumes and memory, each at its place in the container.
//!
//! The file system with the shares is mounted outside the container's root, so that a container sees of it only what
//! was meant for it.

use std::os::fd::OwnedFd;

use agent_protocol::mount::{MountPlan, MountSource, SHARES_TAG, Secret, VOLUME_ROOT};
use rustix::fs::{Access, CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};
use rustix::process::{chdir, fchdir};

use super::mounts::{directory, mount_at};
use super::root::{DISK_OPTIONS, Outside, make_read_only};
use crate::failure::{Context, Failure};
use crate::slots;

/// In the agent's own root, which is the working directory while shares are taken from it.
const SHARES: &str = "run/shares";

/// Mounts all of `plans`. Called inside the container's root; `read_only` says that nobody writes to that.
pub fn mount_all(plans: &[MountPlan], outside: &Outside, read_only: bool) -> Result<(), Failure> {
    if plans.is_empty() {
        return Ok(());
    }
    fchdir(outside.root()).during("enter the agent's root")?;
    let trees = open_all(plans);
    chdir("/").during("chdir")?;
    if read_only {
        // For the mount points.
        mount_remount("/", MountFlags::empty(), c"").during("make the root writable")?;
    }
    for (plan, tree) in plans.iter().zip(trees?) {
        place(plan, tree)?;
    }
    if read_only { make_read_only() } else { Ok(()) }
}

/// A mount of each share that is nowhere yet.
fn open_all(plans: &[MountPlan]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    if plans.iter().any(|plan| matches!(plan.source, MountSource::Share(_))) {
        directory(SHARES, 0o700)?;
        mount_at(SHARES_TAG, SHARES, "virtiofs", MountFlags::NODEV, None)?;
    }
    let open = |plan: &MountPlan| {
        let path = match &plan.source {
            MountSource::Share(number) => format!("{SHARES}/{number}"),
            MountSource::Disk { device, slot } => mount_disk(device, *slot, plan.read_only)?,
            MountSource::Tmpfs { .. } | MountSource::Secrets(_) => return Ok(None),
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, &path, flags).during(&path).map(Some)
    };
    plans.iter().map(open).collect()
}

/// Mounts the volume on the disk `device` and gives the place of its files.
fn mount_disk(device: &str, slot: u8, read_only: bool) -> Result<String, Failure> {
    let device = device.trim_start_matches('/');
    // A machine that booted with the disk found it then.
    if rustix::fs::access(device, Access::EXISTS).is_err() {
        slots::probe(slot)?;
    }
    let place = format!("run/volume{slot}");
    directory(&place, 0o700)?;
    let (flags, options) = match read_only {
        // Nothing is written, not even what a power cut has left in the journal.
        true => (MountFlags::RDONLY, c"noload"),
        false => (MountFlags::empty(), DISK_OPTIONS),
    };
    mount_at(device, &place, "ext4", flags | MountFlags::NOATIME | MountFlags::NODEV, Some(options))?;
    Ok(format!("{place}/{VOLUME_ROOT}"))
}

fn place(plan: &MountPlan, tree: Option<OwnedFd>) -> Result<(), Failure> {
    let target = plan.target.as_str();
    for (at, _) in target.match_indices('/').skip(1) {
        directory(&target[..at], 0o755)?;
    }
    let is_file = match &tree {
        Some(tree) => {
            let stat = rustix::fs::fstat(tree).during(target)?;
            FileType::from_raw_mode(stat.st_mode) != FileType::Directory
        }
        None => false,
    };
    if is_file {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, target, flags, Mode::from_raw_mode(0o644)).during(target)?;
    } else {
        directory(target, 0o755)?;
    }
    match (&plan.source, tree) {
        (MountSource::Tmpfs { flags, data }, _) => {
            let data = std::ffi::CString::new(data.as_str()).unwrap_or_default();
            mount_at("tmpfs", target, "tmpfs", MountFlags::from_bits_retain(*flags), Some(&data))
        }
        (MountSource::Share(_) | MountSource::Disk { .. }, Some(tree)) => {
            let step = format!("mount on {target}");
            move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).during(&step)?;
            if plan.read_only {
                let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
                mount_remount(target, flags, c"").during(&step)?;
            }
            Ok(())
        }
        (MountSource::Share(_) | MountSource::Disk { .. }, None) => Ok(()),
        (MountSource::Secrets(secrets), _) => place_secrets(target, secrets),
    }
}

/// Files in memory that nobody changes; every user of the container may read them, whatever it runs as.
fn place_secrets(target: &str, secrets: &[Secret]) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("tmpfs", target, "tmpfs", flags, Some(c"mode=755,size=1m"))?;
    for secret in secrets {
        let path = format!("{target}/{}", secret.name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(0o444)).during(&path)?;
        let mut rest = secret.content.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest).during(&path)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | flags, c"").during(target)
}
