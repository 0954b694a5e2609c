//! Who calls, and what that one may have.
//!
//! A tenant has directories of its own, `tenants/NAME` below those of the installation: its containers, images,
//! networks, volumes, snapshots and events are other files than everybody else's, so there is nothing to filter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use engine::container::record::{self, Record};
use engine::dirs::Dirs;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::exclusive;
use crate::problem::{Kind, Problem};

/// Longest name of a tenant: it is part of the paths of sockets.
const MAX_NAME: usize = 16;
/// Largest file of tokens that is read.
const MAX_FILE: u64 = 4 << 20;

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant; `None` is whoever owns the installation.
    pub tenant: Option<Arc<Tenant>>,
    /// Where its things are.
    pub dirs: Dirs,
}

/// A tenant.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// What it may have.
    pub rules: Rules,
}

/// What a tenant may have and do. What is left out has no limit, or is not allowed.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// SHA-256 of its tokens, in hexadecimal digits.
    token_sha256: Vec<String>,
    /// Containers that run.
    pub vms: Option<u32>,
    /// Their vCPUs.
    pub vcpus: Option<u32>,
    /// Their memory.
    pub memory_mib: Option<u64>,
    /// Disk space of everything that it has.
    pub disk_mib: Option<u64>,
    /// It may name paths of the host: to mount them, as images, as kernels.
    pub host_paths: bool,
    /// It may publish ports on the host.
    pub host_ports: bool,
}

/// The file of tokens.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokenFile {
    /// SHA-256 of tokens that stand for the whole installation.
    admin_token_sha256: Vec<String>,
    /// By name.
    tenants: BTreeMap<String, Rules>,
}

/// A file of tokens is no good.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the tokens in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Others can.
    #[error("the tokens in {} can be read by others: chmod 600 {}", .0.display(), .0.display())]
    Open(PathBuf),
    /// It says something that cannot be.
    #[error("the tokens in {}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What.
        why: String,
    },
}

/// Tokens, and whose they are. The file is read again when it changes.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    known: Mutex<(Stamp, Known)>,
}

type Stamp = Option<(SystemTime, u64)>;
/// Digest of a token to its tenant, or to the whole installation.
type Known = BTreeMap<String, Option<Arc<Tenant>>>;

impl Tokens {
    /// Reads the file `path`.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let known = Mutex::new((stamp(path), read(path)?));
        Ok(Self { path: path.to_owned(), known })
    }

    /// Whose `token` is.
    pub fn find(&self, token: &str) -> Result<Option<Arc<Tenant>>, Problem> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if known.0 != now {
            // A file that is no good lets nobody in, rather than those who should not be.
            known.1.clear();
            *known = (now, read(&self.path).map_err(|error| Problem::of(Kind::HOST, &error))?);
        }
        // By digest: how long the search takes says nothing about a token.
        let found = known.1.get(&digest(token)).cloned();
        found.ok_or_else(|| Problem::new(Kind::UNAUTHORIZED, "this token was given to nobody"))
    }
}

fn stamp(path: &Path) -> Stamp {
    let file = path.metadata().ok()?;
    Some((file.modified().ok()?, file.ino()))
}

fn read(path: &Path) -> Result<Known, TokenError> {
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let bad = |why: String| TokenError::Content { path: path.to_owned(), why };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(TokenError::Open(path.to_owned()));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    let tokens: TokenFile = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    let mut known = Known::new();
    let mut add = |token: &str, whose: Option<Arc<Tenant>>| {
        let token = token.to_ascii_lowercase();
        if token.len() != 64 || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad(format!("{token:?} is no SHA-256: `printf %s TOKEN | sha256sum` prints it")));
        }
        match known.insert(token, whose) {
            None => Ok(()),
            Some(_) => Err(bad("a token was given twice".to_owned())),
        }
    };
    for token in &tokens.admin_token_sha256 {
        add(token, None)?;
    }
    for (name, rules) in tokens.tenants {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(plain) {
            return Err(bad(format!(
                "{name:?} is no name for a tenant: use 1 to {MAX_NAME} lower-case letters, digits and '-'"
            )));
        }
        let tenant = Arc::new(Tenant { name, rules });
        for token in &tenant.rules.token_sha256 {
            add(token, Some(Arc::clone(&tenant)))?;
        }
    }
    Ok(known)
}

