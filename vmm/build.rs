//! Compiles the system call filters of `resources/seccomp` to the words that the kernel reads.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use seccompiler::{BpfMap, TargetArch, compile_from_json};

/// Programs and where their tables are.
const TABLES: [(&str, &str); 2] = [("MACHINE", "machine.json"), ("API", "api.json")];
/// Threads of each, as the fields of `Filters`.
const ROLES: [&str; 4] = ["vcpu", "worker", "saver", "legacy"];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let tables = manifest.parent().ok_or("the crate lies in the workspace")?.join("resources/seccomp");
    println!("cargo::rerun-if-changed={}", tables.display());
    let mut text = String::new();
    for (name, file) in TABLES {
        let json = std::fs::read(tables.join(file))?;
        let compiled: BpfMap = compile_from_json(&json[..], TargetArch::x86_64)?;
        let table: BTreeMap<String, Table> = serde_json::from_slice(&json)?;
        writeln!(text, "/// Of `resources/seccomp/{file}`.\npub static {name}: Filters = Filters {{")?;
        for role in ROLES {
            let words = compiled.get(role).ok_or_else(|| format!("{file} has no role {role}"))?;
            let calls = &table.get(role).ok_or("the same")?.filter;
            let mut names: Vec<_> = calls.iter().map(|rule| rule.syscall.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            writeln!(text, "    {role}: Filter {{ role: \"{role}\", calls: &{names:?}, program: &[")?;
            for word in words {
                let (code, jt, jf, k) = (word.code, word.jt, word.jf, word.k);
                writeln!(text, "        sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
            }
            writeln!(text, "    ] }},")?;
        }
        writeln!(text, "}};")?;
    }
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("seccomp.rs"), text)?;
    Ok(())
}

#[derive(serde::Deserialize)]
struct Table {
    filter: Vec<Rule>,
}

#[derive(serde::Deserialize)]
struct Rule {
    syscall: String,
}
