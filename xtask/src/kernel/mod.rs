//! The guest kernel: built once from Debian's source package, then found in the cache.
//!
//! ```text
//! inputs (version, fragment, patches, compiler) ─► hash ─► cache hit? ─► path
//!                                                    └─ miss: lock ─► source ─► config ─► compile ─► rename
//! ```

mod cache;
mod compile;
mod config;
mod inputs;
mod progress;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::cache::Cache;
use self::inputs::Inputs;
use crate::{deps, step};

/// What the command line must have where KVM emulates guest ring 0; the VMM includes the same file.
const EMULATED_RING0: &str = include_str!("../../../resources/kernel/emulated-ring0.cmdline");
/// A VMM that does not complete XSAVE for the guest needs a kernel that does without.
const WITHOUT_COMPLETION: &str = "noxsave";
/// Right on every host; the VMM of lighter passes it, a peer must be told.
const EVERYWHERE: &str = "noreplace-smp swiotlb=noforce";

/// Options of `cargo xtask kernel`.
#[derive(clap::Args)]
pub struct KernelArgs {
    /// Build even if the cache has it, into a scratch place, and compare the hashes.
    #[arg(long)]
    verify: bool,
}

/// `cargo xtask kernel`: builds if needed and prints the path.
pub fn run(args: &KernelArgs) -> anyhow::Result<()> {
    let path = ensure()?;
    if args.verify {
        verify(&path)?;
    }
    println!("{}", path.display());
    Ok(())
}

/// The cached kernel, built first where it is missing. Safe to call in several processes at once.
pub fn ensure() -> anyhow::Result<PathBuf> {
    deps::ensure(deps::KERNEL)?;
    let inputs = Inputs::read()?;
    let cache = Cache::open(inputs.hash())?;
    if let Some(path) = cache.find()? {
        return Ok(path);
    }
    let _lock = cache.lock()?;
    // Another process may have built it while this one waited for the lock.
    if let Some(path) = cache.find()? {
        return Ok(path);
    }
    let work = cache.fresh_work_dir()?;
    build(&inputs, &work, &cache.log())?;
    let path = cache.store(&work)?;
    // The source tree goes last: whoever waits for the kernel has it by now.
    step::step("removing the source tree", || cache::remove(&work))?;
    eprintln!("    guest kernel {}: {}", inputs.version(), path.display());
    Ok(path)
}

/// What a kernel command line must have on this host and only here (`docs/kernel.md`), for a peer VMM that
/// boots our kernel.
pub fn host_cmdline() -> anyhow::Result<String> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    Ok(peer_cmdline(has_hardware_virtualisation(&cpuinfo)))
}

fn peer_cmdline(hardware: bool) -> String {
    if hardware {
        EVERYWHERE.to_owned()
    } else {
        format!("{EVERYWHERE} {} {WITHOUT_COMPLETION}", EMULATED_RING0.trim_ascii())
    }
}

/// Whether the processor's flags show VT-x or AMD-V.
fn has_hardware_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Builds in the empty directory `work`; afterwards [`cache::OUT`] in it holds the [`cache::PRODUCTS`].
fn build(inputs: &Inputs, work: &Path, log: &Path) -> anyhow::Result<()> {
    let tree = work.join("tree");
    step::step(&format!("unpacking Linux {}", inputs.version()), || {
        source::unpack(&tree)?;
        source::patch(&tree, inputs.patches())
    })?;
    config::write(&tree, inputs.fragment())?;
    compile::vmlinux(&tree, log)?;
    let out = work.join(cache::OUT);
    std::fs::create_dir(&out)?;
    compile::strip(&tree.join("vmlinux"), &out.join("vmlinux"))?;
    std::fs::rename(tree.join("System.map"), out.join("System.map")).context("the build left no System.map")
}

/// Builds once more, elsewhere, and compares.
fn verify(cached: &Path) -> anyhow::Result<()> {
    let inputs = Inputs::read()?;
    let scratch = tempfile::tempdir()?;
    build(&inputs, scratch.path(), &scratch.path().join("build.log"))?;
    let (first, second) =
        (inputs::file_hash(cached)?, inputs::file_hash(&scratch.path().join(cache::OUT).join("vmlinux"))?);
    if first != second {
        bail!("two builds differ: {} has SHA-256 {first}, the second {second}", cached.display());
    }
    eprintln!("    two builds, one hash: {first}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_shows_in_the_flags_line_only() {
        assert!(has_hardware_virtualisation("flags\t\t: fpu svm sse\n"));
        assert!(has_hardware_virtualisation("model\t: x\nflags\t\t: vmx\n"));
        assert!(!has_hardware_virtualisation("flags\t\t: fpu vmmcall\nvmx flags\t: ept\n"));
    }

    #[test]
    fn a_peer_gets_the_quirks_on_emulating_hosts_only() {
        assert_eq!(peer_cmdline(true), EVERYWHERE);
        let line = peer_cmdline(false);
        assert!(line.contains(" clearcpuid=151,") && line.ends_with(" noxsave"), "{line}");
        assert!(!line.contains('\n'));
    }
}
