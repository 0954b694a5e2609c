//! What this host has and lacks: each finding with what it means and the fix.

mod host;
mod storage;
mod virtualization;

use serde::Serialize;

use crate::dirs::Dirs;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something works less well, or not at all, but containers run.
    Warn,
    /// No container can run.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at; stays the same from release to release.
    pub name: &'static str,
    /// How bad it is.
    pub status: Status,
    /// What was found.
    pub finding: String,
    /// What that means for containers.
    pub meaning: &'static str,
    /// What to do about it; empty where nothing is to be done.
    pub fix: String,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>, meaning: &'static str) -> Self {
        Self { name, status: Status::Ok, finding: finding.into(), meaning, fix: String::new() }
    }

    fn bad(
        name: &'static str,
        status: Status,
        finding: impl Into<String>,
        meaning: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self { name, status, finding: finding.into(), meaning, fix: fix.into() }
    }
}

/// Looks at everything; changes nothing but for a probe file that it removes again.
pub fn examine(dirs: &Dirs) -> Vec<Check> {
    let mut checks = virtualization::checks();
    checks.push(virtualization::guest_kernel(dirs));
    checks.extend(host::checks());
    checks.extend(storage::checks(&dirs.data));
    checks
}

/// The text of an error and its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_finding_has_a_name_of_its_own_and_a_bad_one_a_fix() {
        let base = tempfile::tempdir().unwrap();
        let checks = examine(&crate::container::test_dirs(base.path()));
        let names: HashSet<_> = checks.iter().map(|check| check.name).collect();
        assert!(checks.len() >= 9 && names.len() == checks.len());
        for check in checks {
            assert!(!check.finding.is_empty() && !check.meaning.is_empty(), "{check:?}");
            assert_eq!(check.status == Status::Ok, check.fix.is_empty(), "{check:?}");
        }
    }
}
