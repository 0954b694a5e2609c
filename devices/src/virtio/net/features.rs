//! Features of the device and the TAP offloads that follow from what the driver acknowledged.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Offered whatever the configuration is.
const ALWAYS: [u32; 6] = [
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
];

/// Offered where the wire understands the header.
const OFFLOADS: [u32; 8] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
];

/// What the device offers.
pub fn offered(with_mtu: bool, with_offloads: bool) -> u64 {
    let bits = |bits: &[u32]| bits.iter().fold(0, |features, bit| features | 1 << bit);
    let mtu: &[u32] = if with_mtu { &[VIRTIO_NET_F_MTU] } else { &[] };
    let offloads: &[u32] = if with_offloads { &OFFLOADS } else { &[] };
    bits(&ALWAYS) | bits(mtu) | bits(offloads)
}

/// Whether the driver takes frames in several chains.
pub fn mergeable(acknowledged: u64) -> bool {
    has(acknowledged, VIRTIO_NET_F_MRG_RXBUF)
}

/// Whether the driver takes frames without a complete checksum.
pub fn guest_checksum(acknowledged: u64) -> bool {
    has(acknowledged, VIRTIO_NET_F_GUEST_CSUM)
}

/// What the host may leave to the guest: the argument of TUNSETOFFLOAD. Without checksum offload, the kernel
/// takes no segmentation offload, and the driver must not ask for one (virtio 1.2, section 5.1.3.1).
pub fn tap_offloads(acknowledged: u64) -> libc::c_uint {
    if !guest_checksum(acknowledged) {
        return 0;
    }
    let segmentation =
        [(VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6)];
    let mut flags = libc::TUN_F_CSUM;
    for (bit, flag) in segmentation {
        if has(acknowledged, bit) {
            flags |= flag;
        }
    }
    if flags != libc::TUN_F_CSUM && has(acknowledged, VIRTIO_NET_F_GUEST_ECN) {
        flags |= libc::TUN_F_TSO_ECN;
    }
    flags
}

fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_from_features() {
        let bits = |bits: &[u32]| bits.iter().fold(0, |features, bit| features | 1 << bit);
        for (acknowledged, flags) in [
            (bits(&[]), 0),
            (bits(&[VIRTIO_NET_F_GUEST_TSO4]), 0),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM]), libc::TUN_F_CSUM),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]), libc::TUN_F_CSUM),
            (bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6]), libc::TUN_F_CSUM | libc::TUN_F_TSO6),
            (
                offered(false, true),
                libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN,
            ),
        ] {
            assert_eq!(tap_offloads(acknowledged), flags, "{acknowledged:#x}");
        }
    }

    #[test]
    fn the_mtu_is_offered_only_when_there_is_one() {
        assert_eq!(offered(true, true) ^ offered(false, true), 1 << VIRTIO_NET_F_MTU);
        assert_eq!(tap_offloads(offered(true, false)), 0);
    }
}
