//! Everything that CI runs, and a closing line that counts what passed, failed and was skipped.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::{build, check, clients, deps, distribution_kernel, kernel, schemathesis, step};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Leave out formatting, lints and arrows.
    #[arg(long)]
    no_check: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Tests that ran, by outcome.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs checks, unit tests and guest tests.
pub fn run(args: &TestArgs) -> anyhow::Result<()> {
    deps::ensure(deps::KERNEL)?;
    deps::ensure(deps::DEMO)?;
    deps::ensure(deps::TEST)?;
    if !args.no_check {
        check::run()?;
    }
    let kernel = kernel::ensure()?;
    let lighter = build::lighter()?;
    let target = lighter.ancestors().nth(2).context("lighter was built outside a target directory")?;
    let distribution =
        distribution_kernel::ensure(&target.join("distribution-kernel")).unwrap_or_else(|error| {
            eprintln!("no kernel of a distribution, so its test is skipped: {error:#}");
            None
        });
    let schemathesis = schemathesis::ensure(target).inspect_err(|error| {
        eprintln!("no schemathesis, so its tests are skipped: {error:#}");
    });
    let python = clients::install_python(target).inspect_err(|error| {
        eprintln!("no firecracker-python and no PyYAML, so Firecracker's clients are skipped: {error:#}");
    });
    let templates = tempfile::tempdir().context("no place for the tests' templates")?;
    let mut counts = Counts::default();
    // The feature is in no other build, so that nothing that is delivered has it.
    let taken_over = ["--package=vmm", "--features=compromised", "--test=compromised"].map(OsString::from);
    let none = Vec::new();
    let suite =
        |what: &str, arguments: &[OsString], variables: &[(&'static str, OsString)], counts: &mut Counts| {
            step::step(what, || {
                let mut command = build::cargo();
                command.args(["test", "--quiet", "--locked", "--no-fail-fast"]).args(arguments);
                if let Some(filter) = &args.filter {
                    command.arg(filter);
                }
                command
                    .env("LIGHTER_KERNEL", &kernel)
                    .env("LIGHTER_BIN", &lighter)
                    .env("LIGHTER_TEST_TEMPLATES", templates.path())
                    .envs(schemathesis.as_ref().ok().map(|path| ("LIGHTER_SCHEMATHESIS", path)))
                    .envs(distribution.as_ref().map(|path| ("LIGHTER_DISTRIBUTION_KERNEL", path)))
                    .envs(variables.iter().cloned())
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped());
                let mut child = command.spawn().context("cannot run cargo test")?;
                let output = child.stdout.take().context("cargo test has no output")?;
                for line in BufReader::new(output).lines() {
                    let line = line?;
                    println!("{line}");
                    counts.add(&line);
                }
                let status = child.wait()?;
                if !status.success() {
                    bail!("cargo test ended with {status}");
                }
                Ok(())
            })
        };
    let whole = suite("tests", &["--workspace".into()], &none, &mut counts);
    let outcome = whole.and(suite("tests of a VMM that was taken over", &taken_over, &none, &mut counts));
    let clients = match (&python, args.filter.is_none() && Path::new("/dev/kvm").exists()) {
        (Ok(python), true) => {
            let environment = clients::rust_environment(&lighter, &kernel, python)?;
            let rust = clients::rust_arguments(target);
            let rust = suite("Firecracker's clients in Rust", &rust, &environment, &mut counts);
            rust.and(clients::run_python(python, &build::vmm(&lighter)?, &kernel))
        }
        _ => Ok(()),
    };
    let outcome = outcome.and(clients);
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    outcome
}

impl Counts {
    /// Adds what a `test result:` line says; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let figure = |word: &str| {
            let end = result.find(word)?;
            result.get(..end)?.trim_end().rsplit([' ', '.']).next()?.parse::<u64>().ok()
        };
        self.passed += figure("passed").unwrap_or(0);
        self.failed += figure("failed").unwrap_or(0);
        self.skipped += figure("ignored").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up_and_other_lines_do_not_count() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        counts.add("test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.add("100 passed");
        assert_eq!(counts, Counts { passed: 5, failed: 5, skipped: 1 });
    }
}
