//! Data, ends and turns.

use super::*;

#[test]
fn a_host_client_and_the_guest_talk() {
    let mut guest = Guest::start();
    let (mut client, ports) = guest.connected(5);
    client.write_all(b"to the guest").unwrap();
    guest.poll();
    assert_eq!(guest.expect(Op::Rw).1, b"to the guest");
    guest.send_data(ports, b"to the host");
    assert_eq!(read_bytes(&mut client, 11), b"to the host");
    guest.nothing_more();
}

#[test]
fn data_sent_with_the_connect_line_follows_the_connection() {
    let mut guest = Guest::start();
    let mut client = UnixStream::connect(guest.dir.path().join("v.sock")).unwrap();
    client.write_all(b"CONNECT 5\nearly").unwrap();
    guest.poll();
    let (request, _) = guest.expect(Op::Request);
    guest.send_op(Op::Response, (5, request.src_port));
    assert_eq!(guest.expect(Op::Rw).1, b"early");
}

#[test]
fn the_guest_connects_to_a_socket_of_the_host() {
    let mut guest = Guest::start();
    let ports = (1000, 7);
    let mut stream = guest.connected_to_host(ports);
    guest.send_data(ports, b"hello");
    assert_eq!(read_bytes(&mut stream, 5), b"hello");
    stream.write_all(b"world").unwrap();
    guest.poll();
    assert_eq!(guest.expect(Op::Rw).1, b"world");
}

#[test]
fn a_connect_that_nobody_answers_is_reset() {
    let mut guest = Guest::start();
    guest.send_op(Op::Request, (1000, 7));
    let (reset, _) = guest.expect(Op::Rst);
    assert_eq!((reset.dst_port, reset.src_port), (1000, 7));
    assert_eq!(guest.device.hub.connection_count(), 0);
}

#[test]
fn a_client_that_the_guest_refuses_sees_the_end() {
    let mut guest = Guest::start();
    let mut client = guest.client(5);
    let (request, _) = guest.expect(Op::Request);
    guest.send_op(Op::Rst, (5, request.src_port));
    assert_eq!(read_rest(&mut client), b"");
    guest.nothing_more();
}

#[test]
fn a_client_that_speaks_something_else_is_dropped() {
    let mut guest = Guest::start();
    let mut client = UnixStream::connect(guest.dir.path().join("v.sock")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    guest.poll();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    guest.nothing_more();
}

#[test]
fn clients_from_before_the_driver_are_served_when_it_is_ready() {
    let mut guest = Guest::without_driver();
    let mut client = UnixStream::connect(guest.dir.path().join("v.sock")).unwrap();
    client.write_all(b"CONNECT 5\n").unwrap();
    guest.give_buffers();
    guest.activate();
    guest.poll();
    assert_eq!(guest.expect(Op::Request).0.dst_port, 5);
}

#[test]
fn the_host_may_close_one_direction() {
    let mut guest = Guest::start();
    let (mut client, ports) = guest.connected(5);
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    guest.poll();
    assert_eq!(guest.expect(Op::Rw).1, b"last words");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
    guest.send_data(ports, b"answer");
    guest.send_shutdown(SHUTDOWN_BOTH, ports);
    assert_eq!(read_rest(&mut client), b"answer");
    guest.expect(Op::Rst);
    assert_eq!(guest.device.hub.connection_count(), 0);
}

#[test]
fn the_guest_may_close_one_direction() {
    let mut guest = Guest::start();
    let (mut client, ports) = guest.connected(5);
    guest.send_data(ports, b"last words");
    guest.send_shutdown(SHUTDOWN_SEND, ports);
    assert_eq!(read_rest(&mut client), b"last words");
    client.write_all(b"answer").unwrap();
    guest.poll();
    assert_eq!(guest.expect(Op::Rw).1, b"answer");
    drop(client);
    guest.poll();
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.send_op(Op::Rst, ports);
    guest.nothing_more();
    assert_eq!(guest.device.hub.connection_count(), 0);
}

#[test]
fn what_a_closing_host_wrote_reaches_the_guest_first() {
    let mut guest = Guest::start();
    let (mut client, _) = guest.connected(5);
    let data = pattern(10_000);
    client.write_all(&data).unwrap();
    drop(client);
    guest.poll();
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(guest.expect(Op::Rw).1);
    }
    assert_eq!(received, data);
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn a_host_that_stops_reading_for_good_is_announced() {
    let mut guest = Guest::start();
    let (client, ports) = guest.connected(5);
    client.shutdown(Shutdown::Read).unwrap();
    guest.send_data(ports, b"nobody reads this");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_RECEIVE);
    guest.send_data(ports, b"nor this");
    guest.nothing_more();
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::start();
    let mut clients: Vec<_> = (0..8).map(|port| guest.connected(port)).collect();
    for (client, _) in &mut clients {
        client.write_all(&pattern(50_000)).unwrap();
    }
    guest.poll();
    let order: Vec<u32> = (0..32).map(|_| guest.expect(Op::Rw).0.dst_port).collect();
    for port in 0..8 {
        let turns = order.iter().filter(|served| **served == port).count();
        assert!((2..=6).contains(&turns), "port {port} had {turns} of 32 turns");
    }
}

#[test]
fn packets_wait_for_buffers() {
    let mut guest = Guest::without_driver();
    guest.activate();
    guest.client(5);
    let _kept = guest.client(6);
    assert_eq!(guest.rx.take_used(), None);
    guest.give_buffers();
    guest.device.process_queue(RX).unwrap();
    let ports = [guest.expect(Op::Request).0.dst_port, guest.receive().map_or(6, |p| p.0.dst_port)];
    assert!(ports.contains(&6), "{ports:?}");
}
