//! The metadata store behind `/mmds`: one JSON value of bounded size.

use api_server::Fault;
use api_server::http::Status;
use serde_json::Value;

/// The store.
#[derive(Debug)]
pub struct Metadata {
    value: Option<Value>,
    limit: usize,
}

impl Metadata {
    /// An empty store of at most `limit` bytes of JSON.
    pub fn new(limit: usize) -> Self {
        Metadata { value: None, limit }
    }

    /// What is there; an empty object before the first `put`.
    pub fn value(&self) -> Value {
        self.value.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    }

    /// What is at `path`, a JSON pointer (RFC 6901).
    pub fn at(&self, path: &str) -> Option<&Value> {
        self.value.as_ref()?.pointer(path)
    }

    /// Replaces what is there.
    pub fn put(&mut self, value: Value) -> Result<(), Fault> {
        if !value.is_object() {
            return Err(Fault::new("MMDS error: The MMDS data store takes a JSON object."));
        }
        if value.to_string().len() > self.limit {
            let message = "MMDS limit exceeded error: The MMDS patch request doesn't fit.".to_owned();
            return Err(Fault { status: Status::PayloadTooLarge, message });
        }
        self.value = Some(value);
        Ok(())
    }

    /// Merges `patch` into what is there (RFC 7396).
    pub fn patch(&mut self, patch: &Value) -> Result<(), Fault> {
        let Some(value) = &self.value else {
            return Err(Fault::new("MMDS error: The MMDS data store is not initialized."));
        };
        let mut merged = value.clone();
        merge(&mut merged, patch);
        self.put(merged)
    }
}

/// RFC 7396, section 2. As deep as `patch` is, which the parser of requests bounds.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_merged_as_in_the_appendix_of_the_rfc() {
        for (target, patch, wanted) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut store = Metadata::new(100);
            store.put(target).unwrap();
            store.patch(&patch).unwrap();
            assert_eq!(store.value(), wanted);
        }
    }

    #[test]
    fn the_store_is_bounded_and_stays_as_it_was() {
        let mut store = Metadata::new(10);
        assert_eq!(store.value(), json!({}));
        assert_eq!(store.patch(&json!({})).unwrap_err().status, Status::BadRequest);
        store.put(json!({"a":"1"})).unwrap();
        assert_eq!(store.put(json!({"a":"12345"})).unwrap_err().status, Status::PayloadTooLarge);
        assert_eq!(store.patch(&json!({"b":"1"})).unwrap_err().status, Status::PayloadTooLarge);
        assert!(store.patch(&json!("x")).is_err());
        assert_eq!(store.value(), json!({"a":"1"}));
    }
}
