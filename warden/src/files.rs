//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`, laid over the image's; and the image's own `/etc/passwd` and
//! `/etc/group`, read without leaving its root.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::chown;

use agent::container::files::hosts;
use agent::failure::{Context as _, Failure};
use agent::process::identity;
use agent_protocol::message::{ContainerPlan, ProcessPlan};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::bundle::Account;
use crate::names::{BUNDLE, ROOT};

/// Files that every container gets, below `/etc`.
pub const NAMES: &[&str] = &["hostname", "hosts", "resolv.conf"];
/// As much of the image's files as is read: stops a hostile image from filling memory.
const MAX_FILE: u64 = 1 << 20;

/// Where the file `name` is for the host.
pub fn path(name: &str) -> String {
    format!("{BUNDLE}/etc-{name}")
}

/// Writes the files for a container whose root is `owner` on the host.
pub fn write(plan: &ContainerPlan, owner: u32) -> Result<(), Failure> {
    let resolv_conf = plan.network.as_ref().map(|network| network.resolv_conf.clone()).unwrap_or_default();
    let texts = [format!("{}\n", plan.hostname), hosts(plan), resolv_conf];
    for (name, text) in NAMES.iter().zip(texts) {
        let path = path(name);
        fs::write(&path, text).and_then(|()| chown(&path, Some(owner), Some(owner))).during(&path)?;
    }
    Ok(())
}

/// Who `plan` means, by the files of the container.
pub fn account(plan: &ProcessPlan) -> Result<Account, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, ROOT, flags, Mode::empty()).during("open the container's root")?;
    let read = |path: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat2(
            root.as_fd(),
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        let mut bytes = Vec::new();
        if let Ok(file) = file {
            let _ = fs::File::from(file).take(MAX_FILE).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let who =
        identity::identify(&plan.user, &plan.additional_groups, &read("etc/passwd"), &read("etc/group"))?;
    Ok(Account { uid: who.uid, gid: who.gid, groups: who.groups, home: who.home })
}
