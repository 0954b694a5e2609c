//! A layer's uncompressed bytes, decompressed ahead by a thread of its own and hashed as they are taken.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Algorithm, Digest, Hasher};

/// Bytes handed over at a time.
const CHUNK_SIZE: usize = 256 << 10;

/// Chunks a layer may be ahead of its consumer: 32 MiB.
const CHUNKS_AHEAD: usize = 128;

/// Bytes of compressed input read at a time.
const INPUT_BUFFER: usize = 256 << 10;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The consumer's end.
pub(super) struct Stream {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    position: usize,
    hasher: Hasher,
    taken: u64,
    /// Bytes allowed; one more is an error.
    limit: u64,
    worker: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts to decompress `source` (gzip, zstd or plain, told apart by their first bytes), to be hashed with
    /// `algorithm`.
    pub(super) fn start(source: Box<dyn Read + Send>, algorithm: Algorithm) -> io::Result<Self> {
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        let worker = std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn(move || decompress(source, &sender))?;
        Ok(Self {
            chunks,
            chunk: Vec::new(),
            position: 0,
            hasher: Hasher::new(algorithm),
            taken: 0,
            limit: u64::MAX,
            worker: Some(worker),
        })
    }

    /// How many bytes more this layer may have, from the position on.
    pub(super) fn remaining(&self) -> u64 {
        let unread = self.chunk.len().saturating_sub(self.position);
        self.limit.saturating_sub(self.taken).saturating_add(unread as u64)
    }

    /// From now on, fail once more than `limit` bytes of this layer were seen.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Bytes received so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes that are there; empty only at the end.
    pub(super) fn available(&mut self) -> Result<&[u8], StreamError> {
        while self.position == self.chunk.len() {
            let Ok(next) = self.chunks.recv() else { return Ok(&[]) };
            self.chunk = next.map_err(StreamError::Read)?;
            self.position = 0;
            self.hasher.update(&self.chunk);
            self.taken += self.chunk.len() as u64;
            if self.taken > self.limit {
                return Err(StreamError::TooLarge);
            }
        }
        Ok(&self.chunk[self.position..])
    }

    /// Takes `count` of the bytes that [`Stream::available`] showed.
    pub(super) fn consume(&mut self, count: usize) {
        self.position = (self.position + count).min(self.chunk.len());
    }

    /// Fills `buffer` as far as there is input; returns how far.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let available = self.available()?;
            if available.is_empty() {
                break;
            }
            let count = available.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&available[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(filled)
    }

    /// Reads to the end and gives the number of all bytes and their digest.
    pub(super) fn finish(mut self) -> Result<(u64, Digest), StreamError> {
        loop {
            let count = self.available()?.len();
            if count == 0 {
                let hasher = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
                return Ok((self.taken, hasher.finish()));
            }
            self.consume(count);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The thread stops at its next chunk once nobody receives.
        let (_, closed) = sync_channel(0);
        drop(std::mem::replace(&mut self.chunks, closed));
        if let Some(worker) = self.worker.take() {
            // A panic in there is a bug of a decompressor; the missing input has been reported already.
            let _ = worker.join();
        }
    }
}

/// Why no more bytes came.
#[derive(Debug)]
pub(super) enum StreamError {
    /// Reading or decompressing failed.
    Read(io::Error),
    /// The limit set was passed.
    TooLarge,
}

fn decompress(source: Box<dyn Read + Send>, sender: &SyncSender<io::Result<Vec<u8>>>) {
    let result = decoder(source).and_then(|mut decoder| send_all(&mut *decoder, sender));
    if let Err(error) = result {
        // Nobody listens any more if the consumer has failed first.
        let _ = sender.send(Err(error));
    }
}

fn decoder(mut source: Box<dyn Read + Send>) -> io::Result<Box<dyn Read>> {
    let mut start = Vec::new();
    source.by_ref().take(4).read_to_end(&mut start)?;
    let kind = start.clone();
    let whole = io::Cursor::new(start).chain(source);
    if kind.starts_with(GZIP_MAGIC) {
        let buffered = io::BufReader::with_capacity(INPUT_BUFFER, whole);
        Ok(Box::new(MultiGzDecoder::new(buffered)))
    } else if kind == ZSTD_MAGIC {
        let buffered = io::BufReader::with_capacity(INPUT_BUFFER, whole);
        Ok(Box::new(zstd::Decoder::with_buffer(buffered)?))
    } else {
        Ok(Box::new(whole))
    }
}

fn send_all(decoder: &mut dyn Read, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_SIZE);
        decoder.take(CHUNK_SIZE as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() || sender.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn read_all(source: Vec<u8>) -> Result<Digest, StreamError> {
        let stream = Stream::start(Box::new(io::Cursor::new(source)), Algorithm::Sha256).expect("thread");
        stream.finish().map(|(_, digest)| digest)
    }

    #[test]
    fn plain_gzip_of_several_members_and_zstd_of_several_frames_give_the_same_bytes() {
        let text: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (a, b) = text.split_at(123_457);
        let zstd = |bytes| zstd::encode_all(bytes, 1).expect("in memory");
        let expected = Digest::of(&text);
        assert_eq!(read_all(text.clone()).expect("plain"), expected);
        assert_eq!(read_all([gzip(a), gzip(b)].concat()).expect("gzip"), expected);
        assert_eq!(read_all([zstd(a), zstd(b)].concat()).expect("zstd"), expected);
    }

    #[test]
    fn truncated_and_damaged_streams_are_errors() {
        let whole = gzip(&[7; 100_000]);
        assert!(matches!(read_all(whole[..whole.len() - 3].to_vec()), Err(StreamError::Read(_))));
        let frame = zstd::encode_all(&[7; 100_000][..], 1).expect("in memory");
        assert!(matches!(read_all(frame[..frame.len() - 3].to_vec()), Err(StreamError::Read(_))));
        let mut damaged = whole;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(matches!(read_all(damaged), Err(StreamError::Read(_))));
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit_without_being_unpacked() {
        let bomb = gzip(&vec![0; 4 << 20]);
        let mut stream = Stream::start(Box::new(io::Cursor::new(bomb)), Algorithm::Sha256).expect("thread");
        stream.set_limit(1 << 20);
        assert!(matches!(stream.finish(), Err(StreamError::TooLarge)));
    }
}
