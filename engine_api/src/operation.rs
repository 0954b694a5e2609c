//! One operation of the API: what it takes, what it gives, what does it. The router and the OpenAPI document both come
//! from these, so neither can know what the other does not.

use hyper::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::call::Call;
use crate::problem::{Kind, Problem};
use crate::reply::Reply;

/// Does it; on a thread that may wait.
pub type Run = fn(&mut Call) -> Result<Reply, Problem>;

/// An operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Method and path; a segment such as `{container}` is a parameter.
    pub method: &'static Method,
    /// The path.
    pub path: &'static str,
    /// Unique name.
    pub id: &'static str,
    /// Group in the document.
    pub tag: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// What may stand behind `?`.
    pub query: &'static [Param],
    /// Headers with a meaning for it.
    pub headers: &'static [Param],
    /// The request's body.
    pub takes: Content,
    /// Good answers: status, body, when.
    pub gives: &'static [(u16, Content, &'static str)],
    /// Problems beside those that every operation may have.
    pub problems: &'static [Kind],
    /// Does it.
    pub run: Run,
}

/// Problems that every operation may have.
pub const COMMON: [Kind; 10] = [
    Kind::INVALID,
    Kind::UNAUTHORIZED,
    Kind::FORBIDDEN,
    Kind::NOT_FOUND,
    Kind::TIMEOUT,
    Kind::TOO_LARGE,
    Kind::MEDIA_TYPE,
    Kind::BUSY,
    Kind::HOST,
    Kind::UNAVAILABLE,
];

/// A parameter of the query or a header.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: ParamKind,
    /// What it means.
    pub about: &'static str,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug)]
pub enum ParamKind {
    /// `true` or `false`
    Flag,
    /// A whole number in a range.
    Number(u64, u64),
    /// Any text.
    Text,
    /// A text that has to be there.
    Required,
    /// Any texts: it may stand there several times.
    List,
    /// One of these.
    Choice(&'static [&'static str]),
}

/// Makes the schema of a type.
pub type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// What a body is.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// There is none.
    None,
    /// JSON.
    Json(MakeSchema),
    /// JSON, or nothing, which means `{}`.
    MaybeJson(MakeSchema),
    /// JSON, or server-sent events whose `data` it is, where the client accepts these.
    JsonOrEvents(MakeSchema),
    /// Server-sent events.
    Events(MakeSchema),
    /// Bytes of this type.
    Bytes(&'static str),
    /// One of several.
    Any(&'static [Content]),
}

/// For [`Content`]: the schema of `T`.
pub fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

impl Content {
    /// The body is read as JSON.
    pub fn is_json(&self) -> bool {
        matches!(self, Self::Json(_) | Self::MaybeJson(_) | Self::JsonOrEvents(_))
    }
}

/// A parameter.
pub const fn param(name: &'static str, kind: ParamKind, about: &'static str) -> Param {
    Param { name, kind, about }
}
