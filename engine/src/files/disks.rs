//! A container's disks as files of the host, where a guest's tools show the content of large files.
//!
//! The places are a guest's word. They can lead it nowhere but to its own disks, within their size.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use agent_protocol::tool::{Disk, Piece};

/// Bytes moved at once.
const CHUNK: usize = 1 << 20;

/// The two disks, open.
#[derive(Clone, Debug)]
pub struct Disks {
    image: Arc<File>,
    writable: Arc<File>,
}

impl Disks {
    /// Opens the image's root filesystem and the writable layer.
    pub fn open(image: &Path, writable: &Path) -> io::Result<Self> {
        let writable = File::options().read(true).write(true).open(writable)?;
        Ok(Self { image: Arc::new(File::open(image)?), writable: Arc::new(writable) })
    }

    /// Makes the writable disk larger.
    #[cfg(test)]
    pub(super) fn grow_writable(&self, size: u64) {
        self.writable.set_len(size).unwrap();
    }

    /// Reads the beginning of `piece`; never nothing, unless one of the two is empty.
    pub fn read(&self, piece: &Piece, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(piece.length).unwrap_or(usize::MAX).min(buffer.len());
        let part = &mut buffer[..wanted];
        let count = match piece.disk {
            Disk::Hole => {
                part.fill(0);
                wanted
            }
            Disk::Image => self.image.read_at(part, piece.at)?,
            Disk::Writable => self.writable.read_at(part, piece.at)?,
        };
        if count == 0 && wanted > 0 {
            return Err(io::Error::other("the guest shows a place behind the end of its disk"));
        }
        Ok(count)
    }

    /// Writes the next bytes of `file` to `piece`. A file that has become shorter is filled up with zeros.
    pub fn write(&self, piece: &Piece, file: &mut File) -> io::Result<()> {
        let size = self.writable.metadata()?.len();
        let end = piece.at.checked_add(piece.length);
        if piece.disk != Disk::Writable || end.is_none_or(|end| end > size) {
            return Err(io::Error::other("the guest shows a place that is not on its writable disk"));
        }
        let mut chunk = vec![0; CHUNK];
        let mut done = 0;
        while done < piece.length {
            let wanted = usize::try_from(piece.length - done).unwrap_or(CHUNK).min(CHUNK);
            let part = &mut chunk[..wanted];
            let mut count = file.read(part)?;
            if count == 0 {
                part.fill(0);
                count = wanted;
            }
            self.writable.write_all_at(&part[..count], piece.at + done)?;
            done += count as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn disks() -> (tempfile::TempDir, Disks) {
        let base = tempfile::tempdir().unwrap();
        let (image, writable) = (base.path().join("image"), base.path().join("writable"));
        std::fs::write(&image, "image").unwrap();
        std::fs::write(&writable, "0123456789").unwrap();
        let disks = Disks::open(&image, &writable).unwrap();
        (base, disks)
    }

    #[test]
    fn pieces_are_read_and_holes_are_zeros() {
        let (_base, disks) = disks();
        let mut buffer = [9; 8];
        assert_eq!(disks.read(&Piece { disk: Disk::Writable, at: 2, length: 3 }, &mut buffer).unwrap(), 3);
        assert_eq!(&buffer[..4], b"234\x09");
        assert_eq!(disks.read(&Piece { disk: Disk::Hole, at: 0, length: u64::MAX }, &mut buffer).unwrap(), 8);
        assert_eq!(buffer, [0; 8]);
        assert!(disks.read(&Piece { disk: Disk::Image, at: 5, length: 1 }, &mut buffer).is_err());
        assert!(disks.read(&Piece { disk: Disk::Image, at: u64::MAX, length: 1 }, &mut buffer).is_err());
    }

    #[test]
    fn nothing_is_written_outside_the_writable_disk() {
        let (base, disks) = disks();
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(b"abcdef").unwrap();
        io::Seek::rewind(&mut source).unwrap();
        for (disk, at, length) in [
            (Disk::Image, 0, 1),
            (Disk::Hole, 0, 1),
            (Disk::Writable, 8, 3),
            (Disk::Writable, u64::MAX, 2),
            (Disk::Writable, 0, u64::MAX),
        ] {
            assert!(disks.write(&Piece { disk, at, length }, &mut source).is_err());
        }
        disks.write(&Piece { disk: Disk::Writable, at: 4, length: 6 }, &mut source).unwrap();
        assert_eq!(std::fs::read(base.path().join("writable")).unwrap(), b"0123abcdef");
        assert_eq!(std::fs::read(base.path().join("image")).unwrap(), b"image");
    }
}
