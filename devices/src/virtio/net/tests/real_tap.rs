//! A TAP interface of the kernel; needs the privilege to make one.

use std::io::{Read, Write};

use super::*;

/// Moves this thread into a network namespace of its own; false, said aloud, without the privilege.
fn own_network() -> bool {
    // SAFETY: plain system call; only this test's thread changes its namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !moved {
        // Not `eprintln`, which the test harness keeps for itself.
        let text = "skipped: no privilege to make a network namespace and a TAP\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    moved
}

/// Sets the interface up.
fn bring_up(name: &str) {
    // SAFETY: plain system call.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, source) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = source as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`; the descriptor is closed after its only use.
    unsafe {
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request), 0);
        libc::close(socket);
    }
}

/// A packet socket that sees what is on the interface and can put frames on it.
fn packet_socket(name: &str) -> std::fs::File {
    use std::os::fd::FromRawFd;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system calls with a valid address of the given length and a new descriptor.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, protocol.into());
        assert!(fd >= 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        let name = std::ffi::CString::new(name).unwrap();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        std::fs::File::from_raw_fd(fd)
    }
}

#[test]
fn frames_pass_a_real_tap_both_ways() {
    if !own_network() {
        return;
    }
    let tap = Tap::from_fd(Tap::create("lighter-test0").unwrap()).unwrap();
    assert!(matches!(Tap::create("lighter-test0"), Err(tap::TapError::Attach { .. })));
    bring_up("lighter-test0");
    let mut host = packet_socket("lighter-test0");
    let mut guest = Guest::new(tap);
    let features = guest.device.features();
    guest.activate(features);
    for index in 0..64 {
        guest.give_rx(index, 2048);
    }
    // A type that no protocol of the host answers to.
    let ethernet = [[0xff; 6].as_slice(), &IDENTITY.mac, &[0x88, 0xb5], &[7; 50]].concat();
    guest.queue_tx(&with_header(&ethernet));
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_frames), 1);
    let mut bytes = [0; 2000];
    let seen = std::iter::from_fn(|| host.read(&mut bytes).ok().map(|count| bytes[..count].to_vec()))
        .any(|frame| frame == ethernet);
    assert!(seen, "the host did not see the guest's frame");

    host.write_all(&ethernet).unwrap();
    guest.readable();
    let mut index = 0;
    let seen = std::iter::from_fn(|| guest.rx.take_used().map(|used| used.1 as usize)).any(|len| {
        index += 1;
        guest_bytes(&guest.mem, index - 1, len)[HEADER_SIZE..] == ethernet
    });
    assert!(seen, "the guest did not see the host's frame");
    // With a header that asks for the impossible, the kernel refuses the frame and the guest lives on.
    let mut broken = with_header(&ethernet);
    broken[1] = 0x77;
    guest.queue_tx(&broken);
    guest.device.process_queue(TX).unwrap();
    assert_eq!(guest.counter(|counters| &counters.tx_dropped), 1);
    assert_eq!(guest.device.take_host_failure(), None);
}
