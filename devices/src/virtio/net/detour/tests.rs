//! A guest's TCP (the same library's) against the service, and frames that are nobody's.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Timestamp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Answers with the request, many times over, once it ends with a dot.
struct Echo;

impl Respond for Echo {
    fn respond(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        request.ends_with(b".").then(|| request.repeat(5000))
    }
}

fn stack() -> (Stack, Service) {
    (Stack::new(ADDRESS), Service::new(ADDRESS, Arc::new(Mutex::new(Echo))))
}

/// The guest's wire: frames go straight to the stack.
struct Wire<'a> {
    stack: &'a mut Stack,
    service: &'a Service,
}

struct Frame(Vec<u8>);

impl smoltcp::phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sender<'a, 'b>(&'b mut Wire<'a>);

impl smoltcp::phy::TxToken for Sender<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.stack.put_frame(frame, |request| self.0.service.answer(request));
        result
    }
}

impl<'a> smoltcp::phy::Device for Wire<'a> {
    type RxToken<'b>
        = Frame
    where
        Self: 'b;
    type TxToken<'b>
        = Sender<'a, 'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Timestamp) -> Option<(Frame, Sender<'a, '_>)> {
        let frame = self.stack.take_frame(|request| self.service.answer(request))?;
        Some((Frame(frame), Sender(self)))
    }

    fn transmit(&mut self, _: Timestamp) -> Option<Sender<'a, '_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with one connection to the service, from `port`.
struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: smoltcp::iface::SocketHandle,
    now: i64,
}

impl Client {
    fn connect(wire: &mut Wire<'_>, port: u16) -> Self {
        let mac = EthernetAddress([2, 0, 0, 0, 0, 1]);
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ethernet(mac)), wire, Timestamp::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(172, 16, 0, 2), 24)).unwrap();
        });
        // `ip route add 169.254.169.254 dev eth0`, as near as it gets.
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(169, 254, 0, 1), 16)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 3000]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        let to = (IpAddress::Ipv4(ADDRESS), 80);
        sockets.get_mut::<tcp::Socket<'_>>(socket).connect(interface.context(), to, port).unwrap();
        Client { interface, sockets, socket, now: 0 }
    }

    fn turn(&mut self, wire: &mut Wire<'_>) -> &mut tcp::Socket<'static> {
        self.now += 10;
        self.interface.poll(Timestamp::from_millis(self.now), wire, &mut self.sockets);
        self.sockets.get_mut(self.socket)
    }

    /// Sends `request` and gives all that comes until the end.
    fn ask(&mut self, wire: &mut Wire<'_>, request: &[u8]) -> Vec<u8> {
        let (mut answer, mut sent) = (Vec::new(), 0);
        for _ in 0..10_000 {
            let socket = self.turn(wire);
            if sent < request.len() && socket.can_send() {
                sent += socket.send_slice(&request[sent..]).unwrap();
            }
            if socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            } else if sent == request.len() && !socket.may_recv() {
                socket.close();
                self.turn(wire);
                return answer;
            }
        }
        panic!("{} of {} bytes sent, {} received", sent, request.len(), answer.len());
    }
}

#[test]
fn an_answer_larger_than_all_buffers_arrives() {
    let (mut stack, service) = stack();
    let mut wire = Wire { stack: &mut stack, service: &service };
    for port in 0..20 {
        let mut client = Client::connect(&mut wire, 5000 + port);
        assert_eq!(client.ask(&mut wire, b"hello."), b"hello.".repeat(5000));
    }
}

#[test]
fn connections_that_say_nothing_give_way_to_new_ones() {
    let (mut stack, service) = stack();
    let mut wire = Wire { stack: &mut stack, service: &service };
    let mut silent: Vec<_> = (0..40).map(|port| Client::connect(&mut wire, 6000 + port)).collect();
    for client in &mut silent {
        client.turn(&mut wire);
        client.turn(&mut wire);
        client.turn(&mut wire);
    }
    let mut client = Client::connect(&mut wire, 7000);
    assert_eq!(client.ask(&mut wire, b"a.").len(), 10_000);
}

#[test]
fn a_request_without_end_ends_its_connection() {
    let (mut stack, service) = stack();
    let mut wire = Wire { stack: &mut stack, service: &service };
    let mut client = Client::connect(&mut wire, 8000);
    let mut sent = 0;
    for _ in 0..200 {
        let socket = client.turn(&mut wire);
        if socket.can_send() {
            sent += socket.send_slice(&[b'x'; 500]).unwrap();
        } else if sent > 0 && !socket.may_send() {
            return;
        }
    }
    panic!("{sent} bytes were taken");
}

#[test]
fn frames_that_make_no_sense_are_borne() {
    let (mut stack, service) = stack();
    let mut random = crate::virtio::fake_queue::Random::new(1);
    for len in (0..200).chain([1000, 1514, MAX_SERVED]) {
        for _ in 0..20 {
            let mut frame: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
            // As near to TCP for the service as each length allows.
            for (at, bytes) in [(0, &[6, 1, 0x23, 0x45, 0x67, 1][..]), (12, &[8, 0, 0x45]), (23, &[6])] {
                if let Some(field) = frame.get_mut(at..at + bytes.len()) {
                    field.copy_from_slice(bytes);
                }
            }
            if let Some(field) = frame.get_mut(30..34) {
                field.copy_from_slice(&ADDRESS.octets());
            }
            stack.put_frame(frame, |request| service.answer(request));
        }
    }
    while stack.take_frame(|request| service.answer(request)).is_some() {}
}

#[test]
fn only_frames_for_the_service_are_taken_off_the_wire() {
    let head = |ethertype: [u8; 2], at: usize, address: Ipv4Addr| {
        let mut head = [0; HEAD];
        head[12..14].copy_from_slice(&ethertype);
        head[at..at + 4].copy_from_slice(&address.octets());
        destination(&head)
    };
    assert_eq!(head([8, 0], 30, ADDRESS), Some(ADDRESS));
    assert_eq!(head([8, 6], 38, ADDRESS), Some(ADDRESS));
    assert_ne!(head([8, 0], 26, ADDRESS), Some(ADDRESS));
    assert_eq!(head([0x86, 0xdd], 30, ADDRESS), None);
}

/// Nothing is behind it.
struct Dead(OwnedFd);

impl FrameIo for Dead {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&self, _: libc::c_uint) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn frames_that_wait_are_told_of() {
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let mut detour = Detour::new(Dead(socket.into()), stack().1);
    assert!(!detour.has_frames());
    // Who has 169.254.169.254?
    let mut request = vec![0xff; 6];
    request.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 172, 16, 0, 2]);
    request.extend([0; 6]);
    request.extend(ADDRESS.octets());
    detour.stack.put_frame(request, |_| None);
    assert!(detour.has_frames());
    let reply = detour.stack.take_frame(|_| None).unwrap();
    assert_eq!(&reply[20..32], &[0, 2, 6, 1, 0x23, 0x45, 0x67, 1, 169, 254, 169, 254]);
    assert!(!detour.has_frames());
}
