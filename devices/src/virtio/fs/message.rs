//! The two headers of FUSE messages (Linux, `include/uapi/linux/fuse.h`): all of FUSE that the device knows.

/// Bytes of `struct fuse_in_header`.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes of `struct fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;

const UNIQUE: std::ops::Range<usize> = 8..16;

/// What begins every request: its length, what it asks for, its number, and for whom.
pub struct InHeader([u8; IN_HEADER_BYTES]);

impl InHeader {
    /// As the guest wrote it.
    pub fn new(bytes: [u8; IN_HEADER_BYTES]) -> Self {
        Self(bytes)
    }

    /// The guest's number of the request.
    pub fn unique(&self) -> u64 {
        number(&self.0)
    }

    /// The same for a request of `len` bytes with another number.
    pub fn renumbered(mut self, len: u32, unique: u64) -> [u8; IN_HEADER_BYTES] {
        put(&mut self.0, 0..4, &len.to_le_bytes());
        put(&mut self.0, UNIQUE, &unique.to_le_bytes());
        self.0
    }
}

/// What begins every reply: its length, an error, and the number of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutHeader {
    /// Length of the whole reply in bytes.
    pub len: u32,
    /// 0, or a negative errno.
    pub error: i32,
    /// The number.
    pub unique: u64,
}

impl OutHeader {
    /// A reply that only says what went wrong.
    pub fn failure(errno: i32, unique: u64) -> Self {
        Self { len: 16, error: errno.saturating_neg(), unique }
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8; OUT_HEADER_BYTES]) -> Self {
        let word =
            |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        Self { len: u32::from_le_bytes(word(0)), error: i32::from_le_bytes(word(4)), unique: number(bytes) }
    }

    /// As bytes.
    pub fn bytes(&self) -> [u8; OUT_HEADER_BYTES] {
        let mut bytes = [0; OUT_HEADER_BYTES];
        put(&mut bytes, 0..4, &self.len.to_le_bytes());
        put(&mut bytes, 4..8, &self.error.to_le_bytes());
        put(&mut bytes, UNIQUE, &self.unique.to_le_bytes());
        bytes
    }
}

fn number(header: &[u8]) -> u64 {
    let bytes = header.get(UNIQUE).and_then(|bytes| bytes.first_chunk());
    u64::from_le_bytes(bytes.copied().unwrap_or_default())
}

fn put(header: &mut [u8], range: std::ops::Range<usize>, value: &[u8]) {
    if let Some(field) = header.get_mut(range) {
        field.copy_from_slice(value);
    }
}
