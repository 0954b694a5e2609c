//! Prints one line for every entry below a directory: path, type, mode, owner, size or device, time, link
//! target, extended attributes, hard-link group and content hash. The same program runs on a tree that
//! `umoci` unpacked and inside the guest; the two lists must be equal.
//!
//! Arguments: root, then paths (relative to it) that are not looked at.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

unsafe extern "C" {
    fn llistxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn lgetxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
}

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let root = arguments.next().unwrap_or_else(|| "/".into());
    let skipped: Vec<PathBuf> = arguments.collect();
    let mut links = HashMap::new();
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout());
    let mut pending = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(directory) = pending.pop() {
        let entries = std::fs::read_dir(root.join(&directory)).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        for entry in entries {
            let entry = entry.expect("a directory entry");
            let path = directory.join(entry.file_name());
            if skipped.contains(&path) {
                continue;
            }
            if entry.file_type().expect("a file type").is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let line = describe(&root, &path, &mut links);
        writeln!(out, "{line}").expect("stdout");
    }
    out.flush().expect("stdout");
}

fn describe(root: &Path, path: &Path, links: &mut HashMap<(u64, u64), String>) -> String {
    let full = root.join(path);
    let meta = full.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", full.display()));
    let name = path.as_os_str().as_bytes().escape_ascii().to_string();
    let mut line = format!("{name} {:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
    let kind = meta.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        let _ = write!(line, " dev={:#x}", meta.rdev());
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(&full).expect("a link");
        let _ = write!(line, " -> {}", target.as_os_str().as_bytes().escape_ascii());
    }
    if kind.is_file() {
        let _ = write!(line, " size={} hash={:016x}", meta.len(), hash(&full));
    }
    if !kind.is_dir() {
        let _ = write!(line, " mtime={}", meta.mtime());
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        let first = links.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
        let _ = write!(line, " links={} first={first}", meta.nlink());
    }
    for (name, value) in attributes(&full) {
        let _ = write!(line, " {}={}", name.escape_ascii(), value.escape_ascii());
    }
    line
}

/// FNV-1a over eight bytes at a time, good enough to see a wrong byte.
fn hash(path: &Path) -> u64 {
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut filled = 0;
    loop {
        let count = file.read(&mut buffer[filled..]).expect("file data");
        filled += count;
        if count != 0 && filled < buffer.len() {
            continue;
        }
        let (words, rest) = buffer[..filled].as_chunks::<8>();
        for word in words {
            state = (state ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        for byte in rest {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if count == 0 {
            return state;
        }
        filled = 0;
    }
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path without NUL");
    let mut names = vec![0u8; 1 << 16];
    // SAFETY: the path is NUL-terminated; the buffer is as long as said.
    let length = unsafe { llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = names.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let mut value = vec![0u8; 1 << 16];
        // SAFETY: `name` ends with its NUL, as the kernel wrote it; the buffer is as long as said.
        let length = unsafe { lgetxattr(path.as_ptr(), name.as_ptr().cast(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(length).unwrap_or(0));
        found.push((name[..name.len() - 1].to_vec(), value));
    }
    found.sort();
    found
}
