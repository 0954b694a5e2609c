//! The guest kernel: built once from Debian's source package, then found in the cache.

use std::path::PathBuf;

/// Options of `cargo xtask kernel`.
#[derive(clap::Args)]
pub struct KernelArgs {
    /// Build even if the cache has it, into a scratch place, and compare the hashes.
    #[arg(long)]
    verify: bool,
}

/// `cargo xtask kernel`: builds if needed and prints the path.
pub fn run(args: &KernelArgs) -> anyhow::Result<()> {
    let _ = args.verify;
    println!("{}", ensure()?.display());
    Ok(())
}

/// The cached kernel, built first where it is missing.
pub fn ensure() -> anyhow::Result<PathBuf> {
    // Replaced by the kernel helper.
    anyhow::bail!("the kernel build is not there yet")
}

/// What a kernel command line must have on this host and only here (`docs/kernel.md`), for a peer VMM that
/// boots our kernel.
pub fn host_cmdline() -> anyhow::Result<String> {
    anyhow::bail!("the kernel flags are not there yet")
}
