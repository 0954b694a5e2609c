//! The other side of [`super::VmProcess::spawn`]: what `lighter vmm` does before it becomes a VMM.

use std::os::fd::RawFd;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Descriptors and parent, from `--config-fd N --event-fd M [--parent PID]`.
#[derive(Debug, PartialEq, Eq)]
pub struct ChildArgs {
    /// Where the configuration is read.
    pub config_fd: RawFd,
    /// Where events are written.
    pub event_fd: RawFd,
    /// The process with which this one dies.
    pub parent: Option<Pid>,
}

impl ChildArgs {
    /// Parses what follows `lighter vmm`; `None` where it is something else.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Option<Self> {
        let (mut config_fd, mut event_fd, mut parent) = (None, None, None);
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let value: i32 = args.next()?.parse().ok().filter(|value| *value >= 0)?;
            match name.as_str() {
                "--config-fd" => config_fd = Some(value),
                "--event-fd" => event_fd = Some(value),
                "--parent" => parent = Some(Pid::from_raw(value)?),
                _ => return None,
            }
        }
        Some(Self { config_fd: config_fd?, event_fd: event_fd?, parent })
    }
}

/// Is the VMM until the guest ends; gives the process's exit code.
pub fn run(args: &ChildArgs) -> i32 {
    // It was started as /proc/self/exe, which would be its name.
    let _ = rustix::thread::set_name(c"lighter-vmm");
    if let Some(parent) = args.parent {
        let asked = set_parent_process_death_signal(Some(Signal::KILL));
        // Between its fork and the request above the parent may have died already.
        if asked.is_err() || getppid() != Some(parent) {
            return 1;
        }
    }
    vmm::process::run(args.config_fd, args.event_fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<ChildArgs> {
        ChildArgs::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn both_descriptors_are_needed_and_nothing_else_is_taken() {
        let parent = Pid::from_raw(7);
        assert_eq!(
            parse("--config-fd 3 --event-fd 4 --parent 7"),
            Some(ChildArgs { config_fd: 3, event_fd: 4, parent })
        );
        assert!(parse("--event-fd 4 --config-fd 3").is_some_and(|args| args.parent.is_none()));
        for text in ["", "--config-fd 3", "--config-fd x --event-fd 4", "--config-fd 3 --event-fd", "a b"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
