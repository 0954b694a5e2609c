//! A container's own writable layer: a copy of the template's, which is nearly all holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Copies `source` to the new file `target`: shares the blocks where the file system can, else copies what is no hole.
pub fn copy_sparse(source: &Path, target: &Path) -> io::Result<()> {
    let from = File::open(source)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    let copy = || {
        if ioctl_ficlone(&to, &from).is_ok() {
            return Ok(());
        }
        let len = from.metadata()?.len();
        to.set_len(len)?;
        copy_data(&from, &to, len)
    };
    copy().inspect_err(|_| {
        // The error being returned matters more.
        let _ = std::fs::remove_file(target);
    })
}

fn copy_data(from: &File, to: &File, len: u64) -> io::Result<()> {
    let mut position = 0;
    while position < len {
        let data = match seek(from, SeekFrom::Data(position)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        position = seek(from, SeekFrom::Hole(data))?;
        let (mut read, mut written) = (data, data);
        while read < position {
            let left = usize::try_from(position - read).unwrap_or(usize::MAX);
            if copy_file_range(from, Some(&mut read), to, Some(&mut written), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn the_copy_has_the_data_and_the_holes() {
        let base = tempfile::tempdir().unwrap();
        let (source, target) = (base.path().join("a"), base.path().join("b"));
        let file = File::create(&source).unwrap();
        file.set_len(1 << 30).unwrap();
        for (offset, text) in [(0, "first"), (100 << 20, "middle"), ((1 << 30) - 4, "last")] {
            file.write_all_at(text.as_bytes(), offset).unwrap();
        }
        copy_sparse(&source, &target).unwrap();
        let copy = File::open(&target).unwrap();
        let read = |offset, len| {
            let mut bytes = vec![0; len];
            copy.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        };
        assert_eq!((read(0, 6), read(100 << 20, 6)), (b"first\0".to_vec(), b"middle".to_vec()));
        assert_eq!(read((1 << 30) - 4, 4), b"last");
        let meta = copy.metadata().unwrap();
        assert!(meta.len() == 1 << 30 && meta.blocks() * 512 < 1 << 20);
        assert_eq!(copy_sparse(&source, &target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(target.exists());
    }
}
