//! `struct virtio_net_hdr` (virtio 1.2, section 5.1.6), which the TAP reads and writes as it is.

/// Bytes of the header, `num_buffers` included.
pub const HEADER_SIZE: usize = 12;

/// Longest frame: an IP packet of 64 KiB with an Ethernet header and two VLAN tags. A longer one from the
/// guest is refused before the host copies it.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// Where the flags are: zero for a driver without VIRTIO_NET_F_GUEST_CSUM.
pub const FLAGS: usize = 0;
/// Where the number of descriptor chains is that the frame takes, two bytes.
pub const NUM_BUFFERS: usize = 10;
