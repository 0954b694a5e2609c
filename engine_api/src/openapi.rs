//! The OpenAPI 3.1 document, made of the table of operations and the types that they take and give.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::operation::{COMMON, Content, Operation, Param, ParamKind, of};
use crate::operations::{self, OPEN};
use crate::problem::{Kind, ProblemBody};
use crate::reply::{EVENTS, JSON, PROBLEM};

/// Version of the API. The second number grows with what is added; what is there stays.
pub const VERSION: &str = "1.1";

/// The document as text.
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// The document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = SchemaGenerator::new(settings);
    let mut paths = Map::new();
    for operation in operations::all() {
        let described = describe(operation, &mut generator);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.method.as_str().to_ascii_lowercase(), described);
        }
    }
    let problem = of::<ProblemBody>(&mut generator);
    let mut problems = Map::new();
    for kind in Kind::ALL {
        let name = format!("Problem{}", kind.status);
        let response = problems
            .entry(name)
            .or_insert_with(|| json!({"description": "", "content": {PROBLEM: {"schema": problem}}}));
        let about = response["description"].as_str().unwrap_or_default();
        response["description"] = format!("`{}`: {} {about}", kind.name, kind.title).trim().into();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lighter engine API",
            "version": VERSION,
            "description": "Containers, each in a microVM of its own. Problems are RFC 9457.",
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "servers": [{"url": "/", "description": "A Unix socket, or TCP with mutual TLS."}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": problems,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| {
            let about = format!("Name or ID of the {name}; percent-encoded, also its slashes.");
            json!({"name": name, "in": "path", "required": true, "description": about,
                "schema": {"type": "string", "minLength": 1}})
        })
        .collect();
    parameters.extend(operation.query.iter().map(|param| parameter(param, "query")));
    parameters.extend(operation.headers.iter().map(|param| parameter(param, "header")));
    let mut responses = Map::new();
    for (status, content, about) in operation.gives {
        let mut response = json!({"description": about});
        if let Some(content) = contents(content, generator) {
            response["content"] = content;
        }
        responses.insert(status.to_string(), response);
    }
    for kind in COMMON.iter().chain(operation.problems) {
        let problem = json!({"$ref": format!("#/components/responses/Problem{}", kind.status)});
        responses.entry(kind.status.to_string()).or_insert(problem);
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": parameters,
        "responses": responses,
    });
    if operation.tag == OPEN {
        described["security"] = json!([{}]);
    }
    if let Some(content) = contents(&operation.takes, generator) {
        let required = !matches!(operation.takes, Content::MaybeJson(_));
        described["requestBody"] = json!({"required": required, "content": content});
    }
    described
}

fn contents(content: &Content, generator: &mut SchemaGenerator) -> Option<Value> {
    match content {
        Content::None => None,
        Content::Json(make) | Content::MaybeJson(make) => Some(json!({JSON: {"schema": make(generator)}})),
        Content::JsonOrEvents(make) => {
            Some(json!({JSON: {"schema": make(generator)}, EVENTS: {"schema": {"type": "string"}}}))
        }
        Content::Events(make) => {
            // OpenAPI 3.1 has no word for the data of an event.
            Some(json!({EVENTS: {"schema": {"type": "string"}, "x-event-data": make(generator)}}))
        }
        Content::Bytes(JSON) => Some(json!({JSON: {"schema": {"type": "object"}}})),
        Content::Bytes(kind) => Some(json!({*kind: {"schema": {"type": "string", "format": "binary"}}})),
        Content::Any(all) => {
            let mut merged = Map::new();
            for one in *all {
                if let Some(Value::Object(content)) = contents(one, generator) {
                    merged.extend(content);
                }
            }
            Some(Value::Object(merged))
        }
    }
}

fn parameter(param: &Param, place: &str) -> Value {
    let schema = match param.kind {
        ParamKind::Flag => json!({"type": "boolean"}),
        ParamKind::Number(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        ParamKind::Text if place == "header" => json!({"type": "string", "minLength": 1, "maxLength": 255}),
        ParamKind::Text | ParamKind::Required => json!({"type": "string"}),
        ParamKind::List => json!({"type": "array", "items": {"type": "string"}}),
        ParamKind::Choice(choices) => json!({"type": "string", "enum": choices}),
    };
    let required = matches!(param.kind, ParamKind::Required);
    json!({"name": param.name, "in": place, "required": required, "description": param.about, "schema": schema})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the document is kept for readers.
    const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/api/engine.openapi.json");

    #[test]
    fn the_committed_document_is_that_of_the_types() {
        if std::env::var_os("LIGHTER_WRITE_OPENAPI").is_some() {
            std::fs::write(COPY, text()).unwrap();
        }
        let kept = std::fs::read_to_string(COPY).unwrap();
        assert!(
            kept == text(),
            "run `LIGHTER_WRITE_OPENAPI=1 cargo test -p engine_api openapi` and commit {COPY}"
        );
    }

    #[test]
    fn everything_is_described() {
        for operation in operations::all() {
            assert!(!operation.summary.is_empty() && !operation.gives.is_empty(), "{}", operation.id);
        }
        let (text, document) = (text(), document());
        for reference in text.split("\"$ref\": \"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
