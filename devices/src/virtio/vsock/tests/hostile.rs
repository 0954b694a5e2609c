//! What the guest and clients do wrong, and limits.

use super::*;

#[test]
fn data_after_the_guest_closed_its_direction_ends_the_connection() {
    let mut guest = Guest::start();
    let (_client, ports) = guest.connected(5);
    guest.send_shutdown(SHUTDOWN_SEND, ports);
    guest.send_data(ports, b"more");
    guest.expect(Op::Rst);
}

#[test]
fn packets_of_no_connection_are_answered_with_a_reset() {
    let mut guest = Guest::start();
    for op in [Op::Response, Op::Rw, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.send_op(op, (1, 2));
        let (reset, _) = guest.expect(Op::Rst);
        assert_eq!((reset.dst_port, reset.src_port), (1, 2));
    }
    guest.send_op(Op::Rst, (1, 2));
    guest.nothing_more();
}

#[test]
fn foreign_context_ids_and_types_reach_nobody() {
    let mut guest = Guest::start();
    let _listener = guest.listen(7);
    let request = guest.header(Op::Request, (1, 7));
    guest.send(Header { src_cid: 43, ..request }, &[]);
    guest.nothing_more();
    guest.send(Header { kind: 2, ..request }, &[]);
    assert_eq!(guest.expect(Op::Rst).0.kind, 2);
    guest.send(Header { op: 99, ..request }, &[]);
    guest.expect(Op::Rst);
    guest.send(Header { dst_cid: 1, ..request }, &[]);
    let (_, len) = guest.rx.take_used().unwrap();
    assert_eq!(len as usize, HEADER_SIZE);
    assert_eq!(guest.device.hub.connection_count(), 0);
}

#[test]
fn a_second_request_ends_the_connection() {
    let mut guest = Guest::start();
    let ports = (1000, 7);
    let mut stream = guest.connected_to_host(ports);
    guest.send_op(Op::Request, ports);
    guest.expect(Op::Rst);
    assert_eq!(read_rest(&mut stream), b"");
    assert_eq!(guest.device.hub.connection_count(), 0);
}

#[test]
fn malformed_packets_are_violations() {
    let header = HEADER_SIZE as u32;
    let wrong: [(&str, &[Buffer]); 4] = [
        ("no header", &[Buffer::readable(TX_BUFFER, header - 1)]),
        ("writable", &[Buffer::writable(TX_BUFFER, header)]),
        ("outside memory", &[Buffer::readable(0x40_0000 - 8, header)]),
        ("wraps", &[Buffer::readable(u64::MAX - 8, header)]),
    ];
    for (what, buffers) in wrong {
        let mut guest = Guest::start();
        guest.tx.add(buffers);
        assert_eq!(guest.device.process_queue(TX).unwrap_err().queue, TX, "{what}");
    }
    let mut guest = Guest::start();
    let oversized = Header { len: 5, ..guest.header(Op::Rw, (1, 2)) };
    let error = guest.try_send(oversized, b"1234").unwrap_err();
    assert_eq!(error.what, "packet announces 5 bytes and has 4");
}

#[test]
fn receive_buffers_that_hold_no_packet_are_violations() {
    for buffer in [Buffer::writable(RX_BUFFERS, 44), Buffer::readable(RX_BUFFERS, 4096)] {
        let mut guest = Guest::without_driver();
        guest.rx.add(&[buffer]);
        guest.activate();
        guest.tx.add(&[Buffer::readable(TX_BUFFER, 44)]);
        let header = guest.header(Op::Rw, (1, 2)).to_bytes();
        guest.mem.write_slice(&header, GuestAddress(TX_BUFFER)).unwrap();
        assert_eq!(guest.device.process_queue(TX).unwrap_err().queue, RX);
    }
}

