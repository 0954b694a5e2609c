//! `lighter warden`, the hidden verb that a warden runs as.

use std::os::fd::RawFd;

use clap::Args;

/// What a keeper leaves to a warden.
#[derive(Args)]
pub struct WardenArgs {
    /// Descriptor with the configuration.
    #[arg(long)]
    config_fd: RawFd,
    /// Descriptor for events.
    #[arg(long)]
    event_fd: RawFd,
    /// Process ID of the keeper.
    #[arg(long)]
    parent: u32,
}

/// Serves the container to its end.
pub fn run(args: &WardenArgs) -> u8 {
    let WardenArgs { config_fd, event_fd, parent } = *args;
    u8::try_from(warden::run(&warden::Args { config_fd, event_fd, parent })).unwrap_or(u8::MAX)
}
