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

#[test]
fn a_polled_device_looks_at_both_ends_and_leaves_the_tap_alone() {
    let (mut guest, wire) = ready();
    guest.give_rx(0, 0x2000);
    guest.device.set_polled(true).unwrap();
    assert!(guest.polled().is_empty());
    assert!(!guest.device.poll().unwrap());
    wire.send(&with_header(&frame(60))).unwrap();
    assert!(guest.device.poll().unwrap());
    assert_eq!(guest.rx.take_used(), Some((0, (HEADER_SIZE + 60) as u32)));
    assert_eq!(guest.rx_bytes(0, HEADER_SIZE + 60)[HEADER_SIZE..], frame(60));
    guest.queue_tx(&with_header(&frame(100)));
    assert!(guest.device.poll().unwrap());
    assert_eq!(wire.recv(&mut [0; 200]).unwrap(), HEADER_SIZE + 100);
    guest.queue_tx(&with_header(&frame(100)));
    guest.device.set_polled(false).unwrap();
    assert_eq!(wire.recv(&mut [0; 200]).unwrap(), HEADER_SIZE + 100, "what came before the end is not lost");
    assert_eq!(guest.polled(), EventSet::empty(), "no buffer, nothing to wait for");
    guest.give_rx(1, 0x2000);
    guest.device.process_queue(RX).unwrap();
    assert_eq!(guest.polled(), EventSet::IN);
}
