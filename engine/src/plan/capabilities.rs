//! Capabilities of the container's process: Docker's default set, `--cap-add`, `--cap-drop`, `--privileged`.

/// What Docker leaves a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// How many there are.
pub fn count() -> usize {
    ALL.len()
}

/// All of Linux 6.12, by number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A name that is no capability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} {name:?} is no capability: write one of capabilities(7), for example NET_ADMIN, or ALL")]
pub struct CapabilityError {
    option: &'static str,
    name: String,
}

/// The capabilities to keep, with their prefix, in the kernel's order.
pub fn capabilities(
    privileged: bool,
    add: &[String],
    drop: &[String],
) -> Result<Vec<String>, CapabilityError> {
    let add = parse("--cap-add", add)?;
    let drop = parse("--cap-drop", drop)?;
    let all = |list: &[&str]| list.contains(&"ALL");
    let kept = |name: &&str| {
        // As Docker: ALL on one side, then the other side's names are the exceptions.
        match (all(&add), all(&drop)) {
            _ if privileged => true,
            (true, _) => !drop.contains(name),
            (false, true) => add.contains(name),
            (false, false) => (DEFAULT.contains(name) || add.contains(name)) && !drop.contains(name),
        }
    };
    Ok(ALL.into_iter().filter(kept).map(|name| format!("CAP_{name}")).collect())
}

fn parse(option: &'static str, names: &[String]) -> Result<Vec<&'static str>, CapabilityError> {
    names
        .iter()
        .map(|given| {
            let upper = given.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let known = ALL.into_iter().chain(["ALL"]).find(|known| *known == name);
            known.ok_or_else(|| CapabilityError { option, name: given.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(privileged: bool, add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        capabilities(privileged, &own(add), &own(drop)).unwrap()
    }

    #[test]
    fn the_default_is_dockers() {
        let default = set(false, &[], &[]);
        assert_eq!(default.len(), 14);
        assert!(default.contains(&"CAP_CHOWN".to_owned()) && !default.contains(&"CAP_SYS_ADMIN".to_owned()));
    }

    #[test]
    fn names_add_and_drop_and_all_is_all() {
        assert!(set(false, &["net_admin"], &[]).contains(&"CAP_NET_ADMIN".to_owned()));
        assert!(!set(false, &[], &["CAP_CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(set(false, &["kill"], &["all"]), ["CAP_KILL"]);
        assert_eq!(set(false, &["ALL"], &["SYS_ADMIN"]).len(), ALL.len() - 1);
        assert_eq!(set(true, &[], &[]).len(), ALL.len());
    }

    #[test]
    fn an_unknown_name_is_named() {
        let error = capabilities(false, &["NO_SUCH".into()], &[]).unwrap_err();
        assert!(error.to_string().contains("--cap-add \"NO_SUCH\""), "{error}");
    }
}
