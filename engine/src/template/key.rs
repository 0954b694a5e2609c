//! The name of a template: a digest of everything that it is made of.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use vmm::config::KernelConfig;
use vmm::snapshot::FORMAT_VERSION;

use crate::network::spec::Interfaces;

/// What a template is made of.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients<'a> {
    /// Kernel, initrd and command line.
    pub kernel: &'a KernelConfig,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// Its network interfaces.
    pub interfaces: Interfaces,
    /// It has a file system device.
    pub shares: bool,
    /// The image's root filesystem, a file whose name follows from its content; `None` for a machine whose drives are
    /// empty.
    pub rootfs: Option<&'a Path>,
    /// Has a writable layer on a disk.
    pub writable: bool,
    /// Gives memory back that it does not use.
    pub reclaims: bool,
}

/// A name for a template, the same for the same ingredients only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of `ingredients` as they are now, with the programs of this lighter.
    pub fn of(ingredients: &Ingredients<'_>) -> io::Result<Self> {
        let Ingredients { kernel, vcpus, mem_size_mib, interfaces, shares, rootfs, writable, reclaims } =
            ingredients;
        let mut text =
            format!("format {FORMAT_VERSION}\nagent {}\nvmm {}\n", programs::AGENT.id, programs::MACHINE.id);
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{name} {value}");
        };
        line("kernel", &identity(&kernel.path)?);
        if let Some(initrd) = &kernel.initrd {
            line("initrd", &identity(initrd)?);
        }
        line("cmdline", &kernel.cmdline);
        line("vcpus", vcpus);
        line("memory", mem_size_mib);
        line("network", interfaces);
        line("shares", shares);
        match rootfs.map(|rootfs| rootfs.file_name().unwrap_or_default()) {
            Some(name) => line("rootfs", &name.display()),
            None => line("no rootfs", &""),
        }
        line("writable", writable);
        line("reclaims", reclaims);
        let digest = Sha256::digest(text.as_bytes());
        Ok(Self(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()))
    }

    /// As a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl Key {
    pub(super) fn test(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Tells this version of a file from every other one without reading it.
fn identity(path: &Path) -> io::Result<String> {
    let file = path.metadata()?;
    Ok(format!("{}:{}:{}:{}.{}", file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ingredient_counts() {
        let base = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = base.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let kernel =
            KernelConfig { path: file("kernel"), initrd: None, cmdline: "quiet".into(), bare: false };
        let rootfs = file("rootfs");
        let plain = Ingredients {
            kernel: &kernel,
            vcpus: 1,
            mem_size_mib: 128,
            interfaces: Interfaces::None,
            shares: false,
            rootfs: Some(&rootfs),
            writable: true,
            reclaims: true,
        };
        let key = Key::of(&plain).unwrap();
        assert_eq!(Key::of(&plain).unwrap(), key);
        let other_file = file("other");
        let with_initrd = KernelConfig { initrd: Some(file("initrd")), ..kernel.clone() };
        let other_cmdline = KernelConfig { cmdline: "loud".into(), ..kernel.clone() };
        let changed = [
            Ingredients { kernel: &with_initrd, ..plain },
            Ingredients { kernel: &other_cmdline, ..plain },
            Ingredients { vcpus: 2, ..plain },
            Ingredients { mem_size_mib: 256, ..plain },
            Ingredients { interfaces: Interfaces::Taps(1), ..plain },
            Ingredients { interfaces: Interfaces::Taps(2), ..plain },
            Ingredients { interfaces: Interfaces::User, ..plain },
            Ingredients { shares: true, ..plain },
            Ingredients { rootfs: Some(&other_file), ..plain },
            Ingredients { rootfs: None, ..plain },
            Ingredients { writable: false, ..plain },
            Ingredients { reclaims: false, ..plain },
        ];
        for ingredients in &changed {
            assert_ne!(Key::of(ingredients).unwrap(), key, "{ingredients:?}");
        }
        std::fs::write(&kernel.path, "a newer kernel").unwrap();
        assert_ne!(Key::of(&plain).unwrap(), key);
    }
}
