//! A guest's driver in miniature against real Unix sockets.

mod credit;
mod hostile;
mod life;
mod streams;

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
use crate::virtio::fake_queue::{Buffer, CountingInterrupt, FakeQueue, Random, guest_ram};

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
