//! A test is a name, what it needs and a function. What the host lacks is counted as ignored, with the
//! reason in the name of its kind, never as passed.

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// What a test needs of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A usable `/dev/kvm`.
    Kvm,
    /// Root, for network devices and owners of files.
    Root,
    /// This program in PATH.
    Program(&'static str),
    /// This environment variable, which names a file that `cargo xtask test` provides.
    Variable(&'static str),
}

/// One test.
pub struct Test {
    name: &'static str,
    needs: &'static [Need],
    run: fn() -> anyhow::Result<()>,
}

/// A test called `name`.
pub const fn test(name: &'static str, needs: &'static [Need], run: fn() -> anyhow::Result<()>) -> Test {
    Test { name, needs, run }
}

/// Runs the tests, at most two at once: guest work is slow on the development hosts.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, tests.into_iter().map(Test::into_trial).collect()).exit_code()
}

impl Test {
    fn into_trial(self) -> Trial {
        let lacking = self.needs.iter().find_map(Need::lacking);
        let run = self.run;
        let trial = Trial::test(self.name, move || run().map_err(|error| format!("{error:#}").into()));
        match lacking {
            Some(reason) => trial.with_ignored_flag(true).with_kind(format!("skipped: {reason}")),
            None => trial,
        }
    }
}

impl Need {
    /// Why this host does not have it.
    fn lacking(&self) -> Option<String> {
        match self {
            Need::Kvm => {
                let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
                open.err().map(|error| format!("no usable /dev/kvm, {error}"))
            }
            Need::Root => (!rustix::process::geteuid().is_root()).then(|| "not root".to_owned()),
            Need::Variable(name) => std::env::var_os(name).is_none().then(|| format!("no {name}")),
            Need::Program(name) => (!in_path(name)).then(|| format!("no {name}")),
        }
    }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|dir| Path::new(&dir).join(name).is_file())
}
