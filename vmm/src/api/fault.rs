//! The VM's errors as a client of the API sees them.

use std::error::Error;

use api_server::Fault;

use crate::text::with_causes;

/// `what`, in Firecracker's words, then why.
pub fn refused(what: &str, error: &dyn Error) -> Fault {
    Fault::new(format!("{what}: {}", with_causes(error)))
}

/// What Firecracker has and lighter does not, with the fix.
pub fn not_offered(what: &str, fix: &str) -> Fault {
    Fault::new(format!("{what} is not offered by lighter: {fix}. See docs/api.md"))
}
