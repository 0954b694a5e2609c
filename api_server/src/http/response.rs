//! An answer, as bytes.

use serde::Serialize;

/// Status codes that the API has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With data.
    Ok,
    /// Done, there is nothing to say.
    NoContent,
    /// Refused.
    BadRequest,
    /// The body is larger than the server takes.
    PayloadTooLarge,
    /// Too many clients.
    ServiceUnavailable,
}

impl Status {
    /// Number and reason, as in a status line.
    fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::NoContent => "204 No Content",
            Status::BadRequest => "400 Bad Request",
            Status::PayloadTooLarge => "413 Payload Too Large",
            Status::ServiceUnavailable => "503 Service Unavailable",
        }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// Its body, JSON.
    pub body: Vec<u8>,
    /// The call was made in a way that will go away.
    pub deprecated: bool,
    /// The connection ends with it.
    pub close: bool,
}

impl Response {
    /// Done: no body.
    pub fn done() -> Self {
        Response { status: Status::NoContent, body: Vec::new(), deprecated: false, close: false }
    }

    /// Data with status 200.
    pub fn data(value: &impl Serialize) -> Self {
        Response::json(Status::Ok, value)
    }

    /// `value` with any status.
    pub fn json(status: Status, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("invariant: answers are plain data");
        Response { status, body, ..Response::done() }
    }

    /// The same answer on a connection that ends.
    pub fn closing(self) -> Self {
        Response { close: true, ..self }
    }

    /// Status line, headers and body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let connection = if self.close { "close" } else { "keep-alive" };
        let line = self.status.line();
        let mut head = format!("HTTP/1.1 {line}\r\nServer: Firecracker API\r\nConnection: {connection}\r\n");
        if self.deprecated {
            head.push_str("Deprecation: true\r\n");
        }
        // RFC 9110, section 8.6: a 204 has no length.
        if self.status != Status::NoContent {
            head.push_str("Content-Type: application/json\r\n");
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_without_data_has_neither_body_nor_length() {
        let text = String::from_utf8(Response::done().to_bytes()).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 204 No Content\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn data_comes_behind_its_length() {
        let response = Response { deprecated: true, ..Response::data(&[1, 2]) }.closing();
        let text = String::from_utf8(response.to_bytes()).unwrap();
        assert!(text.ends_with("\r\nContent-Length: 5\r\n\r\n[1,2]"), "{text}");
        assert!(
            text.contains("\r\nDeprecation: true\r\n") && text.contains("\r\nConnection: close\r\n"),
            "{text}"
        );
    }
}
