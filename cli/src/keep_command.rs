//! `lighter keep`, the hidden verb that a keeper runs as.

use std::os::fd::RawFd;

use anyhow::Context as _;
use clap::Args;
use engine::dirs::Dirs;
use engine::keeper;
use engine::trace::Trace;

/// What the parent process leaves to a keeper.
#[derive(Args)]
pub struct KeepArgs {
    /// The container.
    id: String,
    /// Descriptor of the lock on its run directory.
    #[arg(long)]
    run_lock: RawFd,
    /// Descriptor of the lock on its data directory.
    #[arg(long)]
    data_lock: RawFd,
    /// Descriptor of the first client's connection.
    #[arg(long)]
    client: Option<RawFd>,
}

/// Keeps the container to its end.
pub fn keep(dirs: &Dirs, args: &KeepArgs, trace: Trace) -> anyhow::Result<()> {
    let container = keeper::inherit(dirs, &args.id, [args.run_lock, args.data_lock])?;
    let client =
        args.client.map(keeper::spawn::inherited).transpose().context("no connection to a client")?;
    Ok(keeper::keep(dirs, container, client.map(Into::into), trace)?)
}
