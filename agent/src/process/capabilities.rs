//! Capability sets of a new process (capabilities(7)).

use rustix::io::Errno;

use crate::failure::{Failure, check, last_errno};

/// Names in the order of their numbers.
const NAMES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const VERSION_3: u32 = 0x2008_0522;

/// Names of those whose bit is set.
pub fn names_of(bits: u64) -> Vec<String> {
    let set = NAMES.iter().enumerate().filter(|(number, _)| bits & (1 << number) != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set(u64);

impl Set {
    /// The set of these names.
    pub fn parse(names: &[String]) -> Result<Self, Failure> {
        let number = |name: &String| {
            let position = NAMES.iter().position(|known| known == name);
            position.ok_or_else(|| Failure::agent(format!("{name}: no such capability")))
        };
        names.iter().try_fold(Set(0), |set, name| Ok(Set(set.0 | 1 << number(name)?)))
    }

    /// Takes every other capability out of the bounding set. Before the change of user.
    pub fn limit_bounding(self) -> Result<(), Errno> {
        for number in 0..u32::try_from(NAMES.len()).unwrap_or(0) {
            if self.0 & 1 << number == 0 {
                // SAFETY: PR_CAPBSET_DROP takes an integer.
                match check(unsafe {
                    libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0)
                }) {
                    // A kernel older than the capability does not know it.
                    Ok(_) | Err(Errno::INVAL) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    /// Makes this the permitted and effective set, and the inheritable one empty. For a process that is root;
    /// the kernel empties the sets of any other user at its change of user.
    pub fn apply(self) -> Result<(), Errno> {
        let low = (self.0 & u64::from(u32::MAX)) as u32;
        let high = (self.0 >> 32) as u32;
        let header = [VERSION_3, 0u32];
        // effective, permitted, inheritable: twice, low words first.
        let data = [low, low, 0, high, high, 0];
        // SAFETY: capset reads a header of two and data of six 32-bit words, as version 3 lays them out.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
        if result < 0 { Err(last_errno()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bits_and_unknown_names_are_refused() {
        let set = Set::parse(&["CAP_CHOWN".into(), "CAP_SYS_ADMIN".into(), "CAP_CHECKPOINT_RESTORE".into()])
            .unwrap();
        assert_eq!(set, Set(1 | 1 << 21 | 1 << 40));
        assert!(Set::parse(&["CAP_FLY".into()]).unwrap_err().message.contains("CAP_FLY"));
    }
}
