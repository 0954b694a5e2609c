//! `--change`: the Dockerfile instructions that edit an image's configuration.
//!
//! As `docker commit --change`: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR.
//! Words are split as in a Dockerfile: double quotes, single quotes, backslashes, `$NAME` and `${NAME}` from the
//! image's environment.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::words::{self, WordError};

/// Why a text is no change.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No instruction that edits a configuration.
    #[error(
        "--change {0:?}: use CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR"
    )]
    Instruction(String),
    /// The instruction says nothing, or not what it needs.
    #[error("--change {text:?}: {reason}")]
    Arguments {
        /// The change.
        text: String,
        /// What is missing or wrong.
        reason: &'static str,
    },
    /// Its words cannot be told apart.
    #[error("--change {text:?}")]
    Words {
        /// The change.
        text: String,
        /// Why.
        source: WordError,
    },
}

/// One instruction, already known to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    instruction: Instruction,
    arguments: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    OnBuild,
    StopSignal,
    User,
    Volume,
    WorkDir,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", format!("{:?}", self.instruction).to_ascii_uppercase(), self.arguments)
    }
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let trimmed = text.trim();
        let (name, arguments) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let instruction = match name.to_ascii_uppercase().as_str() {
            "CMD" => Instruction::Cmd,
            "ENTRYPOINT" => Instruction::Entrypoint,
            "ENV" => Instruction::Env,
            "EXPOSE" => Instruction::Expose,
            "LABEL" => Instruction::Label,
            "ONBUILD" => Instruction::OnBuild,
            "STOPSIGNAL" => Instruction::StopSignal,
            "USER" => Instruction::User,
            "VOLUME" => Instruction::Volume,
            "WORKDIR" => Instruction::WorkDir,
            _ => return Err(ChangeError::Instruction(text.to_owned())),
        };
        let change = Self { instruction, arguments: arguments.trim().to_owned() };
        // Every mistake but those of the image's own making shows here, before anything is written.
        change.apply(&mut Map::new())?;
        Ok(change)
    }
}

impl Change {
    /// Edits `config`, the member of that name of an image's configuration.
    pub(super) fn apply(&self, config: &mut Map<String, Value>) -> Result<(), ChangeError> {
        let environment = strings(config.get("Env"));
        match self.instruction {
            Instruction::Cmd => set(config, "Cmd", json!(self.command()?)),
            Instruction::Entrypoint => set(config, "Entrypoint", json!(self.command()?)),
            Instruction::Env => {
                let pairs = self.pairs(&environment)?;
                let mut environment = environment;
                for (name, value) in pairs {
                    let assigned = format!("{name}={value}");
                    let prefix = format!("{name}=");
                    match environment.iter_mut().find(|entry| entry.starts_with(&prefix)) {
                        Some(entry) => *entry = assigned,
                        None => environment.push(assigned),
                    }
                }
                set(config, "Env", json!(environment));
            }
            Instruction::Label => {
                let labels = self.pairs(&environment)?;
                members(config, "Labels")
                    .extend(labels.into_iter().map(|(name, value)| (name, json!(value))));
            }
            Instruction::Expose => {
                let ports = self
                    .words(&environment)?
                    .iter()
                    .map(|port| self.port(port))
                    .collect::<Result<Vec<_>, _>>()?;
                members(config, "ExposedPorts").extend(ports.into_iter().map(|port| (port, json!({}))));
            }
            Instruction::Volume => {
                let paths = match json_words(&self.arguments) {
                    Some(paths) => paths,
                    None => self.words(&environment)?,
                };
                if paths.is_empty() || paths.iter().any(String::is_empty) {
                    return Err(self.wrong("a path is missing"));
                }
                members(config, "Volumes").extend(paths.into_iter().map(|path| (path, json!({}))));
            }
            Instruction::OnBuild => {
                let mut triggers = strings(config.get("OnBuild"));
                triggers.push(self.text()?.to_owned());
                set(config, "OnBuild", json!(triggers));
            }
            Instruction::StopSignal => set(config, "StopSignal", json!(self.one(&environment)?)),
            Instruction::User => set(config, "User", json!(self.one(&environment)?)),
            Instruction::WorkDir => {
                let path = self.one(&environment)?;
                let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
                let path = std::path::Path::new("/").join(before).join(path);
                set(config, "WorkingDir", json!(path.to_string_lossy()));
            }
        }
        Ok(())
    }

    /// Whether it is an ENTRYPOINT, which takes the command of the image beneath away, or a CMD, which brings one.
    pub(super) fn sets_entrypoint(&self) -> bool {
        self.instruction == Instruction::Entrypoint
    }

