//! A kernel as a distribution ships it, for the test of what `lighter run --kernel` says about one: Debian's package
//! is fetched and unpacked, not installed, as installing it would change how the machine boots.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{deps, step};

/// Depends on the newest kernel of its kind, of the series that ours is built from. What an older one is packed with
/// takes minutes to unpack where ring 0 is emulated.
const PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// The kernel's bzImage, kept in `cache`. `None` without apt.
pub fn ensure(cache: &Path) -> anyhow::Result<Option<PathBuf>> {
    let kernel = cache.join(PACKAGE);
    if kernel.exists() {
        return Ok(Some(kernel));
    }
    if deps::find_program("apt-get").is_none() || deps::find_program("dpkg-deb").is_none() {
        return Ok(None);
    }
    step::step(&format!("fetching a kernel of Debian's: {PACKAGE}"), || fetch(cache, &kernel))?;
    Ok(Some(kernel))
}

fn fetch(cache: &Path, kernel: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let directory = tempfile::tempdir_in(cache)?;
    let depends = step::run_quietly(Command::new("apt-cache").args(["depends", "--important", PACKAGE]))?;
    let package = image_package(&depends).with_context(|| format!("{PACKAGE} depends on no linux-image"))?;
    step::run_quietly(Command::new("apt-get").current_dir(&directory).args(["-q", "download", package]))?;
    let script = "dpkg-deb -x ./*.deb . && cp boot/vmlinuz-* vmlinuz";
    step::run_quietly(Command::new("sh").current_dir(&directory).args(["-c", script]))?;
    std::fs::rename(directory.path().join("vmlinuz"), kernel).context("cannot keep the kernel")?;
    Ok(())
}

/// The package of the kernel itself, in what `apt-cache depends` prints.
fn image_package(depends: &str) -> Option<&str> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_the_kernel_is_found() {
        let printed = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.1+deb13-cloud-amd64\n";
        assert_eq!(image_package(printed), Some("linux-image-6.12.1+deb13-cloud-amd64"));
        assert_eq!(image_package("linux-image-6.12-cloud-amd64\n"), None);
    }
}
