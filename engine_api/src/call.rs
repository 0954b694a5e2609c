//! One request, as an operation sees it.

use std::sync::Arc;

use engine::container::record::{self, Record};
use engine::dirs::Dirs;
use hyper::HeaderMap;
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;

use crate::operation::{Operation, ParamKind};
use crate::problem::{Kind, Problem};
use crate::service::Service;
use crate::tenant::Caller;
use crate::transfer::Upload;

/// The body of a request.
#[derive(Debug)]
pub enum Input {
    /// Read whole, because the operation takes JSON.
    Whole(Vec<u8>),
    /// To be read.
    Stream(Upload),
}

/// A request.
#[derive(Debug)]
pub struct Call {
    /// What it is to.
    pub operation: &'static Operation,
    /// The server.
    pub service: Arc<Service>,
    /// Who calls.
    pub caller: Caller,
    /// The parameters in the path, in order.
    pub path: Vec<String>,
    /// Those behind `?`, known to the operation and of the right kind.
    pub query: Vec<(String, String)>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub input: Input,
    /// The connection, if the client wants to make a stream of it.
    pub upgrade: Option<OnUpgrade>,
}

impl Call {
    /// The caller's directories.
    pub fn dirs(&self) -> &Dirs {
        &self.caller.dirs
    }

    /// The first parameter in the path.
    pub fn name(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }

    /// The container that the path names.
    pub fn container(&self) -> Result<Record, Problem> {
        Ok(record::find(self.dirs(), self.name())?)
    }

    /// The container that the path names, which must run.
    pub fn running(&self) -> Result<Record, Problem> {
        Ok(engine::verbs::running(self.dirs(), self.name())?)
    }

    /// All containers of the caller, oldest first.
    pub fn containers(&self) -> Vec<Arc<Record>> {
        self.service.records.list(self.dirs())
    }

    /// A parameter of the query.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is `true`.
    pub fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The client wants server-sent events.
    pub fn wants_events(&self) -> bool {
        self.header("accept").is_some_and(|accept| accept.contains(crate::reply::EVENTS))
    }

    /// The body as `T`; nothing is as good as `{}`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let Input::Whole(bytes) = &self.input else {
            return Err(Problem::new(Kind::HOST, "the operation takes no JSON"));
        };
        let text = if bytes.is_empty() { b"{}" } else { bytes.as_slice() };
        serde_json::from_slice(text)
            .map_err(|error| Problem::invalid(format!("the body is not what this takes: {error}")))
    }

    /// The body as a stream.
    pub fn upload(&mut self) -> Result<&mut Upload, Problem> {
        match &mut self.input {
            Input::Stream(upload) => Ok(upload),
            Input::Whole(_) => Err(Problem::new(Kind::HOST, "the operation takes no stream")),
        }
    }

    /// The time in ns since 1970 that a parameter says: RFC 3339, or seconds since 1970.
    pub fn moment(&self, name: &str) -> Result<Option<u64>, Problem> {
        self.text(name).map(|text| crate::convert::moment(name, text)).transpose()
    }
}

/// The query of a request to `operation`, each parameter known and of its kind.
pub fn parse_query(operation: &Operation, text: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut query: Vec<(String, String)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?);
        let Some(param) = operation.query.iter().find(|param| param.name == key) else {
            let known: Vec<_> = operation.query.iter().map(|param| param.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Problem::invalid(format!(
                "the query parameter {key:?} is unknown: there are {known}"
            )));
        };
        let bad =
            |what: String| Problem::invalid(format!("the query parameter {key}={value:?} is not {what}"));
        match param.kind {
            ParamKind::Flag if !matches!(value.as_str(), "true" | "false") => {
                return Err(bad("true or false".into()));
            }
            ParamKind::Number(least, most) => {
                let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                if !plain || !value.parse().is_ok_and(|number| (least..=most).contains(&number)) {
                    return Err(bad(format!("a number from {least} to {most}")));
                }
            }
            ParamKind::Choice(choices) if !choices.contains(&value.as_str()) => {
                return Err(bad(format!("one of {}", choices.join(", "))));
            }
            _ => {}
        }
        if !matches!(param.kind, ParamKind::List) && query.iter().any(|(other, _)| *other == key) {
            return Err(Problem::invalid(format!("the query parameter {key} stands there twice")));
        }
        query.push((key, value));
    }
    let missing = |kind: &ParamKind, name: &str| {
        matches!(kind, ParamKind::Required) && !query.iter().any(|(key, _)| key == name)
    };
    match operation.query.iter().find(|param| missing(&param.kind, param.name)) {
        Some(param) => Err(Problem::invalid(format!("the query parameter {} is missing", param.name))),
        None => Ok(query),
    }
}

/// Without percent signs; UTF-8 without zero bytes, which nothing that has a name contains.
pub fn decode(text: &str) -> Result<String, Problem> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Problem::invalid(format!("{text:?} is not UTF-8")))?;
    match decoded.contains('\0') {
        true => Err(Problem::invalid(format!("{text:?} has a zero byte"))),
        false => Ok(decoded.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
        let list = crate::operations::all().find(|operation| operation.id == "listContainers").unwrap();
        parse_query(list, text).map_err(|problem| problem.detail)
    }

    #[test]
    fn parameters_are_known_and_of_their_kind() {
        assert_eq!(parse("limit=5&label=a%3Db&label=c+d").unwrap()[2], ("label".into(), "c d".into()));
        for (bad, part) in [
            ("limit=0", "from 1"),
            ("limit=+5", "number"),
            ("limit=5&limit=6", "twice"),
            ("colour=red", "there are"),
            ("name=%ff", "UTF-8"),
            ("name=%00", "zero byte"),
            ("status=dead", "one of"),
        ] {
            assert!(parse(bad).unwrap_err().contains(part), "{bad}: {:?}", parse(bad));
        }
    }
}
