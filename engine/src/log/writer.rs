//! The writing end of a container's log.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::path::{Path, PathBuf};

use super::{HEADER, LogSpec, Stream, file, numbers};

/// An open log.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
    spec: LogSpec,
    number: u64,
    file: File,
    /// Bytes of whole records in the file.
    written: u64,
    /// A record was not written whole and is still there: the next goes into a new file.
    torn: bool,
}

impl Writer {
    /// Opens the log in `directory` for more; what a crash left unfinished stays at the end of its file.
    pub fn open(directory: &Path, spec: LogSpec) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let number = numbers(directory)?.last().map_or(1, |last| last.saturating_add(1));
        let file = create(directory, spec, number)?;
        Ok(Self { directory: directory.to_owned(), spec, number, file, written: 0, torn: false })
    }

    /// Appends `bytes` of `stream`, which arrived at `time_ns`.
    pub fn append(&mut self, stream: Stream, time_ns: u64, bytes: &[u8]) -> io::Result<()> {
        if self.torn || self.written >= self.spec.max_size {
            self.rotate()?;
        }
        let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut header = [0; HEADER];
        let code = match stream {
            Stream::Stdout => 1u8,
            Stream::Stderr => 2,
        };
        let fields = [&[code][..], &length.to_le_bytes(), &time_ns.to_le_bytes()];
        header.iter_mut().zip(fields.concat()).for_each(|(place, byte)| *place = byte);
        if let Err(error) = self.write(&header, bytes) {
            // A full disk: the torn record goes, so that later ones can follow. A new file each time would rotate away
            // all that is there.
            self.torn = self.file.set_len(self.written).is_err();
            return Err(error);
        }
        self.written += (HEADER + bytes.len()) as u64;
        Ok(())
    }

    fn write(&mut self, header: &[u8], bytes: &[u8]) -> io::Result<()> {
        let mut parts = [IoSlice::new(header), IoSlice::new(bytes)];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            match self.file.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        self.file = create(&self.directory, self.spec, number)?;
        (self.number, self.written, self.torn) = (number, 0, false);
        Ok(())
    }
}

/// Begins file `number` and removes what is then too old.
fn create(directory: &Path, spec: LogSpec, number: u64) -> io::Result<File> {
    let opened = OpenOptions::new().append(true).create_new(true).open(file(directory, number))?;
    let oldest = number.saturating_add(1).saturating_sub(u64::from(spec.max_file.max(1)));
    for number in numbers(directory)?.into_iter().filter(|number| *number < oldest) {
        std::fs::remove_file(file(directory, number))?;
    }
    Ok(opened)
}
