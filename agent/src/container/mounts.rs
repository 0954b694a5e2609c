//! One mount, with an error that names it.

use std::ffi::CStr;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::failure::{Context, Failure};

/// Mounts `kind` on `target`.
pub fn mount_at(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), Failure> {
    mount(source, target, kind, flags, data).during(&format!("mount {kind} from {source} on {target}"))
}

/// Makes a directory unless something is there.
pub fn directory(path: &str, mode: u32) -> Result<(), Failure> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).during(&format!("make {path}")),
    }
}
