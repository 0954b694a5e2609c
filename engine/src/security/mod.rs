//! What the process that runs a container's machine really holds, read from `/proc`: seen, not claimed.

mod helpers;
mod process;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::container::record::Record;
use crate::isolation::Isolation;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// There is no process.
    #[error("container {0} does not run: only a live process can be looked at")]
    NotRunning(String),
    /// There is no VMM.
    #[error("container {0} runs without a machine of its own (--isolation): there is no VMM process")]
    NoMachine(String),
    /// The process may not be looked at.
    #[error(
        "cannot look at the VMM, process {pid}: {what}; ask as root or as the user who started the container"
    )]
    Look {
        /// Its process ID.
        pid: u32,
        /// What was attempted.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Names of the five capability sets, and in `/proc/PID/status`.
const CAPABILITY_SETS: [(&str, &str); 5] = [
    ("ambient", "CapAmb"),
    ("bounding", "CapBnd"),
    ("effective", "CapEff"),
    ("inheritable", "CapInh"),
    ("permitted", "CapPrm"),
];

/// All that was found.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `lighter.security.v1`
    pub schema: String,
    /// The container.
    pub container: String,
    /// Process ID of its VMM.
    pub pid: u32,
    /// The container was not started with `--no-sandbox`.
    pub sandboxed: bool,
    /// User ID of the process, as the host sees it.
    pub uid: u32,
    /// Group ID, as the host sees it.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
    /// Of `cgroup`, `ipc`, `mnt`, `net`, `pid`, `user`, `uts`: true where the process has one of its own.
    pub namespaces: BTreeMap<String, bool>,
    /// The five sets, as bit masks in hexadecimal.
    pub capabilities: BTreeMap<String, String>,
    /// It can never get more privileges.
    pub no_new_privs: bool,
    /// Files below its root directory, the first few: sockets on which the host waits for the guest, nothing else.
    pub root: Vec<RootFile>,
    /// Mount points.
    pub mounts: Vec<String>,
    /// What it has open.
    pub files: Vec<OpenFile>,
    /// Limits: name, soft limit.
    pub limits: BTreeMap<String, String>,
    /// Control groups.
    pub cgroups: Vec<String>,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// System calls that each role may make, as the VMM was built.
    pub calls: BTreeMap<String, Vec<String>>,
    /// The processes beside it.
    pub helpers: Vec<Helper>,
    /// Layers that this process lacks, in words. Empty where all is as it shall be.
    pub missing: Vec<String>,
}

/// A process that works for the machine beside the VMM: the file server, the user-mode network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Helper {
    /// What it is.
    pub name: String,
    /// Its process ID.
    pub pid: u32,
    /// Its user ID, as the host sees it.
    pub uid: u32,
    /// As in [`Report`].
    pub namespaces: BTreeMap<String, bool>,
    /// As in [`Report`].
    pub capabilities: BTreeMap<String, String>,
    /// It can never get more privileges.
    pub no_new_privs: bool,
    /// Its first thread has a system call filter.
    pub filter: bool,
    /// Number of names in its root directory: for the file server its shares.
    pub root_entries: usize,
    /// What it lacks, in words.
    pub missing: Vec<String>,
}

/// A file that has a name for the process.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct RootFile {
    /// Its path in the process's root.
    pub path: String,
    /// It is a Unix socket, which the process may connect to.
    pub socket: bool,
}

/// One open descriptor.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct OpenFile {
    /// Its number.
    pub fd: u32,
    /// What it is, as `/proc/PID/fd` says.
    pub what: String,
    /// It can be written.
    pub writable: bool,
}

/// One thread.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its ID.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its role in `calls`.
    pub role: String,
    /// `filter`, `strict` or `off`.
    pub seccomp: String,
    /// Number of filters.
    pub filters: u32,
}

/// Looks at the VMM of the running container `record`.
pub fn inspect(record: &Record) -> Result<Report, SecurityError> {
    if record.spec.isolation != Isolation::Vm {
        return Err(SecurityError::NoMachine(record.name.clone()));
    }
    let pid = record.state.vmm.filter(|_| record.state.status.is_live());
    let pid = pid.ok_or_else(|| SecurityError::NotRunning(record.name.clone()))?;
    let mut report = process::look(pid)?;
    report.container = record.spec.id.to_string();
    report.sandboxed = !record.spec.machine.no_sandbox;
    for filter in [vmm::seccomp::MACHINE.vcpu, vmm::seccomp::MACHINE.worker, vmm::seccomp::MACHINE.saver] {
        report
            .calls
            .insert(filter.role.to_owned(), filter.calls.iter().map(|&call| call.to_owned()).collect());
    }
    report.missing = missing(&report);
    report.helpers = record.state.keeper.map(|keeper| helpers::look(keeper, pid)).unwrap_or_default();
    Ok(report)
}

/// What of the cage is not there.
fn missing(report: &Report) -> Vec<String> {
    let mut missing = Vec::new();
    let shared = report.namespaces.iter().filter(|(name, own)| !**own && name.as_str() != "cgroup");
    missing.extend(shared.map(|(name, _)| format!("it shares the host's {name} namespace")));
    if report.capabilities.values().any(|set| !set.trim_start_matches('0').is_empty()) {
        missing.push("it has capabilities".to_owned());
    }
    if !report.no_new_privs {
        missing.push("it may get new privileges".to_owned());
    }
    if report.uid == 0 {
        missing.push("it runs as root".to_owned());
    }
    if report.root.iter().any(|file| !file.socket) {
        missing.push("it sees files of the host in its root directory".to_owned());
    }
    for thread in report.threads.iter().filter(|thread| thread.seccomp != "filter") {
        missing.push(format!("thread {} may make every system call", thread.name));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_cage_is_told_from_one_with() {
        let mut report = process::look(std::process::id()).unwrap();
        let found = missing(&report).join(", ");
        for layer in ["net namespace", "pid namespace", "new privileges", "root directory", "system call"] {
            assert!(found.contains(layer), "{layer}: {found}");
        }
        assert!(report.files.iter().any(|file| file.fd == 1), "{:?}", report.files);
        report.namespaces.values_mut().for_each(|own| *own = true);
        report.capabilities.clear();
        (report.no_new_privs, report.uid, report.root, report.threads) = (true, 7, Vec::new(), Vec::new());
        assert_eq!(missing(&report), Vec::<String>::new());
    }
}
