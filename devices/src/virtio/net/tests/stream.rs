//! The device with a stream socket behind it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::stream::Stream;
use super::*;

fn ready() -> (Guest<Stream>, UnixStream) {
    let (socket, wire) = UnixStream::pair().unwrap();
    let mut guest = Guest::new(Stream::from_fd(socket.into()).unwrap());
    let features = guest.device.features();
    guest.activate(features);
    (guest, wire)
}

#[test]
fn frames_go_both_ways_without_their_header() {
    let (mut guest, mut wire) = ready();
    assert_eq!(guest.device.features() & (1 << VIRTIO_NET_F_GUEST_CSUM), 0);
    guest.queue_tx(&with_header(&frame(100)));
    guest.device.process_queue(TX).unwrap();
    let mut sent = [0; 104];
    wire.read_exact(&mut sent).unwrap();
    assert_eq!((&sent[..4], &sent[4..]), (&[0, 0, 0, 100][..], &frame(100)[..]));
    guest.give_rx(0, 0x800);
    wire.write_all(&[&[0, 0, 0, 70][..], &frame(70)].concat()).unwrap();
    guest.readable();
    assert_eq!(guest.rx.take_used(), Some((0, (HEADER_SIZE + 70) as u32)));
    assert_eq!(guest.rx_bytes(0, HEADER_SIZE + 70)[HEADER_SIZE..], frame(70));
}

#[test]
fn a_frame_for_the_hosts_loopback_is_dropped() {
    let (mut guest, wire) = ready();
    wire.set_nonblocking(true).unwrap();
    let mut bytes = frame(60);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[30..34].copy_from_slice(&[127, 0, 0, 1]);
    guest.queue_tx(&with_header(&bytes));
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_dropped), 1);
    assert!((&wire).read(&mut [0; 100]).is_err());
    assert!(guest.tx.take_used().is_some());
}

#[test]
fn a_full_socket_gets_the_rest_when_it_has_room() {
    let (mut guest, mut wire) = ready();
    let mut sent = 0;
    // Until the socket is full, with a frame in two pieces in all likelihood.
    while !guest.polled().contains(EventSet::OUT) {
        guest.queue_tx(&with_header(&frame(8000)));
        guest.device.process_queue(TX).unwrap();
        while guest.tx.take_used().is_some() {
            sent += 1;
        }
        assert!(sent < 1000);
    }
    let mut received = 0;
    while received < sent {
        let mut bytes = vec![0; 8004];
        wire.read_exact(&mut bytes).unwrap();
        assert_eq!((&bytes[..4], &bytes[4..]), (&8000u32.to_be_bytes()[..], &frame(8000)[..]));
        received += 1;
        guest.device.process_host_event(0, EventSet::OUT).unwrap();
        while guest.tx.take_used().is_some() {
            sent += 1;
        }
    }
    assert!(!guest.polled().contains(EventSet::OUT));
}
