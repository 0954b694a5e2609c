//! From a request to its operation, and from that to an answer.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request, Response};

use crate::body::Body;
use crate::call::{self, Call, Input};
use crate::operation::{Content, Operation, ParamKind};
use crate::operations;
use crate::problem::{Kind, Problem};
use crate::reply::{self, Reply};
use crate::service::Service;
use crate::tenant::Caller;
use crate::transfer::{self, Upload};

/// Longest JSON of a request.
pub const MAX_JSON: usize = 1 << 20;
/// Longest path with its query.
const MAX_TARGET: usize = 8 << 10;

/// What became of a request, for the log and the figures.
#[derive(Debug)]
pub struct Answer {
    /// The answer.
    pub response: Response<Body>,
    /// The operation, if one was found.
    pub operation: &'static str,
    /// The tenant that asked.
    pub tenant: Option<String>,
    /// Why it failed, if it did.
    pub problem: Option<Problem>,
}

/// Answers `request`, which has the ID `id`.
pub async fn answer(service: &Arc<Service>, request: Request<Incoming>, id: &str) -> Answer {
    let mut answer =
        Answer { response: Response::new(Body::empty()), operation: "none", tenant: None, problem: None };
    match handle(service, request, &mut answer).await {
        Ok(response) => answer.response = response,
        Err(problem) => {
            answer.response = reply::refusal(&problem, id);
            answer.problem = Some(problem);
        }
    }
    answer
}

async fn handle(
    service: &Arc<Service>,
    mut request: Request<Incoming>,
    answer: &mut Answer,
) -> Result<Response<Body>, Problem> {
    if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > MAX_TARGET) {
        return Err(Problem::invalid(format!("the path with its query is longer than {MAX_TARGET} bytes")));
    }
    let (operation, path) = find(request.method(), request.uri().path())?;
    answer.operation = operation.id;
    let caller = if operation.tag == operations::OPEN {
        Caller::new(&service.dirs, None)
    } else {
        caller(service, &request)?
    };
    answer.tenant = caller.tenant.as_ref().map(|tenant| tenant.name.clone());
    let query = call::parse_query(operation, request.uri().query().unwrap_or_default())?;
    check_headers(operation, &request)?;
    let upgrade = request.extensions_mut().remove();
    let (head, mut body) = request.into_parts();
    let input = match operation.takes {
        content if content.is_json() => Input::Whole(transfer::whole(&mut body, MAX_JSON).await?),
        Content::None => {
            if !transfer::whole(&mut body, 64).await?.is_empty() {
                return Err(Problem::invalid("this takes no body"));
            }
            Input::Whole(Vec::new())
        }
        _ => Input::Stream(Upload::new(body, caller.disk_left()?)),
    };
    let mut call = Call {
        operation,
        service: Arc::clone(service),
        caller,
        path,
        query,
        headers: head.headers,
        input,
        upgrade,
    };
    let worked = tokio::task::spawn_blocking(move || {
        if operation.tag != operations::OPEN {
            call.service.prepare(&call.caller)?;
        }
        (operation.run)(&mut call)
    });
    let mut reply =
        worked.await.map_err(|_| Problem::new(Kind::HOST, "the operation broke down; see the log"))??;
    loop {
        match reply {
            Reply::Ready(response) => return Ok(*response),
            Reply::Later(later) => reply = later.await?,
        }
    }
}

