//! Descriptors of others that the runtime waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// To be waited for as long as the result lives; within a runtime.
pub fn watched(fd: impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let own = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: an OwnedFd gives the same descriptor, which stays open, as long as it lives, and AsyncFd owns it.
    unsafe { AsyncFd::register(own) }.map_err(Into::into)
}
