//! Interfaces of containers that are no VMs: veth pairs whose guest's ends wait, as `eth0` and so on, in a network
//! namespace without a process. With its last descriptor the kernel removes it and both ends of every pair.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::links::{index, with_netlink};

const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace of nobody.
#[derive(Debug)]
pub struct Namespace(pub OwnedFd);

impl Namespace {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        aside(|| {
            // SAFETY: the thread is new and does nothing else: no other thread changes its network.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(Self(File::open(OWN)?.into()))
        })
    }

    /// Makes the pair of `name`, in the namespace of this thread, and `eth<number>`, in this one.
    pub fn pair(&self, name: &str, number: usize) -> io::Result<()> {
        let here = File::open(OWN)?;
        aside(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            with_netlink(async |handle| {
                handle.link().add(LinkVeth::new(name, &format!("eth{number}")).build()).execute().await?;
                let outer = index(name).ok_or(rtnetlink::Error::RequestFailed)?;
                let moved = LinkUnspec::new_with_index(outer).setns_by_fd(here.as_raw_fd()).build();
                handle.link().set(moved).execute().await
            })
        })
    }
}

/// Runs `work` in a thread of its own, which may change its namespace.
fn aside<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
}
