//! What an instruction can end with other than success.

use vmm_sys_util::errno;

/// An x86 exception to be raised in the guest (Intel SDM 3A, chapter 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector number.
    pub vector: u8,
    /// Error code, for the vectors that push one.
    pub error_code: Option<u32>,
    /// New CR2, for a page fault.
    pub address: Option<u64>,
}

impl Exception {
    /// #UD.
    pub const INVALID_OPCODE: Exception = Exception { vector: 6, error_code: None, address: None };
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: Exception = Exception { vector: 7, error_code: None, address: None };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Exception = Exception { vector: 13, error_code: Some(0), address: None };
    /// #MF.
    pub const FLOATING_POINT: Exception = Exception { vector: 16, error_code: None, address: None };

    /// #PF at `address`.
    pub fn page_fault(address: u64, error_code: u32) -> Exception {
        Exception { vector: 14, error_code: Some(error_code), address: Some(address) }
    }
}

/// Why an instruction was not completed.
#[derive(Debug)]
pub enum Trap {
    /// It raises an exception; nothing of it happened.
    Exception(Exception),
    /// It is none that this module completes.
    Unsupported,
    /// KVM refused a call.
    Host(HostError),
}

/// A KVM call that completing an instruction needs has failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot complete an instruction: {call} failed: {source}")]
pub struct HostError {
    /// The call.
    pub call: &'static str,
    /// Why.
    pub source: errno::Error,
}

impl HostError {
    /// For `map_err`.
    pub fn of(call: &'static str) -> impl Fn(errno::Error) -> HostError {
        move |source| HostError { call, source }
    }
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Trap::Exception(exception)
    }
}

impl From<HostError> for Trap {
    fn from(error: HostError) -> Self {
        Trap::Host(error)
    }
}
