//! The kernel's configuration: `tinyconfig`, our fragment over it, and a check that each line took effect.

use std::path::Path;

use anyhow::{Context, bail};

use super::compile;
use crate::step;

/// Writes `.config` into the source tree.
pub fn write(tree: &Path, fragment: &str) -> anyhow::Result<()> {
    step::run_quietly(compile::make(tree).args(["-s", "tinyconfig"]))?;
    let file = tree.join(".config");
    let tiny = std::fs::read_to_string(&file).context("tinyconfig wrote no .config")?;
    std::fs::write(&file, merge(&tiny, fragment))?;
    step::run_quietly(compile::make(tree).args(["-s", "olddefconfig"]))?;
    let lost = lost(fragment, &std::fs::read_to_string(&file)?);
    if !lost.is_empty() {
        bail!("these lines of resources/kernel/lighter.config took no effect:\n    {}", lost.join("\n    "));
    }
    Ok(())
}

/// The base without the symbols that the fragment sets, then the fragment.
fn merge(base: &str, fragment: &str) -> String {
    let set: Vec<&str> = fragment.lines().filter_map(symbol).collect();
    let mut merged: String = base
        .lines()
        .filter(|line| symbol(line).is_none_or(|symbol| !set.contains(&symbol)))
        .flat_map(|line| [line, "\n"])
        .collect();
    merged.push_str(fragment);
    merged
}

/// Lines of the fragment that the configuration contradicts.
fn lost<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let lines: Vec<&str> = config.lines().collect();
    let holds = |line: &str| match symbol(line) {
        None => true,
        // A symbol that cannot be chosen at all is as good as one that is off.
        Some(name) if line.starts_with('#') => {
            !lines.iter().any(|other| !other.starts_with('#') && symbol(other) == Some(name))
        }
        Some(_) => lines.contains(&line),
    };
    fragment.lines().filter(|line| !holds(line)).collect()
}

/// The symbol that a line sets or unsets; comments and blank lines have none.
fn symbol(line: &str) -> Option<&str> {
    match line.strip_prefix("# ") {
        Some(rest) => rest.strip_suffix(" is not set"),
        None => line.split_once('=').map(|(name, _)| name),
    }
    .filter(|name| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "# A title\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=32\n";

    #[test]
    fn the_fragment_replaces_what_it_names() {
        let merged = merge("CONFIG_A=n\nCONFIG_AB=y\nCONFIG_B=y\n# CONFIG_N is not set\n", FRAGMENT);
        assert_eq!(merged, format!("CONFIG_AB=y\n{FRAGMENT}"));
    }

    #[test]
    fn a_line_without_effect_is_named() {
        assert!(lost(FRAGMENT, "CONFIG_A=y\nCONFIG_N=32\n").is_empty());
        assert_eq!(lost(FRAGMENT, "CONFIG_A=m\nCONFIG_N=32\n"), ["CONFIG_A=y"]);
        assert_eq!(
            lost(FRAGMENT, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=3\n"),
            ["# CONFIG_B is not set", "CONFIG_N=32"]
        );
    }

    #[test]
    fn the_shipped_fragment_sets_each_symbol_once() {
        let text = include_str!("../../../resources/kernel/lighter.config");
        let mut symbols: Vec<&str> = text.lines().filter_map(symbol).collect();
        assert!(symbols.len() > 100);
        symbols.sort_unstable();
        let doubles: Vec<_> = symbols.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(doubles.is_empty(), "{doubles:?}");
    }
}
