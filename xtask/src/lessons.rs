//! `docs/security/lessons.md` names the tests that hold its promises: each must exist.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::step;

const PAGE: &str = "docs/security/lessons.md";

/// Refuses names of tests that are nowhere.
pub fn check() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in the workspace")?;
    let page = std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut command = Command::new("git");
    command.current_dir(root).args(["ls-files", "*.rs"]);
    let mut sources = String::new();
    for file in step::run_quietly(&mut command)?.lines() {
        // One that was removed and is still in the index has no tests.
        sources.push_str(&std::fs::read_to_string(root.join(file)).unwrap_or_default());
    }
    let missing = missing(&page, &sources);
    if !missing.is_empty() {
        bail!("{PAGE} names tests that are nowhere: {}", missing.join(", "));
    }
    Ok(())
}

/// What the page calls a test, the last column's long names, and no source has.
fn missing<'p>(page: &'p str, sources: &str) -> Vec<&'p str> {
    let last =
        page.lines().filter_map(|line| line.strip_suffix(" |")?.rsplit_once("| ")).map(|(_, last)| last);
    let quoted = last.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let named = quoted.filter(|name| name.contains('_'));
    named
        .filter(|name| !sources.contains(&format!("fn {name}(")) && !sources.contains(&format!("\"{name}\"")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_last_column_must_be_tests() {
        let page = "| hole | `a_b` | `first_test`, fuzz `block` |\n| x | y | `second_test`, `third_test` |\n";
        let sources = "fn first_test() {}\n(\"third_test\", GUEST, run)";
        assert_eq!(missing(page, sources), ["second_test"]);
    }
}
