//! Errors as one line.

use std::error::Error;

/// The error and its causes.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent error has the text of its source.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryError;
    use crate::vm::BuildError;

    #[test]
    fn causes_are_joined_once() {
        let source = vmm_sys_util::errno::Error::new(libc::EINVAL);
        let error = BuildError::Memory(MemoryError::Slot { gpa: 0, size: 4096, source });
        let text = with_causes(&error);
        assert_eq!(text, "KVM refused the memory slot at 0x0 of 4096 bytes: Invalid argument (os error 22)");
    }
}
