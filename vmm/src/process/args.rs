//! The command line of a VMM process.

use std::os::fd::RawFd;

use jailer::cage::Start;
use rustix::process::Pid;

/// What the command line looks like.
pub const USAGE: &str =
    "usage: lighter-vmm vmm --config-fd N --event-fd M [--parent PID] [--cage root|user|bare] [--no-seccomp]";

/// Descriptors, parent and cage, from what [`USAGE`] says.
#[derive(Debug, PartialEq, Eq)]
pub struct ProcessArgs {
    /// Where the configuration is read.
    pub config_fd: RawFd,
    /// Where events are written.
    pub event_fd: RawFd,
    /// The process with which this one dies.
    pub parent: Option<Pid>,
    /// Be confined before anything is built; who starts the process.
    pub cage: Option<Start>,
    /// Its threads may make any system call.
    pub no_seccomp: bool,
}

impl ProcessArgs {
    /// Parses what follows the program's name; `None` where it is something else. The first word is what
    /// tells a VMM from any other process in a list of them.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Option<Self> {
        let (mut config_fd, mut event_fd, mut parent, mut cage) = (None, None, None, None);
        let mut no_seccomp = false;
        let mut args = args.into_iter();
        if args.next()? != "vmm" {
            return None;
        }
        while let Some(name) = args.next() {
            if name == "--no-seccomp" {
                no_seccomp = true;
                continue;
            }
            let text = args.next()?;
            #[cfg(feature = "compromised")]
            if name == "--attempt" {
                crate::compromised::order(&text)?;
                continue;
            }
            if name == "--cage" {
                cage = Some(text.parse().ok()?);
                continue;
            }
            let value: i32 = text.parse().ok().filter(|value| *value >= 0)?;
            match name.as_str() {
                "--config-fd" => config_fd = Some(value),
                "--event-fd" => event_fd = Some(value),
                "--parent" => parent = Some(Pid::from_raw(value)?),
                _ => return None,
            }
        }
        Some(Self { config_fd: config_fd?, event_fd: event_fd?, parent, cage, no_seccomp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<ProcessArgs> {
        ProcessArgs::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn both_descriptors_are_needed_and_nothing_else_is_taken() {
        let parent = Pid::from_raw(7);
        assert_eq!(
            parse("vmm --config-fd 3 --event-fd 4 --parent 7"),
            Some(ProcessArgs { config_fd: 3, event_fd: 4, parent, cage: None, no_seccomp: false })
        );
        assert!(parse("vmm --event-fd 4 --config-fd 3").is_some_and(|args| args.parent.is_none()));
        let caged = parse("vmm --config-fd 3 --event-fd 4 --cage user");
        assert_eq!(caged.and_then(|args| args.cage), Some(Start::User));
        let wrong = [
            "vmm --config-fd 3 --event-fd 4 --cage none",
            "",
            "vmm",
            "--config-fd 3 --event-fd 4",
            "vmm --config-fd 3",
            "vmm --config-fd x --event-fd 4",
            "vmm --config-fd 3 --event-fd",
            "vmm a b",
        ];
        for text in wrong {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