#[test]
fn the_number_of_connections_is_limited() {
    let mut guest = Guest::start();
    let listener = guest.listen(7);
    let mut accepted = Vec::new();
    for port in 0..hub::MAX_CONNECTIONS as u32 {
        guest.send_op(Op::Request, (port, 7));
        guest.expect(Op::Response);
        accepted.push(listener.accept().unwrap());
    }
    guest.send_op(Op::Request, (9999, 7));
    guest.expect(Op::Rst);
    // A connection whose host side is over makes place.
    accepted.pop();
    guest.poll();
    guest.expect(Op::Shutdown);
    guest.send_op(Op::Request, (9999, 7));
    guest.expect(Op::Rst);
    guest.expect(Op::Response);
}

#[test]
fn the_oldest_client_that_says_nothing_makes_place() {
    let mut guest = Guest::start();
    let path = guest.dir.path().join("v.sock");
    let mut clients: Vec<_> = (0..=clients::MAX_HANDSHAKES)
        .map(|_| {
            let client = UnixStream::connect(&path).unwrap();
            guest.poll();
            client
        })
        .collect();
    assert_eq!(guest.device.hub.handshake_count(), clients::MAX_HANDSHAKES);
    assert_eq!(read_rest(&mut clients[0]), b"");
    clients[1].write_all(b"CONNECT 5\n").unwrap();
    guest.poll();
    guest.expect(Op::Request);
}

#[test]
fn resets_that_the_guest_does_not_take_are_dropped() {
    let mut guest = Guest::without_driver();
    guest.activate();
    for _ in 0..hub::MAX_RESETS + 100 {
        guest.send_op(Op::Rw, (1, 2));
    }
    guest.give_buffers();
    guest.device.process_queue(RX).unwrap();
    let received = std::iter::from_fn(|| guest.receive()).count();
    assert_eq!(received, hub::MAX_RESETS);
}

#[test]
fn connecting_again_and_again_without_buffers_leaves_nothing_behind() {
    let mut guest = Guest::without_driver();
    guest.activate();
    let listener = guest.listen(7);
    listener.set_nonblocking(true).unwrap();
    for _ in 0..2000 {
        guest.send_op(Op::Request, (1, 7));
        guest.send_op(Op::Rst, (1, 7));
        listener.accept().unwrap();
    }
    assert_eq!(guest.device.hub.connection_count(), 0);
    assert!(!guest.device.hub.has_packet());
}

#[test]
fn random_packets_do_no_harm() {
    let mut guest = Guest::start();
    let _listener = guest.listen(3);
    let mut random = Random::new(0x1234_5678_9abc_def1);
    for _ in 0..5_000 {
        let ports = (random.below(6) as u32, random.below(6) as u32);
        let payload = pattern(random.below(100) as usize);
        let header = Header {
            len: payload.len() as u32,
            op: random.below(9) as u16,
            flags: random.below(5) as u32,
            buf_alloc: random.below(1 << 33) as u32,
            fwd_cnt: random.below(1 << 33) as u32,
            ..guest.header(Op::Rw, ports)
        };
        guest.send(header, &payload);
        while guest.receive().is_some() {}
        assert!(guest.device.hub.connection_count() <= 36);
    }
}

#[test]
fn random_rings_do_no_harm() {
    let mut random = Random::new(0x0fed_cba9_8765_4321);
    let mut guest = Guest::without_driver();
    let mut outcomes = [0; 2];
    for _ in 0..5_000 {
        if guest.device.queue_states().is_empty() {
            for queue in [&mut guest.rx, &mut guest.tx, &mut guest.event] {
                queue.restart();
            }
            guest.activate();
        }
        for queue in [&mut guest.rx, &mut guest.tx, &mut guest.event] {
            queue.scribble(&mut random, 0x1_0000);
        }
        let result = guest.device.process_queue(random.below(4) as u16);
        outcomes[usize::from(result.is_ok())] += 1;
        if result.is_err() {
            guest.device.reset();
        }
    }
    assert!(outcomes.iter().all(|count| *count > 250), "{outcomes:?}");
}
