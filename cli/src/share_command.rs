//! `lighter share`, the hidden verb that the server of a container's host directories runs as.

use std::os::fd::RawFd;

use clap::Args;

/// What the keeper leaves to it.
#[derive(Args)]
pub struct ShareArgs {
    /// Descriptor of what it serves.
    #[arg(long)]
    plan_fd: RawFd,
    /// Descriptor of the connection to the VMM.
    #[arg(long)]
    socket_fd: RawFd,
    /// Descriptor to say on whether it serves.
    #[arg(long)]
    status_fd: RawFd,
    /// Process ID of the keeper, with which it ends.
    #[arg(long)]
    parent: i32,
}

/// Serves until the VMM is gone.
pub fn share(args: &ShareArgs) -> anyhow::Result<()> {
    Ok(engine::volumes::serve(args.plan_fd, args.socket_fd, args.status_fd, args.parent)?)
}
