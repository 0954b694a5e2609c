//! Landlock (Linux 5.13): no file can be opened by its path any more, whatever else fails. What is open stays so.

use std::io;

/// Every right of `linux/landlock.h` that a version knows, oldest first.
const FILE_RIGHTS: [u32; 5] = [13, 14, 15, 15, 16];
/// Binding and connecting of TCP ports, since version 4.
const NET_RIGHTS: u64 = 0b11;
/// Abstract Unix sockets of others, and signals to others, since version 6.
const SCOPES: u64 = 0b11;
const VERSION_QUERY: libc::c_ulong = 1;

#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scopes: u64,
}

/// Takes every right away that this kernel's Landlock knows, in this thread and those it makes. Needs `no_new_privs`.
///
/// # Errors
/// ENOSYS or EOPNOTSUPP where the kernel has no Landlock.
pub fn restrict() -> io::Result<()> {
    // SAFETY: with the query flag the kernel takes no pointer and gives a number.
    let version = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0_usize, VERSION_QUERY)
    })?;
    let known = usize::try_from(version).unwrap_or_default().clamp(1, FILE_RIGHTS.len());
    let rules = Ruleset {
        files: (1 << FILE_RIGHTS[known - 1]) - 1,
        net: if version >= 4 { NET_RIGHTS } else { 0 },
        scopes: if version >= 6 { SCOPES } else { 0 },
    };
    // What an old kernel does not know is zero, as it asks for.
    // SAFETY: the pointer and the size are those of a local structure, which the kernel only reads.
    let ruleset = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size_of::<Ruleset>(), 0)
    })?;
    // SAFETY: plain system call with a descriptor that was just made.
    let restricted = check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) });
    // SAFETY: the descriptor is ours and nobody uses it any more.
    unsafe { libc::close(ruleset as libc::c_int) };
    restricted.map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
