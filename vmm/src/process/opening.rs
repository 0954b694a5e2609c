//! Opens everything that a configuration names, while it has a name: what the VM is built from afterwards.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use devices::held::hold;
use devices::virtio::block::disk_options;
use devices::virtio::vsock;
use jailer::cage::{self, Limits};

use crate::config::{PmemConfig, VmConfig, VsockConfig};
use crate::emulation::detect;
use crate::vm::{console_options, kernel_options};
use crate::{kvm, snapshot};

/// Descriptors that a VM may have: its own are few, each vsock connection takes one or two.
const MAX_FILES: u64 = 4096;
/// Private memory beside the guest's: stacks, heap, what a snapshot copies during its pause.
const OWN_DATA: u64 = 256 << 20;
/// Threads beside the vCPUs': the saver's, and io_uring's workers.
const OWN_THREADS: u64 = 64;
/// What logs may come to.
const MIN_FILE_BYTES: u64 = 16 << 20;

/// What there is besides open files.
pub struct Given {
    /// Sockets on which the host waits for the guest's connections.
    pub sockets: Vec<cage::Given>,
    /// What the VM can need.
    pub limits: Limits,
}

/// Opens all of `config`. What cannot be opened is reported by whoever wants to use it.
pub fn open(config: &VmConfig) -> Given {
    let mut opened = Opened { largest: MIN_FILE_BYTES.max(config.memory().bytes()) };
    opened.file(&kvm::options(), Path::new(kvm::KVM_PATH));
    detect::modules();
    // Without it only saving fails, and says so.
    let _ = snapshot::prepare();
    let disks = config.disks.iter().chain(&config.plugged.disks);
    disks.for_each(|disk| opened.file(&disk_options(disk.read_only), &disk.path));
    let pmem = || config.pmem.iter().chain(&config.plugged.pmem);
    pmem().for_each(|pmem| opened.file(&disk_options(pmem.read_only), &pmem.path));
    if let Some(console) = &config.console_log {
        opened.file(&console_options(), console);
    }
    match &config.restore {
        Some(restore) => std::iter::once(&restore.snapshot).chain(&restore.bases).for_each(|directory| {
            opened.file(&snapshot::read_options(), &directory.join("state"));
            opened.file(&snapshot::read_options(), &directory.join("memory"));
        }),
        None => {
            let files = [&config.kernel.path].into_iter().chain(&config.kernel.initrd);
            files.for_each(|path| opened.file(&kernel_options(), path));
        }
    }
    if let Some(vsock) = &config.vsock {
        hold(&vsock.uds_path, vsock::listen(&vsock.uds_path));
    }
    if let Some(control) = &config.control {
        hold(control, UnixListener::bind(control).map(OwnedFd::from));
    }
    let private: u64 = pmem().filter(|pmem| pmem.read_only).map(size).sum();
    Given {
        sockets: config.vsock.iter().flat_map(waiting).map(cage::Given::Socket).collect(),
        limits: Limits {
            files: MAX_FILES,
            file_bytes: opened.largest,
            data_bytes: config.memory().bytes() + private + OWN_DATA,
            threads: u64::from(config.vcpus) + OWN_THREADS,
        },
    }
}

struct Opened {
    /// Size of the largest file, in bytes.
    largest: u64,
}

impl Opened {
    fn file(&mut self, options: &OpenOptions, path: &Path) {
        let file = options.open(path);
        if let Ok(metadata) = file.as_ref().map_err(drop).and_then(|file| file.metadata().map_err(drop)) {
            self.largest = self.largest.max(metadata.len());
        }
        hold(path, file.map(OwnedFd::from));
    }
}

fn size(pmem: &PmemConfig) -> u64 {
    std::fs::metadata(&pmem.path).map_or(0, |metadata| metadata.len().next_multiple_of(2 << 20))
}

/// Sockets beside the one of `vsock` to which a guest's connections go.
fn waiting(vsock: &VsockConfig) -> Vec<PathBuf> {
    let name = |path: &Path| path.file_name().map(|name| name.as_bytes().to_vec());
    let (Some(directory), Some(mut prefix)) = (vsock.uds_path.parent(), name(&vsock.uds_path)) else {
        return Vec::new();
    };
    prefix.push(b'_');
    let entries = || -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut found = entries().unwrap_or_default();
    found.retain(|path| name(path).is_some_and(|name| name.starts_with(&prefix)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_device_are_given() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["v.sock_1024", "v.sock_7", "v.sockets", "control.sock", "w.sock_1024"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let vsock = VsockConfig { guest_cid: 3, uds_path: directory.path().join("v.sock") };
        let mut found = waiting(&vsock);
        found.sort();
        assert_eq!(found, [directory.path().join("v.sock_1024"), directory.path().join("v.sock_7")]);
    }
}
