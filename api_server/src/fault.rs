//! What a client is told when a call is refused.

use crate::http::{Response, Status};

/// A refusal: becomes `{"fault_message": …}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Status code of the answer.
    pub status: Status,
    /// What, why and, where there is one, the fix.
    pub message: String,
}

impl Fault {
    /// A refusal with status 400, as nearly all of them are.
    pub fn new(message: impl Into<String>) -> Self {
        Fault { status: Status::BadRequest, message: message.into() }
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Fault::new(format!("An error occurred when deserializing the json body of a request: {error}."))
    }
}

impl From<Fault> for Response {
    fn from(fault: Fault) -> Self {
        Response::json(fault.status, &serde_json::json!({ "fault_message": fault.message }))
    }
}
