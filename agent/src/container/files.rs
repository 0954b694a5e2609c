//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`: files of the agent, laid over the image's, which
//! stay as they are.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;

use agent_protocol::message::ContainerPlan;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mounts::directory;
use crate::failure::{Context, Failure};

/// The files, to be written at any time.
pub struct Files {
    hostname: File,
    hosts: File,
    resolv_conf: File,
}

/// A file of the agent on its way to its place in the container.
pub struct Overlay {
    tree: OwnedFd,
    target: &'static str,
}

/// Makes the files, empty. Called in the agent's own root: a hostile image's links cannot lead anywhere from here.
pub fn make() -> Result<(Files, Vec<Overlay>), Failure> {
    let (hostname, first) = file("/run/hostname", "/etc/hostname")?;
    let (hosts, second) = file("/run/hosts", "/etc/hosts")?;
    let (resolv_conf, third) = file("/run/resolv.conf", "/etc/resolv.conf")?;
    Ok((Files { hostname, hosts, resolv_conf }, vec![first, second, third]))
}

fn file(source: &str, target: &'static str) -> Result<(File, Overlay), Failure> {
    let file = File::create(source).during(&format!("make {source}"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).during(&format!("take {source} for {target}"))?;
    Ok((file, Overlay { tree, target }))
}

impl Files {
    /// Writes what the plan says, over what an earlier one said.
    pub fn write(&self, plan: &ContainerPlan) -> Result<(), Failure> {
        let resolv_conf =
            plan.network.as_ref().map(|network| network.resolv_conf.as_str()).unwrap_or_default();
        let write = |mut file: &File, text: &str, name: &str| {
            let written =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
            written.during(&format!("write {name}"))
        };
        write(&self.hostname, &format!("{}\n", plan.hostname), "/etc/hostname")?;
        write(&self.hosts, &hosts(plan), "/etc/hosts")?;
        write(&self.resolv_conf, resolv_conf, "/etc/resolv.conf")
    }
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

/// Text of `/etc/hosts`.
pub fn hosts(plan: &ContainerPlan) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let network = plan.network.as_ref();
    let own = network
        .and_then(|network| network.interfaces.first()?.ipv4)
        .map_or("127.0.1.1".to_owned(), |(address, _)| address.to_string());
    let _ = writeln!(text, "{own}\t{}", plan.hostname);
    for (address, names) in network.iter().flat_map(|network| &network.extra_hosts) {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}
