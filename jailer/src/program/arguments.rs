//! The command line of Firecracker's jailer.

use std::path::PathBuf;

/// What the command line looks like.
pub const USAGE: &str = "\
usage: lighter-jailer --id ID --exec-file PATH --uid UID --gid GID [--chroot-base-dir PATH] [--netns PATH]
                      [--cgroup FILE=VALUE]... [--cgroup-version 1|2] [--parent-cgroup PATH]
                      [--resource-limit fsize=BYTES|no-file=COUNT]... [--daemonize] [--new-pid-ns]
                      [-- ARGUMENT...]";

const DEFAULT_BASE: &str = "/srv/jailer";
/// Longest ID.
const MAX_ID: usize = 64;
/// Descriptors without `--resource-limit no-file`.
const DEFAULT_FILES: u64 = 2048;

/// A command line that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// No such argument.
    #[error("found argument {0:?}, which is not expected\n{USAGE}")]
    Unknown(String),
    /// It is not there, or its value is not.
    #[error("the argument {0} is required\n{USAGE}")]
    Missing(&'static str),
    /// Its value makes no sense.
    #[error("invalid value {value:?} of {name}: {why}")]
    Value {
        /// The argument.
        name: String,
        /// What it was given.
        value: String,
        /// What it takes.
        why: &'static str,
    },
}

/// What to start, and how confined.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What the VM is called.
    pub id: String,
    /// The program.
    pub exec_file: PathBuf,
    /// Who it runs as.
    pub uid: u32,
    /// And its group.
    pub gid: u32,
    /// Where the tree of each VM is made.
    pub base: PathBuf,
    /// A network namespace to join.
    pub netns: Option<PathBuf>,
    /// Files of a control group and what to write there.
    pub cgroups: Vec<(String, String)>,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Where its control group is made, below the root of the hierarchy.
    pub parent_cgroup: Option<PathBuf>,
    /// Most bytes of a file that it may write.
    pub file_bytes: Option<u64>,
    /// Most descriptors.
    pub files: u64,
    /// In a session of its own, without a terminal.
    pub daemonize: bool,
    /// In a PID namespace of its own.
    pub new_pid_ns: bool,
    /// What follows `--`, for the program.
    pub rest: Vec<String>,
}

impl Arguments {
    /// Parses what follows the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut given = Given::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                given.rest = arguments.by_ref().collect();
                break;
            }
            let (name, value) = match argument.split_once('=').filter(|(name, _)| name.starts_with("--")) {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            given.take(&name, || value.or_else(|| arguments.next()))?;
        }
        given.finish()
    }
}

#[derive(Default)]
struct Given {
    id: Option<String>,
    exec_file: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    base: Option<PathBuf>,
    netns: Option<PathBuf>,
    cgroups: Vec<(String, String)>,
    cgroup_version: Option<u8>,
    parent_cgroup: Option<PathBuf>,
    file_bytes: Option<u64>,
    files: Option<u64>,
    daemonize: bool,
    new_pid_ns: bool,
    rest: Vec<String>,
}

