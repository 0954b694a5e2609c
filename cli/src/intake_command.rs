//! `lighter intake`, the hidden verb that what reads images runs as.

use std::os::fd::RawFd;

use clap::Args;

/// What the caller leaves to it.
#[derive(Args)]
pub struct IntakeArgs {
    /// Descriptor of what it does.
    #[arg(long)]
    job_fd: RawFd,
    /// Descriptor of the connection to the caller.
    #[arg(long)]
    wire_fd: RawFd,
    /// Who starts it: root, user, or bare where the host permits no namespaces.
    #[arg(long, value_parser = start)]
    cage: engine::intake::Start,
}

fn start(text: &str) -> Result<engine::intake::Start, String> {
    text.parse().map_err(|()| "root, user or bare".to_owned())
}

/// Does one job.
pub fn intake(args: &IntakeArgs) -> anyhow::Result<()> {
    Ok(engine::intake::serve(args.job_fd, args.wire_fd, args.cage, None)?)
}
