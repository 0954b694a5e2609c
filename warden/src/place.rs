//! Where `cp`, `diff`, `export` and `commit` find the files of a container, running or not.
//!
//! A tool runs in a process of its own. What the container wrote is compared with its image below [`BASE`], which
//! becomes the tool's root first: a link that the container puts in its way leads to nothing of the host. Trees are
//! read and written in the container's own root and, where it has a user namespace, as the container's root.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use agent::failure::{Context as _, Failure, check};
use agent::tools::{Mounts, Place, go_below_mounts, go_to};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::Pid;

use crate::idmap;
use crate::names::{BASE, ROOT};

/// [`crate::names::CHANGES`] and [`crate::names::IMAGE`] as seen from [`BASE`].
const UPPER: &str = "/changes/upper";
const IMAGE: &str = "/image";

/// The warden's mounts, held open while its own root may be another one.
pub struct Base(OwnedFd);

impl Base {
    /// Called when everything is mounted, in the host's root.
    pub fn open() -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, BASE, flags, Mode::empty()).during("open the warden's mounts").map(Self)
    }

    /// For a warden that is in the container's root itself.
    pub fn of_bare(&self) -> Place<'_> {
        self.place(|mounts| match mounts {
            Mounts::With => Ok(()),
            Mounts::Without => go_below_mounts(),
        })
    }

    /// For a container with namespaces, whose root is `owner` on the host and whose main process is `main`.
    pub fn of_contained(&self, main: Option<Pid>, owner: u32) -> Place<'_> {
        self.place(move |mounts| {
            let map = idmap::namespace(owner).map_err(|failure| io::Error::other(failure.message))?;
            // Nothing is mounted in the root as the warden sees it.
            let root = match (main, mounts) {
                (Some(main), Mounts::With) => format!("/proc/{}/root", main.as_raw_nonzero()),
                _ => ROOT.to_owned(),
            };
            go_to(openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?;
            become_root(&map)
        })
    }

    fn place<'a>(&'a self, enter: impl Fn(Mounts) -> io::Result<()> + 'a) -> Place<'a> {
        let (upper, image) = (Path::new(UPPER), Path::new(IMAGE));
        Place { outside: self.0.as_fd(), upper, image, writable: None, enter: Box::new(enter) }
    }
}

/// Root of the user namespace `map`, and nothing outside it any more.
fn become_root(map: &OwnedFd) -> io::Result<()> {
    // SAFETY: these calls take integers, and no pointer but null; the process has one thread.
    unsafe {
        check(libc::setns(std::os::fd::AsRawFd::as_raw_fd(map), libc::CLONE_NEWUSER))?;
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setgid(0))?;
        check(libc::setuid(0))?;
    }
    Ok(())
}
