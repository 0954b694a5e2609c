//! `struct virtio_net_hdr` (virtio 1.2, section 5.1.6), which the TAP reads and writes as it is.

/// Bytes of the header, `num_buffers` included.
pub const HEADER_SIZE: usize = 12;

/// Longest frame: an IP packet of 64 KiB with an Ethernet header and two VLAN tags. A longer one from the
/// guest is refused before the host copies it.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

const FLAGS: usize = 0;
const NUM_BUFFERS: usize = 10;

/// A header as it came from the TAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader(pub [u8; HEADER_SIZE]);

impl VnetHeader {
    /// Sets how many descriptor chains the frame takes.
    pub fn set_num_buffers(&mut self, count: u16) {
        if let Some(field) = self.0.get_mut(NUM_BUFFERS..) {
            field.copy_from_slice(&count.to_le_bytes());
        }
    }

    /// Clears what only a driver with VIRTIO_NET_F_GUEST_CSUM may see.
    pub fn clear_flags(&mut self) {
        if let Some(flags) = self.0.get_mut(FLAGS) {
            *flags = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut header = VnetHeader([0xff; HEADER_SIZE]);
        header.set_num_buffers(0x0102);
        header.clear_flags();
        assert_eq!(header.0, [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 1]);
    }
}
