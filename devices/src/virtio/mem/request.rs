//! Requests and responses on the wire (virtio 1.2, section 5.15.6).

/// Bytes of a request: type, padding, address, number of blocks, padding.
pub const REQUEST_BYTES: usize = 24;
/// Bytes of a response: type, padding, state.
pub const RESPONSE_BYTES: usize = 10;

/// Blocks from an address on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Guest-physical.
    pub address: u64,
    /// Number of blocks.
    pub count: u16,
}

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// VIRTIO_MEM_REQ_PLUG
    Plug(BlockRange),
    /// VIRTIO_MEM_REQ_UNPLUG
    Unplug(BlockRange),
    /// VIRTIO_MEM_REQ_UNPLUG_ALL
    UnplugAll,
    /// VIRTIO_MEM_REQ_STATE
    State(BlockRange),
}

impl Request {
    /// Parses `bytes`; the error is a type that does not exist.
    pub fn parse(bytes: [u8; REQUEST_BYTES]) -> Result<Self, u16> {
        let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, c0, c1, ..] = bytes;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let range = BlockRange { address, count: u16::from_le_bytes([c0, c1]) };
        Ok(match u16::from_le_bytes([t0, t1]) {
            0 => Request::Plug(range),
            1 => Request::Unplug(range),
            2 => Request::UnplugAll,
            3 => Request::State(range),
            other => return Err(other),
        })
    }
}

/// What some blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockState {
    /// All of them.
    Plugged = 0,
    /// None of them.
    Unplugged = 1,
    /// Some of them.
    Mixed = 2,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// It was done; to a question for a state, the state.
    Ack(BlockState),
    /// Not now: the host wants less.
    Nack,
    /// Never: the blocks are not in that state, or there are none.
    Error,
}

impl Response {
    /// As the driver reads it.
    pub fn bytes(self) -> [u8; RESPONSE_BYTES] {
        let (kind, state) = match self {
            Response::Ack(state) => (0_u16, state as u16),
            Response::Nack => (1, 0),
            Response::Error => (3, 0),
        };
        let ([k0, k1], [s0, s1]) = (kind.to_le_bytes(), state.to_le_bytes());
        [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}
