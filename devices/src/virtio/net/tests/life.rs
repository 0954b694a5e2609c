//! Features, reset, save and restore.

use super::*;

#[test]
fn offloads_follow_the_driver() {
    let (mut guest, _wire, offloads) = wired();
    let features = guest.device.features();
    guest.activate(features);
    assert_ne!(offloads.load(Ordering::Relaxed), 0);
    guest.device.reset();
    assert!(guest.device.host_events().is_empty());
    assert!(guest.device.queue_states().is_empty());
    guest.activate(features & !(1 << VIRTIO_NET_F_GUEST_CSUM));
    assert_eq!(offloads.load(Ordering::Relaxed), 0);
}

#[test]
fn configuration_space_has_the_identity_and_survives_a_restore() {
    let (guest, _wire, _) = wired();
    let mut config = [0xff; 14];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x78, 0x05, 0, 0]);
    let (mut other, _wire, _) = wired();
    other.device.identity.mac = [9; 6];
    other.device.restore(&guest.device.save()).unwrap();
    assert_eq!(other.device.identity, IDENTITY);
    assert!(other.device.restore(&[1, 2, 3]).is_err());
}
