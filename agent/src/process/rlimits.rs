//! Resource limits by the names that `getrlimit(2)` gives them.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::failure::{Context, Failure};

const NAMES: &[(&str, Resource)] = &[
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// Sets the limits of the calling process: name, soft, hard; `u64::MAX` is no limit.
pub fn apply(limits: &[(String, u64, u64)]) -> Result<(), Failure> {
    for (name, soft, hard) in limits {
        let resource = NAMES.iter().find(|(known, _)| known == name).map(|(_, resource)| *resource);
        let resource = resource.ok_or_else(|| Failure::agent(format!("{name}: no such resource limit")))?;
        let limit = |value: u64| (value != u64::MAX).then_some(value);
        setrlimit(resource, Rlimit { current: limit(*soft), maximum: limit(*hard) }).during(name)?;
    }
    Ok(())
}
