//! Programs and files of Debian that a step needs: installs them as root with apt, otherwise names the
//! one command that does.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::step;

/// Something that must be on the machine, and the Debian package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Dependency {
    /// A program looked up in PATH, or an absolute path of a file.
    pub probe: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// What building the guest kernel needs.
pub const KERNEL: &[Dependency] = &[
    dep("/usr/src/linux-source-6.12.tar.xz", "linux-source-6.12"),
    dep("gcc", "gcc"),
    dep("make", "make"),
    dep("flex", "flex"),
    dep("bison", "bison"),
    dep("bc", "bc"),
    dep("xz", "xz-utils"),
    dep("patch", "patch"),
    dep("/usr/include/libelf.h", "libelf-dev"),
];

/// What the demo needs beside the kernel.
pub const DEMO: &[Dependency] = &[dep("/bin/busybox", "busybox-static")];

/// What the tests need beside the demo's.
pub const TEST: &[Dependency] = &[
    dep("docker-registry", "docker-registry"),
    dep("skopeo", "skopeo"),
    dep("umoci", "umoci"),
    dep("buildah", "buildah"),
    dep("debootstrap", "debootstrap"),
    dep("fsck.erofs", "erofs-utils"),
    dep("e2fsck", "e2fsprogs"),
    dep("getfattr", "attr"),
    dep("curl", "curl"),
    dep("ip", "iproute2"),
    dep("nft", "nftables"),
    dep("passt", "passt"),
    dep("runc", "runc"),
    dep("chromium", "chromium"),
    dep("setcap", "libcap2-bin"),
    dep("openssl", "openssl"),
];

/// What the engine's benchmark needs beside the demo.
pub const BENCH_ENGINE: &[Dependency] = &[dep("sshd", "openssh-server"), dep("ssh", "openssh-client")];

/// What the benchmarks need beside the tests'.
pub const BENCH: &[Dependency] = &[dep("qemu-system-x86_64", "qemu-system-x86")];

const fn dep(probe: &'static str, package: &'static str) -> Dependency {
    Dependency { probe, package }
}

/// Makes sure that everything in `wanted` is there.
pub fn ensure(wanted: &[Dependency]) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|d| !present(d.probe)).map(|d| d.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {packages}");
    if !rustix::process::geteuid().is_root() {
        bail!("missing: {packages}\nInstall them with:\n    sudo sh -c '{by_hand}'");
    }
    if find_program("apt-get").is_none() {
        bail!(
            "missing: {packages} (names of Debian packages), and this system has no apt-get; install their equivalents"
        );
    }
    step::step(&format!("installing Debian packages: {packages}"), || {
        // The package lists may be absent or old: refresh them once before giving up on a package.
        if install(&missing).is_err() {
            step::run_quietly(apt().arg("update"))?;
            install(&missing)?;
        }
        Ok(())
    })
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    step::run_quietly(apt().args(["install", "-y", "--no-install-recommends"]).args(packages)).map(drop)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=120"]);
    command
}

fn present(probe: &str) -> bool {
    if probe.starts_with('/') { Path::new(probe).exists() } else { find_program(probe).is_some() }
}

/// Looks a program up in PATH and in the directories that an ordinary user's PATH leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_every_system_is_found_and_an_invented_one_is_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-7f3a").is_none());
        assert!(!present("/no/such/file"));
    }
}