    /// See [`Change::sets_entrypoint`].
    pub(super) fn sets_command(&self) -> bool {
        self.instruction == Instruction::Cmd
    }

    /// A JSON list as it is, anything else for the shell.
    fn command(&self) -> Result<Vec<String>, ChangeError> {
        let text = self.text()?;
        Ok(json_words(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.to_owned()]))
    }

    /// `NAME=VALUE…`, or the old form `NAME VALUE with spaces`.
    fn pairs(&self, environment: &[String]) -> Result<Vec<(String, String)>, ChangeError> {
        let text = self.text()?;
        let first = text.split(char::is_whitespace).next().unwrap_or_default();
        if !first.contains('=') {
            let (name, value) =
                text.split_once(char::is_whitespace).ok_or_else(|| self.wrong("write NAME=VALUE"))?;
            let value = self.split(value.trim(), environment)?.join(" ");
            return Ok(vec![(name.to_owned(), value)]);
        }
        let pair = |word: String| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(self.wrong("write NAME=VALUE")),
        };
        self.words(environment)?.into_iter().map(pair).collect()
    }

    fn port(&self, text: &str) -> Result<String, ChangeError> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let range = number.split_once('-').unwrap_or((number, number));
        let valid = range.0.parse::<u16>().is_ok_and(|first| range.1.parse().is_ok_and(|last| first <= last));
        if !valid || !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(self.wrong("write PORT or PORT/udp"));
        }
        Ok(format!("{number}/{protocol}"))
    }

    fn one(&self, environment: &[String]) -> Result<String, ChangeError> {
        let words = self.words(environment)?;
        match words.as_slice() {
            [word] if !word.is_empty() => Ok(word.clone()),
            _ => Err(self.wrong("exactly one word is needed")),
        }
    }

    fn words(&self, environment: &[String]) -> Result<Vec<String>, ChangeError> {
        self.split(self.text()?, environment)
    }

    fn split(&self, text: &str, environment: &[String]) -> Result<Vec<String>, ChangeError> {
        words::split(text, environment)
            .map_err(|source| ChangeError::Words { text: self.arguments.clone(), source })
    }

    fn text(&self) -> Result<&str, ChangeError> {
        if self.arguments.is_empty() { Err(self.wrong("it says nothing")) } else { Ok(&self.arguments) }
    }

    fn wrong(&self, reason: &'static str) -> ChangeError {
        let text = format!("{:?} {}", self.instruction, self.arguments).trim().to_owned();
        ChangeError::Arguments { text, reason }
    }
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// The object under `key`, made if it is not there.
fn members<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("invariant: made an object above")
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A JSON list of strings.
fn json_words(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(base: Value, changes: &[&str]) -> Value {
        let mut config = base.as_object().unwrap().clone();
        for change in changes {
            change.parse::<Change>().unwrap().apply(&mut config).unwrap();
        }
        Value::Object(config)
    }

    #[test]
    fn every_instruction_edits_its_member() {
        let base = json!({"Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv", "Labels": {"x": "y"}});
        let changes = [
            r#"CMD ["a", "b c"]"#,
            "entrypoint run it",
            r#"ENV A=2 B="c d" PATH=$PATH:/sbin"#,
            "ENV OLD the old form",
            "EXPOSE 80 53/udp",
            "LABEL k=v",
            "ONBUILD RUN x",
            "STOPSIGNAL SIGINT",
            "USER nobody:nogroup",
            r#"VOLUME ["/a b"]"#,
            "VOLUME /c /d",
            "WORKDIR app",
        ];
        let expected = json!({
            "Cmd": ["a", "b c"], "Entrypoint": ["/bin/sh", "-c", "run it"],
            "Env": ["PATH=/bin:/sbin", "A=2", "B=c d", "OLD=the old form"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Labels": {"x": "y", "k": "v"},
            "OnBuild": ["RUN x"], "StopSignal": "SIGINT", "User": "nobody:nogroup",
            "Volumes": {"/a b": {}, "/c": {}, "/d": {}}, "WorkingDir": "/srv/app",
        });
        assert_eq!(changed(base, &changes), expected);
        assert_eq!(changed(json!({}), &["WORKDIR /x", "WORKDIR y"]), json!({"WorkingDir": "/x/y"}));
    }

    #[test]
    fn what_is_no_change_is_refused_with_the_reason() {
        for text in [
            "",
            "RUN x",
            "CMD",
            "ENV",
            "ENV A",
            "ENV =b",
            "EXPOSE http",
            "EXPOSE 80/icmp",
            "EXPOSE 9-8",
            "USER a b",
            "VOLUME",
            "LABEL 'open",
            "WORKDIR",
            "VOLUME [\"\"]",
            "COPY a b",
        ] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }
}
