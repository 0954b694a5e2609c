//! The tools that the host runs in the container's file system: what changed, reading and writing trees as tar.
//!
//! Each runs in a process of its own, forked from the agent, and owns its connection to the host, so that neither a
//! pipe nor the agent's loop stands between a file and the host. The container's root is its root: no link of the
//! container leads out of it.

mod changes;
mod channel;
mod disks;
mod extents;
#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use agent_protocol::frame::Decoder;
use agent_protocol::tool::{DIRECTORY, FILE, Source, ToolPlan, WritePlan};
use archive::{ArchiveError, Incoming, On as _, Options, Owners, Target, Tree, Trust, extract};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{chdir, chroot, fchdir};

use crate::failure::{Context as _, Failure, check};
use channel::{Channel, Input, Output};
use disks::Disks;

type Result<T> = std::result::Result<T, ArchiveError>;

/// Where a container's files are.
pub struct Place<'a> {
    /// The root from which `upper` and `image` are seen: the agent's own.
    pub outside: BorrowedFd<'a>,
    /// What the container wrote.
    pub upper: &'a Path,
    /// Its image.
    pub image: &'a Path,
    /// The writable layer's block device.
    pub writable: Option<&'a str>,
    /// Makes the container's root that of the process. It finds everything by paths: the tool has no descriptors.
    pub enter: Box<dyn Fn(Mounts) -> io::Result<()> + 'a>,
}

/// What a tool is to see of a container's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// All that its processes see.
    With,
    /// Its own file system alone.
    Without,
}

/// Forks a tool that goes on with the connection `stream`. `decoder` has what came behind the plan, `unsent` what is to
/// be sent before anything else. `on_disk`: the host reads and writes large files on the disks.
pub fn spawn(
    plan: ToolPlan,
    place: Place<'_>,
    on_disk: bool,
    stream: &OwnedFd,
    decoder: Decoder,
    unsent: &[u8],
) -> std::result::Result<(), Failure> {
    // SAFETY: the agent has one thread, so the child may do all that a process may.
    let pid = check(unsafe { libc::fork() }).during("fork")?;
    if pid > 0 {
        return Ok(());
    }
    let code = match take_descriptors(stream, place.outside) {
        Ok((stream, outside)) => {
            let mut channel = Channel::new(stream, decoder, unsent.to_vec());
            let result = run(&plan, &place, &outside, on_disk, &mut channel);
            i32::from(channel.finish(result).is_err())
        }
        Err(_) => 1,
    };
    // SAFETY: _exit takes no pointers; nothing of the agent's is to be run at the child's end.
    unsafe { libc::_exit(code) }
}

/// Keeps the two descriptors and stderr, and closes everything else that is the agent's: pipes of other processes
/// would stay open with it, and connections too.
fn take_descriptors(stream: &OwnedFd, outside: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::io::ioctl_fionbio(stream, false)?;
    // SAFETY: dup2 and close_range take no pointers. Descriptors 0 and 1 are owned by nobody in the agent; the owners
    // of what is closed are never used or dropped, because the child ends in _exit.
    unsafe {
        check(libc::dup2(stream.as_raw_fd(), 0))?;
        check(libc::dup2(outside.as_raw_fd(), 1))?;
        check(libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) as libc::c_int)?;
        Ok((OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)))
    }
}

fn run(
    plan: &ToolPlan,
    place: &Place<'_>,
    outside: &OwnedFd,
    on_disk: bool,
    channel: &mut Channel,
) -> Result<()> {
    let disks = place.writable.filter(|_| on_disk).and_then(|device| Disks::find(outside, device));
    let enter = |mounts| (place.enter)(mounts).on("enter", Path::new("the container's root"));
    match plan {
        ToolPlan::Changes { ignored } => {
            go_to(outside).on("go to", Path::new("the agent's root"))?;
            channel.started()?;
            changes::list(place.upper, place.image, ignored, &mut Output::new(channel, disks))
        }
        ToolPlan::ChangesArchive { ignored } => {
            go_to(outside).on("go to", Path::new("the agent's root"))?;
            channel.started()?;
            changes::archive(place.upper, place.image, ignored, &mut Output::new(channel, disks))
        }
        ToolPlan::Read { path, name, follow } => {
            enter(Mounts::With)?;
            let tree = Tree::find(&Path::new("/").join(path), *follow)?;
            channel.started()?;
            let mut output = Output::new(channel, disks);
            let kind = if tree.is_directory() { DIRECTORY } else { FILE };
            output.write_all(&[kind]).on("send", Path::new(path))?;
            tree.pack(name, &mut output)
        }
        ToolPlan::ReadRoot => {
            enter(Mounts::Without)?;
            channel.started()?;
            Tree::find(Path::new("/"), true)?.pack(".", &mut Output::new(channel, disks))
        }
        ToolPlan::Write(plan) => {
            enter(Mounts::With)?;
            write(plan, disks, channel)
        }
    }
}

fn write(plan: &WritePlan, disks: Option<Disks<'_>>, channel: &mut Channel) -> Result<()> {
    let incoming = match &plan.source {
        Source::Archive => Incoming::Archive,
        Source::File { name } => Incoming::File { name },
        Source::Directory { name } => Incoming::Directory { name: name.as_deref() },
    };
    let target = Target::find(&Path::new("/").join(&plan.path), incoming)?;
    channel.started()?;
    let owners = if plan.keep_ids { Owners::Kept } else { Owners::Root };
    let options = Options { trust: Trust::Owner, owners };
    extract(&mut Input::new(channel, disks), &target, options, &mut |_| ())
}

/// A directory becomes the root of this process.
pub fn go_to(directory: impl AsFd) -> io::Result<()> {
    fchdir(directory)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// For a process that is in the container's root: a copy of its mount, without the mounts in it, becomes its root.
pub fn go_below_mounts() -> io::Result<()> {
    let root = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    go_to(&root)
}
