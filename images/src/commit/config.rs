//! The configuration of a new image (image-spec `config.md`).

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::{CommitError, CommitOptions};
use crate::digest::DiffId;

/// Members that describe the container which an old Docker built the image in.
const OF_THE_BUILD: [&str; 5] = ["container", "container_config", "id", "parent", "parent_id"];

/// The bytes of `config` with one more layer, edited as `options` say.
pub(super) fn edit(
    mut config: Map<String, Value>,
    layer: &DiffId,
    options: &CommitOptions,
    now: SystemTime,
) -> Result<Vec<u8>, CommitError> {
    for member in OF_THE_BUILD {
        config.remove(member);
    }
    let created = humantime::format_rfc3339_nanos(now).to_string();
    config.insert("created".into(), json!(created));
    if let Some(author) = &options.author {
        config.insert("author".into(), json!(author));
    }
    let process = object(&mut config, "config");
    process.extend(options.config.clone());
    edit_process(process, options)?;
    let rootfs = object(&mut config, "rootfs");
    rootfs.insert("type".into(), json!("layers"));
    list(rootfs, "diff_ids").push(json!(layer));
    let mut entry = Map::from_iter([("created".to_owned(), json!(created))]);
    let said =
        [("author", &options.author), ("created_by", &options.created_by), ("comment", &options.message)];
    entry.extend(said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))));
    list(&mut config, "history").push(Value::Object(entry));
    Ok(Value::Object(config).to_string().into_bytes())
}

/// An ENTRYPOINT takes away the command of the image beneath, which was meant for another one; as in a Dockerfile.
fn edit_process(process: &mut Map<String, Value>, options: &CommitOptions) -> Result<(), CommitError> {
    let mut own_command = false;
    for change in &options.changes {
        change.apply(process)?;
        own_command |= change.sets_command();
        if change.sets_entrypoint() && !own_command {
            process.remove("Cmd");
        }
    }
    Ok(())
}

/// The object under `key`; anything else there gives way to one.
fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("invariant: made an object above")
}

/// The list under `key`; anything else there gives way to one.
fn list<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = map.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("invariant: made a list above")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_layer_is_added_and_everything_unknown_stays() {
        let base = json!({
            "os": "linux", "container": "x", "Odd": {"a": 1}, "author": "before",
            "config": {"Cmd": ["old"], "Healthcheck": {"Test": ["NONE"]}, "Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
            "history": [{"created_by": "first"}],
        });
        let options = CommitOptions {
            config: json!({"Env": ["A=2"]}).as_object().unwrap().clone(),
            changes: vec!["ENTRYPOINT [\"/x\"]".parse().unwrap()],
            author: Some("me".into()),
            message: Some("why".into()),
            created_by: Some("sh".into()),
            ..CommitOptions::default()
        };
        let layer = DiffId(Digest::of(b"layer"));
        let bytes =
            edit(base.as_object().unwrap().clone(), &layer, &options, SystemTime::UNIX_EPOCH).unwrap();
        let created = "1970-01-01T00:00:00.000000000Z";
        let expected = json!({
            "os": "linux", "Odd": {"a": 1}, "author": "me", "created": created,
            "config": {"Healthcheck": {"Test": ["NONE"]}, "Env": ["A=2"], "Entrypoint": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:1", layer]},
            "history": [
                {"created_by": "first"},
                {"created": created, "author": "me", "created_by": "sh", "comment": "why"},
            ],
        });
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_command_before_the_entrypoint_stays() {
        let changes = ["CMD [\"c\"]", "ENTRYPOINT [\"e\"]"].map(|change| change.parse().unwrap()).to_vec();
        let options = CommitOptions { changes, ..CommitOptions::default() };
        let mut process = Map::new();
        edit_process(&mut process, &options).unwrap();
        assert_eq!(Value::Object(process), json!({"Cmd": ["c"], "Entrypoint": ["e"]}));
    }
}
