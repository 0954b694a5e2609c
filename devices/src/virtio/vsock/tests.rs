//! A guest's driver in miniature against real Unix sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::credit::RECEIVE_BUFFER;
use super::header::{HOST_CID, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::virtio::fake_queue::{Buffer, CountingInterrupt, FakeQueue, guest_ram};

const CID: u32 = 42;
const GUEST_BUFFER: u32 = 256 * 1024;
const RX_BUFFERS: u64 = 0x10_0000;
const RX_BUFFER_LEN: u32 = 4096;
const RX_COUNT: u64 = 128;
const EVENT_BUFFERS: u64 = 0x20_0000;
const TX_BUFFER: u64 = 0x30_0000;

/// A device and its guest.
struct Guest {
    dir: TempDir,
    mem: GuestRam,
    device: Vsock,
    rx: FakeQueue,
    tx: FakeQueue,
    event: FakeQueue,
    interrupt: Arc<CountingInterrupt>,
    /// What the guest says of its own receive buffer.
    buf_alloc: u32,
    fwd_cnt: u32,
    rx_taken: u64,
}

impl Guest {
    /// A guest whose driver is ready and has given all its buffers.
    fn start() -> Self {
        let mut guest = Self::without_driver();
        guest.give_buffers();
        guest.activate();
        guest
    }

    fn without_driver() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mem = guest_ram(0x40_0000);
        let device = Vsock::new(CID, &dir.path().join("v.sock")).unwrap();
        Self {
            rx: FakeQueue::new(&mem, 0x1_0000, 256),
            tx: FakeQueue::new(&mem, 0x2_0000, 256),
            event: FakeQueue::new(&mem, 0x3_0000, 256),
            interrupt: CountingInterrupt::new(),
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: 0,
            rx_taken: 0,
            dir,
            mem,
            device,
        }
    }

    fn give_buffers(&mut self) {
        for index in 0..RX_COUNT {
            let addr = RX_BUFFERS + index * u64::from(RX_BUFFER_LEN);
            self.rx.add(&[Buffer::writable(addr, RX_BUFFER_LEN)]);
        }
        for index in 0..8 {
            self.event.add(&[Buffer::writable(EVENT_BUFFERS + 16 * index, 4)]);
        }
    }

    fn activate(&mut self) {
        self.device.activate(Activation {
            mem: self.mem.clone(),
            queues: [&self.rx, &self.tx, &self.event].map(|queue| queue.to_queue(true)).into(),
            acknowledged_features: self.device.features(),
            interrupt: self.interrupt.clone(),
        });
        self.device.process_queue(RX).unwrap();
    }

    /// What the event loop does for as long as the device's descriptor is readable.
    fn poll(&mut self) {
        for _ in 0..1000 {
            if !self.serve() {
                return;
            }
        }
        panic!("the device's descriptor never calms down");
    }

    /// One turn of the event loop; false if the device's descriptor was not readable.
    ///
    /// Unix sockets tell their other side within the system call, so there is nothing to wait for.
    fn serve(&mut self) -> bool {
        let fd = self.device.host_events()[0].fd;
        let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        if unsafe { libc::poll(&mut entry, 1, 0) } == 0 {
            return false;
        }
        self.device.process_host_event(0, EventSet::IN).unwrap();
        true
    }

    fn header(&self, op: Op, ports: (u32, u32)) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.try_send(header, payload).unwrap();
    }

    /// Sends a packet in two buffers, the payload apart from the header.
    fn try_send(&mut self, header: Header, payload: &[u8]) -> Result<(), ProtocolViolation> {
        let bytes = [header.to_bytes(), payload.to_vec()].concat();
        self.mem.write_slice(&bytes, GuestAddress(TX_BUFFER)).unwrap();
        let mut buffers = vec![Buffer::readable(TX_BUFFER, HEADER_SIZE as u32)];
        if !payload.is_empty() {
            let at = TX_BUFFER + HEADER_SIZE as u64;
            buffers.push(Buffer::readable(at, payload.len() as u32));
        }
        let head = self.tx.add(&buffers);
        self.device.process_queue(TX)?;
        assert_eq!(self.tx.take_used(), Some((head, 0)));
        Ok(())
    }

    fn send_op(&mut self, op: Op, ports: (u32, u32)) {
        self.send(self.header(op, ports), &[]);
    }

    fn send_data(&mut self, ports: (u32, u32), payload: &[u8]) {
        let header = Header { len: payload.len() as u32, ..self.header(Op::Rw, ports) };
        self.send(header, payload);
    }

    fn send_shutdown(&mut self, flags: u32, ports: (u32, u32)) {
        let header = Header { flags, ..self.header(Op::Shutdown, ports) };
        self.send(header, &[]);
    }

    /// The next packet for the guest, whose buffer goes back to the device.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (_, len) = self.rx.take_used()?;
        // Buffers are used in the order in which they were given.
        let addr = RX_BUFFERS + self.rx_taken % RX_COUNT * u64::from(RX_BUFFER_LEN);
        self.rx_taken += 1;
        let mut bytes = vec![0; len as usize];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        self.rx.add(&[Buffer::writable(addr, RX_BUFFER_LEN)]);
        self.device.process_queue(RX).unwrap();
        let payload = bytes.split_off(HEADER_SIZE);
        let header = Header::parse(&bytes.try_into().unwrap());
        assert_eq!(header.len as usize, payload.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
        Some((header, payload))
    }

    fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let packet = self.receive().unwrap_or_else(|| panic!("no packet, want {op:?}"));
        assert_eq!(Op::parse(packet.0.op), Some(op), "{:?}", packet.0);
        packet
    }

    fn nothing_more(&mut self) {
        assert_eq!(self.receive(), None);
    }

    /// A host client that asked for `port`; the device has heard of it.
    fn client(&mut self, port: u32) -> UnixStream {
        let mut client = UnixStream::connect(self.dir.path().join("v.sock")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        self.poll();
        client
    }

    /// A connection that the host opened to guest port `port`, with its ports as the guest names them.
    fn connected(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut client = self.client(port);
        let (request, _) = self.expect(Op::Request);
        assert_eq!((request.dst_port, request.buf_alloc), (port, RECEIVE_BUFFER));
        let ports = (port, request.src_port);
        self.send_op(Op::Response, ports);
        assert_eq!(read_line(&mut client), format!("OK {}\n", ports.1));
        (client, ports)
    }

    /// A connection that the guest opened to host port `ports.1`.
    fn connected_to_host(&mut self, ports: (u32, u32)) -> UnixStream {
        let listener = self.listen(ports.1);
        self.send_op(Op::Request, ports);
        let (response, _) = self.expect(Op::Response);
        assert_eq!((response.dst_port, response.src_port), ports);
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v.sock_{port}"))).unwrap()
    }
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

fn read_bytes(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes that tell when one is lost or moved.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 251) as u8).collect()
}

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
fn data_after_the_guest_closed_its_direction_ends_the_connection() {
    let mut guest = Guest::start();
    let (_client, ports) = guest.connected(5);
    guest.send_shutdown(SHUTDOWN_SEND, ports);
    guest.send_data(ports, b"more");
    guest.expect(Op::Rst);
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

#[test]
fn random_packets_do_no_harm() {
    let mut guest = Guest::start();
    let _listener = guest.listen(3);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    for _ in 0..20_000 {
        let ports = (random(6) as u32, random(6) as u32);
        let payload = pattern(random(100) as usize);
        let header = Header {
            len: payload.len() as u32,
            op: random(9) as u16,
            flags: random(5) as u32,
            buf_alloc: random(1 << 33) as u32,
            fwd_cnt: random(1 << 33) as u32,
            ..guest.header(Op::Rw, ports)
        };
        guest.send(header, &payload);
        while guest.receive().is_some() {}
        assert!(guest.device.hub.connection_count() <= 36);
    }
}
