//! What this host's KVM is, for whoever wants to know before a VM is built.

use crate::emulation::detect;
use crate::kvm;

/// Why no VM can run here.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// KVM is missing, forbidden or too old.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// KVM is there but a first VM failed.
    #[error("KVM is there, but a virtual machine could not be tried")]
    Probe(#[from] detect::DetectError),
}

/// Opens KVM, checks what a VM needs of it and says whether it emulates guest ring 0.
pub fn emulates_ring0() -> Result<bool, HostError> {
    let kvm = kvm::open()?;
    Ok(detect::emulated_ring0(&kvm)?)
}
