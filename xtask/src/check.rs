//! Formatting, lints, and the arrows between crates: who may know whom (`docs/architecture.md`).

use std::collections::BTreeMap;

use anyhow::bail;

use crate::{build, dependencies, lessons, step};

/// For each crate, our own crates that it may depend on. Tests and xtask may use any.
const ARROWS: &[(&str, &[&str])] = &[
    ("agent", &["agent_protocol", "archive"]),
    ("agent_protocol", &[]),
    ("api_server", &[]),
    ("arch", &[]),
    ("archive", &[]),
    ("compare", &["programs"]),
    ("devices", &[]),
    ("engine_api", &["compare", "engine", "images", "vmm"]),
    ("engine", &["agent_protocol", "archive", "images", "jailer", "programs", "shares", "vmm", "warden"]),
    ("hostile", &["agent_protocol", "api_server", "arch", "devices", "engine", "images", "vmm"]),
    ("images", &[]),
    ("jailer", &[]),
    ("lighter", &["compare", "engine", "engine_api", "images", "vmm", "warden"]),
    ("probe", &[]),
    ("programs", &[]),
    ("shares", &["jailer"]),
    ("vmm", &["api_server", "arch", "devices", "jailer"]),
    ("warden", &["agent", "agent_protocol", "vmm"]),
];

/// Outside crates that only the named crate may use.
const ONLY_IN: &[(&str, &[&str])] = &[("kvm-ioctls", &["vmm"]), ("virtio-queue", &["devices", "vmm"])];

/// Runs every check that needs no test.
pub fn run() -> anyhow::Result<()> {
    step::step("arrows between crates", arrows)?;
    step::step("dependencies", dependencies::check)?;
    step::step("tests that the lessons name", lessons::check)?;
    step::step("formatting", || step::run(build::cargo().args(["fmt", "--all", "--check"])))?;
    step::step("lints", || {
        step::run(build::cargo().args([
            "clippy",
            "--quiet",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })
}

fn arrows() -> anyhow::Result<()> {
    let metadata =
        step::run_quietly(build::cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let faults = faults(&needs(&serde_json::from_str(&metadata)?));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Crate name to the names of what it needs to run.
fn needs(metadata: &serde_json::Value) -> BTreeMap<String, Vec<String>> {
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap_or_default().to_owned();
    let normal = |dependency: &&serde_json::Value| dependency["kind"].is_null();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    packages
        .iter()
        .map(|package| {
            let needs = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
            (name(package), needs.iter().filter(normal).map(name).collect())
        })
        .collect()
}

fn faults(crates: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, needs) in crates {
        let free = matches!(name.as_str(), "xtask" | "lighter_tests");
        let allowed = ARROWS.iter().find(|(from, _)| from == name).map(|(_, to)| *to);
        if allowed.is_none() && !free {
            faults.push(format!("crate {name} is not in the list of arrows (xtask/src/check.rs)"));
        }
        for need in needs {
            if !free && crates.contains_key(need) && !allowed.unwrap_or_default().contains(&need.as_str()) {
                faults.push(format!("{name} may not depend on {need} (docs/architecture.md)"));
            }
            let owners = ONLY_IN.iter().find(|(outside, _)| outside == need).map(|(_, owners)| *owners);
            if owners.is_some_and(|owners| !owners.contains(&name.as_str())) {
                faults.push(format!("{name} may not use {need}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crates(entries: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        entries
            .iter()
            .map(|(name, needs)| ((*name).into(), needs.iter().map(|n| (*n).into()).collect()))
            .collect()
    }

    #[test]
    fn an_arrow_that_the_map_draws_is_allowed() {
        assert!(faults(&crates(&[("vmm", &["devices", "kvm-ioctls"]), ("devices", &[])])).is_empty());
    }

    #[test]
    fn devices_may_not_know_the_vmm_nor_kvm() {
        let found = faults(&crates(&[("vmm", &[]), ("devices", &["vmm", "kvm-ioctls"])]));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_crate_that_nobody_placed_is_refused() {
        assert_eq!(faults(&crates(&[("common", &[])])).len(), 1);
    }
}
