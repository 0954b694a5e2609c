//! The reading end of a container's log, while it may still be written.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::{HEADER, MAX_RECORD, Record, Stream, file, numbers};

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// A place in a log.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    number: u64,
    file: Option<File>,
    /// Offset in the file of what `buffer` holds.
    offset: u64,
    buffer: Vec<u8>,
    taken: usize,
    /// Files that were removed before they were read.
    lost: u64,
}

impl Reader {
    /// At the oldest record.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            number: 0,
            file: None,
            offset: 0,
            buffer: Vec::new(),
            taken: 0,
            lost: 0,
        }
    }

    /// How many files were rotated away, since the last call, before this reader came to them.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// The next record; `None` if there is none yet. What is no record ends its file.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.take() {
                return Ok(Some(record));
            }
            if self.fill()? {
                continue;
            }
            // At the end of this file. It is over once there is a next one, and then everything in it was written.
            let next = numbers(&self.directory)?.into_iter().find(|number| *number > self.number);
            if self.fill()? {
                continue;
            }
            let Some(next) = next else { return Ok(None) };
            if self.number > 0 {
                self.lost += next - self.number - 1;
            }
            match File::open(file(&self.directory, next)) {
                Ok(file) => self.file = Some(file),
                // Rotated away just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    (self.file, self.lost) = (None, self.lost + 1);
                }
                Err(error) => return Err(error),
            }
            self.number = next;
            (self.offset, self.taken) = (0, 0);
            self.buffer.clear();
        }
    }

    fn take(&mut self) -> Option<Record> {
        let rest = self.buffer.get(self.taken..)?;
        let (header, body) = rest.split_first_chunk::<HEADER>()?;
        let [stream, l0, l1, l2, l3, time @ ..] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let stream = match stream {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return self.give_up(),
        };
        if length > MAX_RECORD {
            return self.give_up();
        }
        let bytes = body.get(..length)?.to_vec();
        self.taken += HEADER + length;
        Some(Record { stream, time_ns: u64::from_le_bytes(time), bytes })
    }

    /// What follows in this file is not a record and will never be.
    fn give_up<T>(&mut self) -> Option<T> {
        self.file = None;
        self.buffer.clear();
        self.taken = 0;
        None
    }

    /// Reads more; false at the end of what is there.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        self.buffer.drain(..self.taken);
        self.offset += self.taken as u64;
        self.taken = 0;
        let held = self.buffer.len();
        file.seek(SeekFrom::Start(self.offset + held as u64))?;
        let count = file.take(BUFFER as u64).read_to_end(&mut self.buffer)?;
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::LogSpec;
    use super::super::writer::Writer;
    use super::*;

    fn all(reader: &mut Reader) -> Vec<Record> {
        std::iter::from_fn(|| reader.next_record().unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read_in_order_and_followed() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("log");
        let mut reader = Reader::new(&directory);
        assert_eq!(reader.next_record().unwrap(), None);
        let mut writer = Writer::open(&directory, LogSpec::default()).unwrap();
        writer.append(Stream::Stdout, 5, b"one").unwrap();
        writer.append(Stream::Stderr, 6, &[7; 400_000]).unwrap();
        let records = all(&mut reader);
        assert_eq!((records[0].time_ns, &records[0].bytes[..]), (5, &b"one"[..]));
        assert_eq!((records[1].stream, records[1].bytes.len()), (Stream::Stderr, 400_000));
        drop(writer);
        Writer::open(&directory, LogSpec::default()).unwrap().append(Stream::Stdout, 9, b"later").unwrap();
        assert_eq!(all(&mut reader)[0].bytes, b"later");
    }

    #[test]
    fn the_oldest_files_go_and_the_newest_records_stay() {
        let base = tempfile::tempdir().unwrap();
        let spec = LogSpec { max_size: 1000, max_file: 3 };
        let mut writer = Writer::open(base.path(), spec).unwrap();
        for time in 0..100 {
            writer.append(Stream::Stdout, time, &[0; 100]).unwrap();
        }
        let kept = all(&mut Reader::new(base.path()));
        assert!(kept.len() < 40 && kept.last().unwrap().time_ns == 99, "{}", kept.len());
        let disk: u64 =
            std::fs::read_dir(base.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(disk < 3 * 1200, "{disk}");
    }

    #[test]
    fn a_reader_that_falls_behind_knows_how_much_it_missed() {
        let base = tempfile::tempdir().unwrap();
        let spec = LogSpec { max_size: 1000, max_file: 3 };
        let mut writer = Writer::open(base.path(), spec).unwrap();
        let mut reader = Reader::new(base.path());
        writer.append(Stream::Stdout, 0, &[0; 100]).unwrap();
        assert_eq!(reader.next_record().unwrap().unwrap().time_ns, 0);
        for time in 1..100 {
            writer.append(Stream::Stdout, time, &[0; 100]).unwrap();
        }
        // Nine records are a file. It has the first one open, and the last three of twelve are there.
        let times: Vec<u64> = all(&mut reader).into_iter().map(|record| record.time_ns).collect();
        assert_eq!(times, (1..9).chain(81..100).collect::<Vec<u64>>());
        assert_eq!((reader.take_lost(), reader.take_lost()), (8, 0));
    }

    #[test]
    fn what_a_crash_tore_is_left_out() {
        let base = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(base.path(), LogSpec::default()).unwrap();
        writer.append(Stream::Stdout, 1, b"whole").unwrap();
        drop(writer);
        let path = file(base.path(), 1);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([1, 200, 0, 0, 0, 1, 2]);
        std::fs::write(&path, bytes).unwrap();
        Writer::open(base.path(), LogSpec::default()).unwrap().append(Stream::Stdout, 2, b"next").unwrap();
        std::fs::write(file(base.path(), 3), [0xff; 100]).unwrap();
        let records: Vec<_> = all(&mut Reader::new(base.path())).into_iter().map(|r| r.bytes).collect();
        assert_eq!(records, [b"whole".to_vec(), b"next".to_vec()]);
    }
}
