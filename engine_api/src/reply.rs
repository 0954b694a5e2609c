//! What an operation answers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::body::{Body, Chunks};
use crate::problem::{Kind, Problem};

/// Type of JSON bodies.
pub const JSON: &str = "application/json";
/// Type of problems, RFC 9457.
pub const PROBLEM: &str = "application/problem+json";
/// Type of server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// An answer that has to be waited for, without a thread.
pub type Later = Pin<Box<dyn Future<Output = Result<Reply, Problem>> + Send>>;

/// An answer.
pub enum Reply {
    /// Ready to be sent.
    Ready(Box<Response<Body>>),
    /// It comes.
    Later(Later),
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(response) => write!(f, "Ready({})", response.status()),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

impl Reply {
    /// 200 with `value`.
    pub fn json(value: &impl Serialize) -> Result<Self, Problem> {
        Self::json_with(200, value)
    }

    /// `status` with `value`.
    pub fn json_with(status: u16, value: &impl Serialize) -> Result<Self, Problem> {
        let mut text = serde_json::to_vec(value).map_err(|error| Problem::of(Kind::HOST, &error))?;
        text.push(b'\n');
        Ok(Self::whole(status, JSON, text))
    }

    /// A whole body.
    pub fn whole(status: u16, kind: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self::Ready(Box::new(response(status, Some(kind), Body::Whole(Some(bytes.into())))))
    }

    /// 204
    pub fn done() -> Self {
        Self::Ready(Box::new(response(204, None, Body::empty())))
    }

    /// 200 with chunks as they come.
    pub fn stream(kind: &'static str, first: Option<Bytes>, chunks: Chunks) -> Self {
        let reply = response(200, Some(kind), Body::Stream(first, chunks));
        Self::Ready(Box::new(reply)).with("cache-control", "no-store")
    }

    /// The same with one more header; one whose value cannot stand in a header is left out.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        if let (Self::Ready(response), Ok(value)) = (&mut self, HeaderValue::from_str(value)) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        self
    }
}

/// A response with a type of body.
pub fn response(status: u16, kind: Option<&'static str>, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    response
}

/// A problem as a response.
pub fn refusal(problem: &Problem, request_id: &str) -> Response<Body> {
    let mut text = serde_json::to_vec(&problem.body(request_id)).unwrap_or_default();
    text.push(b'\n');
    let mut response = response(problem.kind.status, Some(PROBLEM), Body::Whole(Some(text.into())));
    if problem.kind == Kind::UNAUTHORIZED {
        let value = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(hyper::header::WWW_AUTHENTICATE, value);
    }
    response
}
