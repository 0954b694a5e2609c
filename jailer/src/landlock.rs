//! Landlock (Linux 5.13): no file but those given can be opened by its path any more, whatever else fails. What is open
//! stays so.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::cage::Given;

/// Every right of `linux/landlock.h` that a version knows, oldest first.
const FILE_RIGHTS: [u32; 5] = [13, 14, 15, 15, 16];
/// To read a file, and the names in a directory.
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// To write files, remove and make them and directories, rename them and cut them.
const WRITE: u64 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | 1 << 14;
/// Before this version no file can be renamed into another directory.
const REFER_VERSION: i64 = 2;
/// Binding and connecting of TCP ports, since version 4.
const BIND: u64 = 1;
const CONNECT: u64 = 2;
/// Abstract Unix sockets of others, and signals to others, since version 6.
const SCOPES: u64 = 0b11;
const VERSION_QUERY: libc::c_ulong = 1;
const PATH_BENEATH: libc::c_ulong = 1;

#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct Beneath {
    rights: u64,
    parent: libc::c_int,
}

/// Takes every right away that this kernel's Landlock knows, in this thread and those it makes, but those to what is
/// `given` and, with `network`, that to connect. Needs `no_new_privs`.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where the kernel has no Landlock, or one that forbids what is to be written.
pub fn restrict(given: &[Given], network: bool) -> io::Result<()> {
    // SAFETY: with the query flag the kernel takes no pointer and gives a number.
    let version = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0_usize, VERSION_QUERY)
    })?;
    let known = usize::try_from(version).unwrap_or_default().clamp(1, FILE_RIGHTS.len());
    let all = (1 << FILE_RIGHTS[known - 1]) - 1;
    if version < REFER_VERSION && given.iter().any(|given| matches!(given, Given::Writable(_))) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let net = if network { BIND } else { BIND | CONNECT };
    let rules = Ruleset {
        files: all,
        net: if version >= 4 { net } else { 0 },
        scopes: if version >= 6 { SCOPES } else { 0 },
    };
    // What an old kernel does not know is zero, as it asks for.
    // SAFETY: the pointer and the size are those of a local structure, which the kernel only reads.
    let ruleset = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size_of::<Ruleset>(), 0)
    })?;
    // SAFETY: the descriptor was just made, and nobody else knows it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as libc::c_int) };
    given.iter().try_for_each(|given| permit(&ruleset, given, all))?;
    // SAFETY: plain system call with a descriptor that is open.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// Leaves rights to what is below the path that was given, if there is such a thing.
fn permit(ruleset: &OwnedFd, given: &Given, all: u64) -> io::Result<()> {
    let (path, rights) = match given {
        // To connect takes no right.
        Given::Socket(_) => return Ok(()),
        Given::Readable(path) => (path, READ_FILE | READ_DIR),
        Given::Writable(path) => (path, READ_FILE | READ_DIR | WRITE),
    };
    let file = match fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        file => file?,
    };
    let is_directory = FileType::from_raw_mode(fs::fstat(&file)?.st_mode).is_dir();
    let rights = if is_directory { rights } else { rights & !READ_DIR };
    let rule = Beneath { rights: rights & all, parent: file.as_raw_fd() };
    // SAFETY: both descriptors are open; the kernel reads the structure that kind of rule has.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0)
    })
    .map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
