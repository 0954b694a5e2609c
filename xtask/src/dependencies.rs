//! What `cargo deny` checks, with the reasons: where dependencies come from, their licences, and what is banned.

use anyhow::bail;
use serde_json::Value;

use crate::{build, step};

/// Licences that go with Apache-2.0 OR MIT in one program. An expression passes if one of its alternatives does.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unlicense",
    "CC0-1.0",
    "Unicode-3.0",
    // Data of certificate authorities, unchanged.
    "CDLA-Permissive-2.0",
    // Files of a crate that nobody changes here.
    "MPL-2.0",
];

/// Crates that must not be here, each with its reason.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "TLS is rustls: no C library parses what a registry sends"),
    ("native-tls", "TLS is rustls"),
    ("md-5", "digests are SHA-256 and SHA-512"),
    ("sha1", "digests are SHA-256 and SHA-512"),
    ("serde_yaml", "unmaintained"),
    ("atty", "unmaintained; std has IsTerminal"),
    ("bincode", "unmaintained; saved states are postcard"),
];

/// Refuses what is not as it should be.
pub fn check() -> anyhow::Result<()> {
    let metadata = step::run_quietly(build::cargo().args(["metadata", "--format-version=1", "--locked"]))?;
    let faults = faults(&serde_json::from_str(&metadata)?);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn faults(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut faults = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let (name, licence) = (text("name"), text("license"));
        // Our own have none.
        if package["source"].is_null() {
            continue;
        }
        if !text("source").starts_with("registry+") {
            faults.push(format!("{name} comes from {}, not from the registry", text("source")));
        }
        if !is_allowed(licence) {
            faults.push(format!("{name} has the licence {licence:?}, which is not in {}", file!()));
        }
        faults.extend(
            BANNED.iter().filter(|(banned, _)| *banned == name).map(|(_, why)| format!("{name}: {why}")),
        );
    }
    faults
}

/// Whether one alternative of an SPDX expression has only licences that are allowed.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain.split(" OR ").any(|all| all.split(" AND ").all(|licence| LICENCES.contains(&licence.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_alternative_is_enough_and_all_of_a_conjunction_are_needed() {
        for good in
            ["MIT", "MIT/Apache-2.0", "GPL-2.0 OR MIT", "Apache-2.0 AND ISC", "(MIT OR GPL-3.0) AND ISC"]
        {
            assert!(is_allowed(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0"] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn other_sources_licences_and_banned_crates_are_named() {
        let package = |name: &str, source: &str, license: &str| serde_json::json!({"name": name, "source": source, "license": license});
        let packages = [
            package("good", "registry+x", "MIT"),
            package("forked", "git+https://example.org/x", "MIT"),
            package("viral", "registry+x", "GPL-3.0"),
            package("openssl-sys", "registry+x", "MIT"),
        ];
        let found = faults(&serde_json::json!({ "packages": packages })).join("\n");
        for name in ["forked comes from", "viral has the licence", "openssl-sys: TLS"] {
            assert!(found.contains(name), "{found}");
        }
        assert!(!found.contains("good"), "{found}");
    }
}