fn digest(token: &str) -> String {
    Sha256::digest(token).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Caller {
    /// Of the tenant, or of the whole installation in `dirs`.
    pub fn new(dirs: &Dirs, tenant: Option<Arc<Tenant>>) -> Self {
        let dirs = match &tenant {
            None => dirs.clone(),
            Some(tenant) => Dirs {
                data: dirs.data.join("tenants").join(&tenant.name),
                run: dirs.run.join("t").join(&tenant.name),
                cache: dirs.cache.clone(),
            },
        };
        Self { tenant, dirs }
    }

    /// Refuses what only whoever owns the installation may do.
    pub fn owner_only(&self, what: &str) -> Result<(), Problem> {
        match &self.tenant {
            None => Ok(()),
            Some(_) => Err(Problem::new(Kind::FORBIDDEN, format!("a tenant may not {what}"))),
        }
    }

    /// Refuses paths of the host.
    pub fn host_path(&self, what: &str) -> Result<(), Problem> {
        self.allowed(|rules| rules.host_paths, &format!("name paths of the host, as {what} does"))
    }

    /// Refuses ports of the host.
    pub fn host_port(&self) -> Result<(), Problem> {
        self.allowed(|rules| rules.host_ports, "publish ports on the host")
    }

    fn allowed(&self, rule: fn(&Rules) -> bool, what: &str) -> Result<(), Problem> {
        match &self.tenant {
            Some(tenant) if !rule(&tenant.rules) => {
                Err(Problem::new(Kind::FORBIDDEN, format!("tenant {} may not {what}", tenant.name)))
            }
            _ => Ok(()),
        }
    }

    /// Does `start`, which starts `more` (vCPUs and MiB of each), within the quotas.
    pub fn starting<T>(
        &self,
        more: &[(u8, u32)],
        start: impl FnOnce() -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let Some(tenant) = &self.tenant else { return start() };
        // Two requests, of two servers maybe, cannot both take the last place.
        let _turn = exclusive::turn(&self.dirs, exclusive::START)?;
        let live = |record: &Record| record.state.status.is_live();
        let running: Vec<_> = record::list(&self.dirs).into_iter().filter(live).collect();
        let mut all: Vec<(u8, u32)> = running
            .iter()
            .map(|record| (record.spec.machine.vcpus, record.spec.machine.memory_mib))
            .collect();
        all.extend_from_slice(more);
        let vcpus: u64 = all.iter().map(|one| u64::from(one.0)).sum();
        let memory: u64 = all.iter().map(|one| u64::from(one.1)).sum();
        let rules = &tenant.rules;
        tenant.check("VMs", all.len() as u64, rules.vms.map(u64::from))?;
        tenant.check("vCPUs", vcpus, rules.vcpus.map(u64::from))?;
        tenant.check("MiB of memory", memory, rules.memory_mib)?;
        start()
    }

    /// Bytes of disk that there is still room for; an error where there is none.
    pub fn disk_left(&self) -> Result<u64, Problem> {
        let Some((tenant, quota)) =
            self.tenant.as_ref().and_then(|tenant| Some((tenant, tenant.rules.disk_mib?)))
        else {
            return Ok(u64::MAX);
        };
        let used = bytes(&self.dirs.data);
        tenant.check("MiB of disk", (used >> 20) + 1, Some(quota))?;
        Ok((quota << 20).saturating_sub(used))
    }
}

impl Tenant {
    fn check(&self, what: &str, wanted: u64, quota: Option<u64>) -> Result<(), Problem> {
        match quota {
            Some(quota) if wanted > quota => Err(Problem::new(
                Kind::QUOTA,
                format!("tenant {} may have {quota} {what}; this would make it {wanted}", self.name),
            )),
            _ => Ok(()),
        }
    }
}

/// Disk space below `directory`; a file with several names counts once where they are.
fn bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes(&entry.path()),
        Ok(meta) => meta.blocks() * 512 / meta.nlink().max(1),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(directory: &Path, text: &str, mode: u32) -> PathBuf {
        let path = directory.join("tokens");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn tokens_say_whose_they_are_and_a_new_file_counts_at_once() {
        let base = tempfile::tempdir().unwrap();
        let text = format!(r#"{{"tenants":{{"blue":{{"token_sha256":["{}"],"vms":2}}}}}}"#, digest("secret"));
        let path = file(base.path(), &text, 0o600);
        let tokens = Tokens::open(&path).unwrap();
        let blue = tokens.find("secret").unwrap().unwrap();
        assert_eq!((blue.name.as_str(), blue.rules.vms), ("blue", Some(2)));
        assert_eq!(tokens.find("other").unwrap_err().kind, Kind::UNAUTHORIZED);
        file(base.path(), &format!(r#"{{"admin_token_sha256":["{}"]}}"#, digest("root")), 0o600);
        assert!(tokens.find("root").unwrap().is_none());
        assert!(tokens.find("secret").is_err());
    }

    #[test]
    fn two_servers_cannot_both_take_the_last_place() {
        let base = tempfile::tempdir().unwrap();
        let dirs = Dirs { data: base.path().into(), run: base.path().into(), cache: base.path().into() };
        let rules = Rules { vms: Some(1), ..Rules::default() };
        let inside = std::sync::atomic::AtomicU32::new(0);
        let begin = || {
            // Each with a tenant of its own, as in another process.
            let tenant = Arc::new(Tenant { name: "blue".into(), rules: rules.clone() });
            let caller = Caller { tenant: Some(tenant), dirs: dirs.clone() };
            caller.starting(&[(1, 64)], || {
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                std::thread::sleep(std::time::Duration::from_millis(20));
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                Ok(())
            })
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(|| begin().unwrap()))));
        let two = Caller {
            tenant: Some(Arc::new(Tenant { name: "b".into(), rules: rules.clone() })),
            dirs: dirs.clone(),
        };
        assert_eq!(two.starting(&[(1, 64), (1, 64)], || Ok(())).unwrap_err().kind, Kind::QUOTA);
    }

    #[test]
    fn files_that_are_no_good_are_named() {
        let base = tempfile::tempdir().unwrap();
        for (text, mode, part) in [
            ("{}", 0o644, "chmod"),
            ("[", 0o600, "EOF"),
            (r#"{"tenants":{"../x":{}}}"#, 0o600, "no name"),
            (r#"{"admin_token_sha256":["x"]}"#, 0o600, "sha256sum"),
            (r#"{"tenants":{"a":{"cpu":1}}}"#, 0o600, "cpu"),
        ] {
            let error = Tokens::open(&file(base.path(), text, mode)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
