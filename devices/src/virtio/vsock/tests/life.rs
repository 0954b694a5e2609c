//! Building, reset, save and restore.

use super::*;

#[test]
fn a_driver_reset_drops_what_the_guest_knew() {
    let mut guest = Guest::start();
    let (mut client, _) = guest.connected(5);
    guest.device.reset();
    assert!(guest.device.queue_states().is_empty());
    assert_eq!(read_rest(&mut client), b"");
    guest.device.process_queue(TX).unwrap();
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut guest = Guest::start();
    let (_client, ports) = guest.connected(5);
    let saved = guest.device.save();
    let old_queues = guest.device.queue_states();

    let path = guest.dir.path().join("w.sock");
    let mut restored = Vsock::new(CID, &path).unwrap();
    restored.restore(&saved).unwrap();
    restored.activate(Activation {
        mem: guest.mem.clone(),
        queues: old_queues.into_iter().map(|state| state.try_into().unwrap()).collect(),
        acknowledged_features: restored.features(),
        interrupt: guest.interrupt.clone(),
    });
    guest.device = restored;
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(b"CONNECT 5\n").unwrap();
    guest.poll();
    let (head, len) = guest.event.take_used().unwrap();
    assert_eq!((head, len), (0, 4));
    assert_eq!(guest.mem.read_obj::<u32>(GuestAddress(EVENT_BUFFERS)).unwrap(), 0);
    // Nothing before the driver has handled the event and given its buffer back.
    guest.device.process_queue(EVENT).unwrap();
    assert_eq!(guest.rx.take_used(), None);
    guest.event.add(&[Buffer::writable(EVENT_BUFFERS, 4)]);
    guest.device.process_queue(EVENT).unwrap();
    let (request, _) = guest.expect(Op::Request);
    assert!(request.src_port > ports.1, "a port that the guest still remembers was used again");
    guest.send_data(ports, b"stale");
    guest.expect(Op::Rst);
}

#[test]
fn garbage_is_no_saved_state() {
    let mut guest = Guest::without_driver();
    assert!(guest.device.restore(&[]).is_err());
    assert!(guest.device.restore(&[0xff; 12]).is_err());
}

#[test]
fn configuration_space_has_the_context_id() {
    let guest = Guest::without_driver();
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut tail = [0xff; 2];
    guest.device.read_config(u64::MAX, &mut tail);
    assert_eq!(tail, [0, 0]);
}

#[test]
fn reserved_context_ids_and_sockets_in_use_are_refused() {
    let guest = Guest::without_driver();
    for cid in [0, 1, 2, u32::MAX] {
        let result = Vsock::new(cid, &guest.dir.path().join("other"));
        assert!(matches!(result, Err(VsockError::ReservedCid(_))), "{cid}");
    }
    let path = guest.dir.path().join("v.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(Vsock::new(CID, &path), Err(VsockError::Listen { .. })));
}
