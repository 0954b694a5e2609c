//! The environment of the container's process: the image's, then `--env-file`, then `-e`.

use std::io;
use std::path::{Path, PathBuf};

/// `PATH` where neither image nor user sets one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an environment option is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The file cannot be read.
    #[error("cannot read the file {} of --env-file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A line is not `NAME=value`.
    #[error("{}, line {line}: {text:?} is not a variable: write NAME=value, or NAME alone to take the host's", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Its text.
        text: String,
    },
    /// An option is not `NAME=value`.
    #[error("-e {0:?} is not a variable: write NAME=value, or NAME alone to take the host's")]
    Option(String),
}

/// What the user says about the environment.
#[derive(Clone, Debug, Default)]
pub struct EnvironmentOptions {
    /// `--env-file`, in order.
    pub files: Vec<PathBuf>,
    /// `-e`, in order.
    pub variables: Vec<String>,
}

/// The whole environment, as `NAME=value`, each name once.
pub fn environment(
    options: &EnvironmentOptions,
    image: &[String],
    hostname: &str,
    terminal: bool,
    host: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvironmentError> {
    let mut variables = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if terminal {
        variables.push("TERM=xterm".to_owned());
    }
    // An image's variable without `=` is one with an empty value.
    image.iter().for_each(|entry| {
        set(&mut variables, if entry.contains('=') { entry.clone() } else { format!("{entry}=") });
    });
    for path in &options.files {
        for entry in read_file(path)? {
            add(&mut variables, &entry, &host);
        }
    }
    for entry in &options.variables {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(EnvironmentError::Option(entry.clone()));
        }
        add(&mut variables, entry, &host);
    }
    Ok(variables)
}

/// Takes `NAME=value`, or `NAME` with the host's value; a name that the host has not is left out.
fn add(variables: &mut Vec<String>, entry: &str, host: impl Fn(&str) -> Option<String>) {
    if entry.contains('=') {
        set(variables, entry.to_owned());
    } else if let Some(value) = host(entry) {
        set(variables, format!("{entry}={value}"));
    }
}

/// Replaces the variable of the same name in place, or appends.
fn set(variables: &mut Vec<String>, entry: String) {
    let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
    let wanted = name(&entry);
    match variables.iter_mut().find(|other| name(other) == wanted) {
        Some(place) => *place = entry,
        None => variables.push(entry),
    }
}

/// The entries of an env file: leading white space, empty lines and lines that begin with `#` do not count.
fn read_file(path: &Path) -> Result<Vec<String>, EnvironmentError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| EnvironmentError::File { path: path.to_owned(), source })?;
    let mut entries = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let entry = line.trim_start();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            let text = entry.chars().take(80).collect();
            return Err(EnvironmentError::Line { path: path.to_owned(), line: index + 1, text });
        }
        entries.push(entry.to_owned());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Option<String> {
        (name == "FROM_HOST").then(|| "yes".to_owned())
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, EnvironmentOptions) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let options = EnvironmentOptions { files: vec![file.path().to_owned()], variables: Vec::new() };
        (file, options)
    }

    #[test]
    fn later_sources_replace_earlier_ones() {
        let (_file, mut options) = file("# comment\n\n  FRUIT=plum\nFILE=a b \nFROM_HOST\nNOT_THERE\n");
        options.variables = vec!["FRUIT=fig".into(), "EMPTY=".into()];
        let image = ["FRUIT=pear".to_owned(), "PATH=/bin".to_owned(), "BARE".to_owned()];
        let have = environment(&options, &image, "h", true, host).unwrap();
        assert_eq!(
            have,
            [
                "PATH=/bin",
                "HOSTNAME=h",
                "TERM=xterm",
                "FRUIT=fig",
                "BARE=",
                "FILE=a b ",
                "FROM_HOST=yes",
                "EMPTY="
            ]
        );
    }

    #[test]
    fn an_empty_environment_has_the_defaults() {
        let have = environment(&EnvironmentOptions::default(), &[], "h", false, host).unwrap();
        assert_eq!(have, [DEFAULT_PATH, "HOSTNAME=h"]);
    }

    #[test]
    fn what_is_no_variable_is_refused_with_its_place() {
        let (_file, options) = file("A=1\nB C=2\n");
        let error = environment(&options, &[], "h", false, host).unwrap_err();
        assert!(error.to_string().contains("line 2") && error.to_string().contains("B C=2"), "{error}");
        let options = EnvironmentOptions { files: Vec::new(), variables: vec!["=x".into()] };
        assert!(environment(&options, &[], "h", false, host).is_err());
        let options = EnvironmentOptions { files: vec!["/no/such/env".into()], variables: Vec::new() };
        let error = environment(&options, &[], "h", false, host).unwrap_err();
        assert!(error.to_string().contains("/no/such/env"), "{error}");
    }
}
