//! As much of HTTP/1.1 (RFC 9112) as the API needs: bytes to requests, responses to bytes. No I/O.

mod request;
mod response;

pub use self::request::{HttpError, Method, Parsed, Request, parse};
pub use self::response::{Response, Status};