/// The operation of a method and a path, with the parameters in the path.
pub fn find(method: &Method, path: &str) -> Result<(&'static Operation, Vec<String>), Problem> {
    let mut others = Vec::new();
    // A name in the table before a parameter: `/v1/images/load` is no image.
    let mut best: Option<(&'static Operation, Vec<&str>)> = None;
    for operation in operations::all() {
        let Some(found) = matches(operation.path, path) else { continue };
        if operation.method != method {
            others.push(operation.method.as_str());
        } else if best.as_ref().is_none_or(|(_, than)| found.len() < than.len()) {
            best = Some((operation, found));
        }
    }
    if let Some((operation, found)) = best {
        return Ok((operation, found.into_iter().map(call::decode).collect::<Result<_, _>>()?));
    }
    let path: String = path.chars().take(200).collect();
    Err(match others.as_slice() {
        [] => Problem::new(Kind::NO_PATH, format!("there is no {path}; GET /v1/openapi.json lists all")),
        methods => Problem::new(Kind::METHOD, format!("{path} takes {}", methods.join(", "))),
    })
}

/// The parameters, if `path` is one of `pattern`.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut parameters = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(parameters),
            (Some(name), Some(value)) if name.starts_with('{') && !value.is_empty() => parameters.push(value),
            (Some(name), Some(value)) if name == value => {}
            _ => return None,
        }
    }
}

/// Whose token the request has, where tokens are asked for.
fn caller(service: &Service, request: &Request<Incoming>) -> Result<Caller, Problem> {
    let Some(tokens) = &service.tokens else { return Ok(Caller::new(&service.dirs, None)) };
    let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let missing = || Problem::new(Kind::UNAUTHORIZED, "send the header Authorization: Bearer TOKEN");
    Ok(Caller::new(&service.dirs, tokens.find(token.ok_or_else(missing)?)?))
}

fn check_headers(operation: &Operation, request: &Request<Incoming>) -> Result<(), Problem> {
    for param in operation.headers {
        let mut values = request.headers().get_all(param.name).iter();
        let (first, more) = (values.next(), values.next().is_some());
        let plain =
            first.is_none_or(|value| value.to_str().is_ok_and(|text| !text.is_empty() && text.len() <= 255));
        if more || !plain {
            return Err(Problem::invalid(format!(
                "the header {} is one text of 1 to 255 characters",
                param.name
            )));
        }
        if matches!(param.kind, ParamKind::Required) && first.is_none() {
            return Err(Problem::invalid(format!("the header {} is missing", param.name)));
        }
    }
    let kind = request.headers().get(hyper::header::CONTENT_TYPE);
    let kind = kind.map(|kind| kind.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim());
    // What `curl --data` says without being told is let pass.
    let known = ["application/json", "application/x-www-form-urlencoded", ""];
    match kind {
        Some(kind)
            if operation.takes.is_json() && !known.iter().any(|one| kind.eq_ignore_ascii_case(one)) =>
        {
            Err(Problem::new(
                Kind::MEDIA_TYPE,
                format!("the body has the type {kind:?}; this takes application/json"),
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(method: Method, path: &str) -> Result<(&'static str, Vec<String>), u16> {
        find(&method, path)
            .map(|(operation, path)| (operation.id, path))
            .map_err(|problem| problem.kind.status)
    }

    #[test]
    fn paths_lead_to_operations() {
        assert_eq!(id(Method::GET, "/healthz"), Ok(("getHealth", vec![])));
        let image = id(Method::GET, "/v1/images/docker.io%2Flibrary%2Falpine:3").unwrap();
        assert_eq!(image, ("getImage", vec!["docker.io/library/alpine:3".to_owned()]));
        assert_eq!(id(Method::POST, "/v1/images/load").unwrap().0, "loadImages");
        assert_eq!(id(Method::GET, "/v1/nothing"), Err(404));
        assert_eq!(id(Method::PUT, "/v1/containers"), Err(405));
        assert_eq!(id(Method::GET, "/v1/containers/"), Err(404));
    }

    #[test]
    fn operations_have_ids_and_places_of_their_own() {
        let all: Vec<_> = operations::all().collect();
        for (index, one) in all.iter().enumerate() {
            for other in all.iter().skip(index + 1) {
                assert_ne!(one.id, other.id);
                assert!(one.path != other.path || one.method != other.method, "{}", one.path);
            }
        }
    }
}