impl Given {
    fn take(&mut self, name: &str, value: impl FnOnce() -> Option<String>) -> Result<(), ArgumentError> {
        match name {
            "--daemonize" => self.daemonize = true,
            "--new-pid-ns" => self.new_pid_ns = true,
            _ => {
                let known = KNOWN.iter().find(|known| **known == name);
                let known = known.ok_or_else(|| ArgumentError::Unknown(name.to_owned()))?;
                let value = value().ok_or(ArgumentError::Missing(known))?;
                let error = |why| ArgumentError::Value { name: name.to_owned(), value: value.clone(), why };
                let number = || value.parse().map_err(|_| error("it takes a number"));
                match name {
                    "--id" => {
                        self.id =
                            Some(id(&value).ok_or_else(|| error("use up to 64 letters, digits and '-'"))?)
                    }
                    "--exec-file" => self.exec_file = Some(value.into()),
                    "--uid" => self.uid = Some(number()?),
                    "--gid" => self.gid = Some(number()?),
                    "--chroot-base-dir" => self.base = Some(value.into()),
                    "--netns" => self.netns = Some(value.into()),
                    "--cgroup" => self
                        .cgroups
                        .push(cgroup(&value).ok_or_else(|| error("write FILE=VALUE, as cpu.shares=512"))?),
                    "--cgroup-version" => match value.as_str() {
                        "1" => self.cgroup_version = Some(1),
                        "2" => self.cgroup_version = Some(2),
                        _ => return Err(error("it is 1 or 2")),
                    },
                    "--parent-cgroup" => {
                        let inside = !value.split('/').any(|part| part == "..");
                        self.parent_cgroup =
                            Some(inside.then(|| value.clone().into()).ok_or_else(|| error("it has .."))?)
                    }
                    "--resource-limit" => {
                        match value.split_once('=').map(|(what, count)| (what, count.parse())) {
                            Some(("fsize", Ok(bytes))) => self.file_bytes = Some(bytes),
                            Some(("no-file", Ok(count))) => self.files = Some(count),
                            _ => return Err(error("write fsize=BYTES or no-file=COUNT")),
                        }
                    }
                    // Times of Firecracker's own measuring.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Arguments, ArgumentError> {
        Ok(Arguments {
            id: self.id.ok_or(ArgumentError::Missing("--id"))?,
            exec_file: self.exec_file.ok_or(ArgumentError::Missing("--exec-file"))?,
            uid: self.uid.ok_or(ArgumentError::Missing("--uid"))?,
            gid: self.gid.ok_or(ArgumentError::Missing("--gid"))?,
            base: self.base.unwrap_or_else(|| DEFAULT_BASE.into()),
            netns: self.netns,
            cgroups: self.cgroups,
            cgroup_version: self.cgroup_version.unwrap_or(1),
            parent_cgroup: self.parent_cgroup,
            file_bytes: self.file_bytes,
            files: self.files.unwrap_or(DEFAULT_FILES),
            daemonize: self.daemonize,
            new_pid_ns: self.new_pid_ns,
            rest: self.rest,
        })
    }
}

/// Arguments with a value.
const KNOWN: [&str; 10] = [
    "--id",
    "--exec-file",
    "--uid",
    "--gid",
    "--chroot-base-dir",
    "--netns",
    "--cgroup",
    "--cgroup-version",
    "--parent-cgroup",
    "--resource-limit",
];

fn id(text: &str) -> Option<String> {
    let fits = (1..=MAX_ID).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    fits.then(|| text.to_owned())
}

/// `cpu.shares=512`: the file's name says its controller, and is no path.
fn cgroup(text: &str) -> Option<(String, String)> {
    let (file, value) = text.split_once('=')?;
    let fits = file.contains('.') && !file.contains('/') && !file.starts_with('.') && !value.is_empty();
    fits.then(|| (file.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    const LEAST: &str = "--id vm-1 --exec-file /bin/x --uid 7 --gid 8";

    #[test]
    fn the_rest_is_for_the_program() {
        let text = format!(
            "{LEAST} --daemonize --cgroup cpu.shares=5 --resource-limit=no-file=10 -- --api-sock a --id b"
        );
        let arguments = parse(&text).unwrap();
        assert_eq!((arguments.uid, arguments.gid, arguments.files), (7, 8, 10));
        assert_eq!(arguments.cgroups, [("cpu.shares".to_owned(), "5".to_owned())]);
        assert_eq!(arguments.base, PathBuf::from(DEFAULT_BASE));
        assert!(arguments.daemonize && !arguments.new_pid_ns);
        assert_eq!(arguments.rest, ["--api-sock", "a", "--id", "b"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert_eq!(parse("--id a --exec-file b --uid 1"), Err(ArgumentError::Missing("--gid")));
        assert_eq!(parse("--id"), Err(ArgumentError::Missing("--id")));
        for wrong in [
            "--id ../x",
            "--uid -1",
            "--cgroup-version 3",
            "--cgroup ../x=1",
            "--cgroup cpu",
            "--frob 1",
            "--resource-limit core=1",
            "--parent-cgroup a/../..",
        ] {
            let error = parse(&format!("{LEAST} {wrong}")).unwrap_err().to_string();
            assert!(error.contains(wrong.split(' ').next().unwrap()), "{error}");
        }
    }
}
