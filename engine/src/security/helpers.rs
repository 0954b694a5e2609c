//! The processes beside a VMM: what its keeper started, which is the file server and the user-mode network.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::process::{Status, namespaces};
use super::{CAPABILITY_SETS, Helper};

/// Children of a keeper that are shown; it has three at most.
const MAX_HELPERS: usize = 16;
/// Entries of a root directory that are counted.
const MAX_NAMES: usize = 4096;

/// What `keeper` has started besides the process `vmm`. One that ends meanwhile is left out.
pub fn look(keeper: u32, vmm: u32) -> Vec<Helper> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != vmm && parent(*pid) == Some(keeper))
        .filter_map(|pid| helper(pid).ok())
        .take(MAX_HELPERS)
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    Some(Status::read(&Path::new("/proc").join(pid.to_string()).join("status")).ok()?.first_number("PPid"))
}

fn helper(pid: u32) -> io::Result<Helper> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let status = Status::read(&place.join("status"))?;
    let arguments = fs::read(place.join("cmdline"))?;
    let verb = arguments.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    let name = match verb == crate::volumes::VERB.as_bytes() {
        true => "file server".to_owned(),
        false => crate::text::printable(status.text("Name").as_bytes()),
    };
    let capabilities: BTreeMap<_, _> =
        CAPABILITY_SETS.iter().map(|(name, key)| ((*name).to_owned(), status.text(key))).collect();
    let filter = status.first_number("Seccomp") == 2;
    let mut helper = Helper {
        name,
        pid,
        uid: status.first_number("Uid"),
        namespaces: namespaces(&place)?,
        capabilities,
        no_new_privs: status.first_number("NoNewPrivs") == 1,
        filter,
        root_entries: fs::read_dir(place.join("root"))?.take(MAX_NAMES).count(),
        missing: Vec::new(),
    };
    helper.missing = missing(&helper);
    Ok(helper)
}

/// What a helper of ours has of its host, beyond what its work takes.
fn missing(helper: &Helper) -> Vec<String> {
    let mut missing = Vec::new();
    // A user-mode network is there for the host's network.
    let needless = |name: &str| name == "mnt" || (name == "net" && helper.name == "file server");
    let shared = helper.namespaces.iter().filter(|(name, own)| !**own && needless(name));
    missing.extend(shared.map(|(name, _)| format!("it shares the host's {name} namespace")));
    if !helper.filter {
        missing.push("it may make every system call".to_owned());
    }
    if !helper.no_new_privs {
        missing.push("it may get new privileges".to_owned());
    }
    if helper.uid == 0
        && !helper.namespaces.get("user").is_some_and(|own| *own)
        && helper.name != "file server"
    {
        missing.push("it runs as root".to_owned());
    }
    missing
}
