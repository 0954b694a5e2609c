//! The packet header (virtio 1.2, section 5.10.6): 44 bytes, little endian.

/// Context ID of the host, the only peer that a guest can reach.
pub const HOST_CID: u64 = 2;

/// Bytes of a header on the wire.
pub const HEADER_SIZE: usize = 44;

/// Payload of one packet at most. Linux sends and accepts no more (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender of the packet will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;

/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender of the packet will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;

/// Both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (VIRTIO_VSOCK_OP_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Refuses or ends a connection.
    Rst = 3,
    /// Closes one or both directions.
    Shutdown = 4,
    /// Carries data.
    Rw = 5,
    /// Tells the sender's credit.
    CreditUpdate = 6,
    /// Asks for the receiver's credit.
    CreditRequest = 7,
}

impl Op {
    /// The operation with number `value`.
    pub fn parse(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context ID of the sender.
    pub src_cid: u64,
    /// Context ID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation, as on the wire: see [`Op::parse`].
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// Receive buffer of the sender in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has received and used so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header; every byte string is one.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Encodes the header.
    pub fn to_bytes(self) -> Vec<u8> {
        [
            self.src_cid.to_le_bytes().as_slice(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ]
        .concat()
    }

    /// The RST that answers this packet: the same addresses the other way round.
    pub fn rst_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Rst as u16,
            ..Self::default()
        }
    }
}

/// Splits `N` bytes off `rest`; zeroes for those that are not there.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: 0x1111_2222,
        dst_port: 1024,
        len: 7,
        kind: TYPE_STREAM,
        op: Op::Rw as u16,
        flags: 3,
        buf_alloc: 0x4_0000,
        fwd_cnt: 0xffff_fffe,
    };

    #[test]
    fn fields_are_at_the_offsets_of_the_specification() {
        let bytes = SAMPLE.to_bytes();
        assert_eq!(bytes.len(), HEADER_SIZE);
        assert_eq!(bytes[0], 3);
        assert_eq!(bytes[8], 2);
        assert_eq!(bytes[16..20], [0x22, 0x22, 0x11, 0x11]);
        assert_eq!(bytes[24], 7);
        assert_eq!(bytes[28], 1);
        assert_eq!(bytes[30], 5);
        assert_eq!(bytes[40..44], [0xfe, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn parse_undoes_to_bytes() {
        let bytes: [u8; HEADER_SIZE] = SAMPLE.to_bytes().try_into().unwrap();
        assert_eq!(Header::parse(&bytes), SAMPLE);
    }

    #[test]
    fn unknown_operations_have_no_name() {
        assert_eq!(Op::parse(0), None);
        assert_eq!(Op::parse(8), None);
        assert_eq!(Op::parse(5), Some(Op::Rw));
    }

    #[test]
    fn rst_goes_back_where_the_packet_came_from() {
        let rst = SAMPLE.rst_reply();
        assert_eq!((rst.src_cid, rst.dst_cid), (2, 3));
        assert_eq!((rst.src_port, rst.dst_port), (1024, 0x1111_2222));
        assert_eq!(rst.op, 3);
        assert_eq!(rst.len, 0);
    }
}
