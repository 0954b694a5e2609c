//! One process in `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::{CAPABILITY_SETS, OpenFile, Report, RootFile, SecurityError, Thread};

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Entries that are shown of a directory, and lines of a file: the process may have been taken over.
const MAX_ENTRIES: usize = 4096;
/// Files and directories that are looked at below a root directory.
const MAX_ROOT: usize = 16;

/// What `/proc` says of process `pid`.
pub fn look(pid: u32) -> Result<Report, SecurityError> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let look = |what| move |source| SecurityError::Look { pid, what, source };
    let status = Status::read(&place.join("status")).map_err(look("read its status"))?;
    let capabilities = CAPABILITY_SETS.map(|(name, key)| (name.to_owned(), status.text(key)));
    Ok(Report {
        schema: "lighter.security.v1".to_owned(),
        container: String::new(),
        pid,
        sandboxed: false,
        uid: status.first_number("Uid"),
        gid: status.first_number("Gid"),
        groups: status.numbers("Groups"),
        namespaces: namespaces(&place).map_err(look("read its namespaces"))?,
        capabilities: capabilities.into_iter().collect(),
        no_new_privs: status.first_number("NoNewPrivs") == 1,
        root: root_files(&place.join("root")).map_err(look("read its root"))?,
        mounts: lines(&place.join("mounts"), |line| {
            let mut words = line.split(' ');
            Some(format!("{2} {0} ({1})", words.nth(2)?, words.next()?, line.split(' ').nth(1)?))
        })
        .map_err(look("read its mounts"))?,
        files: files(&place).map_err(look("read its open files"))?,
        limits: limits(&place.join("limits")).map_err(look("read its limits"))?,
        cgroups: lines(&place.join("cgroup"), |line| Some(line.to_owned()))
            .map_err(look("read its cgroups"))?,
        threads: threads(&place).map_err(look("read its threads"))?,
        calls: BTreeMap::new(),
        helpers: Vec::new(),
        missing: Vec::new(),
    })
}

/// `/proc/PID/status`
pub(super) struct Status(String);

impl Status {
    pub fn read(path: &Path) -> io::Result<Self> {
        fs::read_to_string(path).map(Self)
    }

    pub fn text(&self, key: &str) -> String {
        let of = |line: &str| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned());
        self.0.lines().find_map(of).unwrap_or_default()
    }

    fn numbers(&self, key: &str) -> Vec<u32> {
        self.text(key).split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    pub fn first_number(&self, key: &str) -> u32 {
        self.numbers(key).first().copied().unwrap_or_default()
    }
}

pub(super) fn namespaces(place: &Path) -> io::Result<BTreeMap<String, bool>> {
    let differs = |name: &str| -> io::Result<(String, bool)> {
        let theirs = fs::read_link(place.join("ns").join(name))?;
        let ours = fs::read_link(Path::new("/proc/self/ns").join(name))?;
        Ok((name.to_owned(), theirs != ours))
    };
    NAMESPACES.into_iter().map(differs).collect()
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.take(MAX_ENTRIES);
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// The first files below `root`; a cage has few, a host more than are worth listing.
fn root_files(root: &Path) -> io::Result<Vec<RootFile>> {
    let (mut found, mut directories) = (Vec::new(), vec![PathBuf::from("/")]);
    for _ in 0..MAX_ROOT {
        let Some(directory) = directories.pop() else { break };
        for name in names(&root.join(directory.strip_prefix("/").unwrap_or(&directory)))? {
            let path = directory.join(&name);
            // Neither the process nor we follow links here.
            let kind = fs::symlink_metadata(root.join(path.strip_prefix("/").unwrap_or(&path)))?.file_type();
            if kind.is_dir() {
                directories.push(path);
                continue;
            }
            let path = crate::text::printable(path.to_string_lossy().as_bytes());
            found.push(RootFile { path, socket: kind.is_socket() });
            if found.len() == MAX_ROOT {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn lines<T>(file: &Path, of: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
    Ok(fs::read_to_string(file)?.lines().take(MAX_ENTRIES).filter_map(of).collect())
}

fn files(place: &Path) -> io::Result<Vec<OpenFile>> {
    let mut files: Vec<OpenFile> = names(&place.join("fd"))?
        .iter()
        .filter_map(|name| {
            // One that was closed meanwhile is left out.
            let what = fs::read_link(place.join("fd").join(name)).ok()?;
            let info = Status::read(&place.join("fdinfo").join(name)).ok()?;
            let flags = i32::from_str_radix(&info.text("flags"), 8).ok()?;
            Some(OpenFile {
                fd: name.parse().ok()?,
                what: crate::text::printable(what.to_string_lossy().as_bytes()),
                writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
            })
        })
        .collect();
    files.sort_unstable_by_key(|file| file.fd);
    Ok(files)
}

/// Columns of `/proc/PID/limits`: the name takes 26 characters.
fn limits(file: &Path) -> io::Result<BTreeMap<String, String>> {
    let limits = lines(file, |line| {
        let (name, values) = line.split_at_checked(26)?;
        Some((name.trim().to_owned(), values.split_whitespace().next()?.to_owned()))
    })?;
    Ok(limits.into_iter().filter(|(name, _)| name != "Limit").collect())
}

fn threads(place: &Path) -> io::Result<Vec<Thread>> {
    let of = |id: &String| {
        let status = Status::read(&place.join("task").join(id).join("status")).ok()?;
        let name = crate::text::printable(status.text("Name").as_bytes());
        let role = match name.as_str() {
            name if name.starts_with("vcpu") => "vcpu",
            "saver" => "saver",
            // Made by KVM; it never leaves the kernel.
            name if name.starts_with("kvm-") => "kernel",
            _ => "worker",
        };
        let seccomp = ["off", "strict", "filter"].get(status.first_number("Seccomp") as usize);
        Some(Thread {
            id: id.parse().ok()?,
            role: role.to_owned(),
            seccomp: (*seccomp.unwrap_or(&"unknown")).to_owned(),
            filters: status.first_number("Seccomp_filters"),
            name,
        })
    };
    Ok(names(&place.join("task"))?.iter().filter_map(of).collect())
}
