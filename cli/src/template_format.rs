//! `--format '{{.Name}} {{json .State}}'`: the part of Go's templates that people use with Docker.

use anyhow::{bail, ensure};
use serde_json::Value;

/// Fills `template` from `value`. `\t` and `\n` mean what they say.
pub fn fill(template: &str, value: &Value) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        let Some((expression, after)) = after.split_once("}}") else {
            bail!("--format {template:?}: \"{{{{\" without \"}}}}\"");
        };
        text.push_str(&evaluate(expression.trim(), value)?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text.replace("\\t", "\t").replace("\\n", "\n"))
}

fn evaluate(expression: &str, value: &Value) -> anyhow::Result<String> {
    let (json, path) = match expression.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, expression),
    };
    ensure!(path.starts_with('.'), "--format: {expression:?} is unknown: lighter has .Field and json .Field");
    let mut found = value;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        let Some(next) = found.get(name) else {
            let known: Vec<&str> =
                found.as_object().into_iter().flat_map(|map| map.keys()).map(String::as_str).collect();
            bail!("--format: there is no {path:?}; known here: {}", known.join(", "));
        };
        found = next;
    }
    Ok(match found {
        Value::String(text) if !json => text.clone(),
        Value::Null if !json => String::new(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_filled_in_and_unknown_ones_named() {
        let value = serde_json::json!({"Name": "barge", "State": {"Pid": 7, "Error": null}});
        let filled = |template| fill(template, &value);
        assert_eq!(filled("{{.Name}}\\t{{ .State.Pid }}!").unwrap(), "barge\t7!");
        assert_eq!(filled("{{json .State}}{{.State.Error}}").unwrap(), r#"{"Error":null,"Pid":7}"#);
        assert!(filled("{{.Nme}}").unwrap_err().to_string().contains("Name"));
        assert!(filled("{{.Name").is_err() && filled("{{range .X}}").is_err());
    }
}
