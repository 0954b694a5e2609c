//! The way into KVM: opens `/dev/kvm` and checks that it has what a VM here stands on.

use std::fs::OpenOptions;
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
use std::path::Path;
use std::sync::OnceLock;

use devices::held;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno;

/// Where KVM is.
pub const KVM_PATH: &str = "/dev/kvm";
/// The only API version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Capabilities without which no VM is built, with the Linux version that brought each.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP (Linux 4.4)"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (Linux 4.13)"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device node is not there.
    #[error(
        "/dev/kvm does not exist: load the module (`modprobe kvm_intel` or `modprobe kvm_amd`) and enable \
         virtualisation in the firmware, or nested virtualisation on the host's host"
    )]
    Missing,
    /// The user may not open it.
    #[error(
        "no permission to open /dev/kvm: join the group that owns it (`usermod -aG kvm $USER`) and log in again"
    )]
    Permission,
    /// It is there but cannot be opened.
    #[error("cannot open /dev/kvm")]
    Open(#[source] errno::Error),
    /// The node is something else, or a KVM from another age.
    #[error("/dev/kvm speaks API version {found}, not {API_VERSION}")]
    ApiVersion {
        /// What KVM_GET_API_VERSION said.
        found: i32,
    },
    /// A needed feature is not there.
    #[error("this host's KVM lacks {name}: a newer kernel is needed")]
    Capability {
        /// The capability.
        name: &'static str,
    },
}

/// The CPUID that KVM can give a guest. Asked once: it takes KVM a third of a millisecond to say.
pub fn supported_cpuid(kvm: &Kvm) -> Result<&'static [kvm_cpuid_entry2], errno::Error> {
    static SUPPORTED: OnceLock<Vec<kvm_cpuid_entry2>> = OnceLock::new();
    if let Some(entries) = SUPPORTED.get() {
        return Ok(entries);
    }
    let entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    Ok(SUPPORTED.get_or_init(|| entries.as_slice().to_vec()))
}

/// How `/dev/kvm` is opened.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

/// Opens `/dev/kvm`, close-on-exec.
pub fn open() -> Result<Kvm, KvmError> {
    let opened = match held::take(Path::new(KVM_PATH)) {
        // SAFETY: the descriptor is handed over, and it is that of /dev/kvm: the next call asks it for its version.
        Some(Ok(fd)) => Ok(unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }),
        Some(Err(error)) => Err(errno::Error::new(error.raw_os_error().unwrap_or(libc::EIO))),
        None => Kvm::new(),
    };
    let kvm = opened.map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO if !Path::new(KVM_PATH).exists() => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(KvmError::ApiVersion { found });
    }
    for (capability, name) in REQUIRED {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Capability { name });
        }
    }
    Ok(kvm)
}
