//! Extended attributes of a file: those that belong to it, not to the overlay it lies in.

use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

use crate::error::{ArchiveError, On as _};

/// What the overlay notes for itself, and what the guest's kernel would decide anew.
const FOREIGN: [&[u8]; 2] = [b"trusted.overlay.", b"security.selinux"];

/// The most that Linux gives for one list of names, or one value (`limits.h`).
const MAX_BYTES: usize = 64 << 10;

/// Name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// Every attribute that belongs to the file at `path`, sorted. A link is not followed.
pub fn read(path: &Path) -> Result<Vec<Attribute>, ArchiveError> {
    let mut buffer = [0u8; 4096];
    let names = match llistxattr(path, &mut buffer[..]) {
        Ok(count) => buffer.get(..count).unwrap_or_default().to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; MAX_BYTES];
            let count = llistxattr(path, &mut large[..]).on("list the attributes of", path)?;
            large.truncate(count);
            large
        }
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(errno) => return Err(errno).on("list the attributes of", path),
    };
    let mut attributes = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !FOREIGN.iter().any(|foreign| name.starts_with(foreign)) {
            attributes.extend(value(path, name)?.map(|value| (name.to_vec(), value)));
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// One attribute of the file at `path`; `None` if it has none of that name. A link is not followed.
pub fn value(path: &Path, name: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
    let mut buffer = vec![0u8; 256];
    loop {
        match lgetxattr(path, name, &mut buffer[..]) {
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < MAX_BYTES => buffer.resize(MAX_BYTES, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno).on("read an attribute of", path),
        }
    }
}
