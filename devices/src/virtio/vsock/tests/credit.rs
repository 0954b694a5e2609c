//! Flow control in both directions.

use super::*;

#[test]
fn a_host_that_does_not_read_gets_nothing_lost_and_the_guest_no_credit() {
    let mut guest = Guest::start();
    let (mut client, ports) = guest.connected(5);
    let chunk = pattern(MAX_PAYLOAD);
    let mut sent = 0u32;
    let mut fwd_cnt = 0u32;
    // As a driver does it: never more than the credit that the device announced.
    while sent.wrapping_sub(fwd_cnt) + chunk.len() as u32 <= RECEIVE_BUFFER {
        guest.send_data(ports, &chunk);
        sent += chunk.len() as u32;
        guest.poll();
        while let Some((header, _)) = guest.receive() {
            assert_eq!(Op::parse(header.op), Some(Op::CreditUpdate));
            fwd_cnt = header.fwd_cnt;
        }
        assert!(sent < 16 << 20, "credit without end");
    }
    assert!(sent.wrapping_sub(fwd_cnt) > RECEIVE_BUFFER / 2);
    let mut received = Vec::new();
    while received.len() < sent as usize {
        let mut buffer = [0; 4096];
        let count = client.read(&mut buffer).unwrap();
        received.extend_from_slice(&buffer[..count]);
        guest.serve();
    }
    assert_eq!(received, chunk.repeat(sent as usize / chunk.len()));
    let mut updates = 0;
    while let Some((header, _)) = guest.receive() {
        assert_eq!(Op::parse(header.op), Some(Op::CreditUpdate));
        fwd_cnt = header.fwd_cnt;
        updates += 1;
    }
    assert!((1..=8).contains(&updates), "{updates} updates");
    assert!(sent.wrapping_sub(fwd_cnt) <= RECEIVE_BUFFER / 2);
}

#[test]
fn a_guest_that_ignores_credit_is_reset() {
    let mut guest = Guest::start();
    let (_client, ports) = guest.connected(5);
    let chunk = pattern(MAX_PAYLOAD);
    for _ in 0..100 {
        guest.send_data(ports, &chunk);
        if let Some((header, _)) = guest.receive()
            && Op::parse(header.op) == Some(Op::Rst)
        {
            assert_eq!(guest.device.hub.connection_count(), 0);
            return;
        }
    }
    panic!("the device took {} bytes that nobody read", 100 * chunk.len());
}

#[test]
fn what_the_guest_sent_before_it_left_still_reaches_a_slow_reader() {
    let mut guest = Guest::start();
    let (mut client, ports) = guest.connected(5);
    let chunk = pattern(MAX_PAYLOAD);
    let mut sent = 0;
    let mut fwd_cnt = 0;
    while sent - fwd_cnt + chunk.len() <= RECEIVE_BUFFER as usize {
        guest.send_data(ports, &chunk);
        sent += chunk.len();
        while let Some((header, _)) = guest.receive() {
            fwd_cnt = header.fwd_cnt as usize;
        }
    }
    guest.send_shutdown(SHUTDOWN_BOTH, ports);
    guest.send_op(Op::Rst, ports);
    assert_eq!(guest.device.hub.connection_count(), 1);
    let mut received = 0;
    let mut buffer = [0; 65536];
    loop {
        let count = client.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        received += count;
        guest.serve();
    }
    assert_eq!(received, sent);
    assert_eq!(guest.device.hub.connection_count(), 0);
    guest.nothing_more();
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::start();
    guest.buf_alloc = 1000;
    let (mut client, ports) = guest.connected(5);
    client.write_all(&pattern(2500)).unwrap();
    guest.poll();
    assert_eq!(guest.expect(Op::Rw).1.len(), 1000);
    guest.expect(Op::CreditRequest);
    guest.nothing_more();
    // An answer without room must not make the device ask again.
    guest.send_op(Op::CreditUpdate, ports);
    guest.nothing_more();
    guest.fwd_cnt = 1000;
    guest.send_op(Op::CreditUpdate, ports);
    assert_eq!(guest.expect(Op::Rw).1.len(), 1000);
    guest.expect(Op::CreditRequest);
    guest.buf_alloc = 5000;
    guest.fwd_cnt = 2000;
    guest.send_op(Op::CreditUpdate, ports);
    assert_eq!(guest.expect(Op::Rw).1, pattern(2500)[2000..]);
    guest.nothing_more();
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::start();
    let (_client, ports) = guest.connected(5);
    guest.send_data(ports, b"12345");
    guest.send_op(Op::CreditRequest, ports);
    let (update, _) = guest.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (RECEIVE_BUFFER, 5));
    guest.nothing_more();
}
