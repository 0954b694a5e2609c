//! A driver on one side, the other end of the socket on the other.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::virtio::fake_queue::Random;
use crate::virtio::testing::{BUFFERS, Buffer, FakeDriver, register, status};

/// Where a test's requests and replies are.
const ASKED: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x10_0000;
const REQUESTS: u16 = 1;

fn pair() -> (OwnedFd, UnixDatagram) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let theirs = UnixDatagram::from(theirs);
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn start() -> (FakeDriver, UnixDatagram) {
    let (ours, server) = pair();
    (FakeDriver::start(Fs::new("shares", Some(ours)), 0), server)
}

/// A request with this number whose body is `body`.
fn request(unique: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; IN_HEADER_BYTES];
    bytes[0..4].copy_from_slice(&0xffff_ffffu32.to_le_bytes());
    bytes[8..16].copy_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn submit(driver: &mut FakeDriver, bytes: &[u8], reply: u32) -> u16 {
    driver.fill(ASKED, bytes);
    let asked = Buffer::readable(ASKED, u32::try_from(bytes.len()).unwrap());
    let buffers = [asked, Buffer::writable(ANSWER, reply)];
    driver.submit(REQUESTS, &buffers[..if reply == 0 { 1 } else { 2 }])
}

fn received(server: &UnixDatagram) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 18];
    let len = server.recv(&mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// Replies to a request as it came over the socket.
fn reply(server: &UnixDatagram, asked: &[u8], body: &[u8]) {
    let unique = u64::from_le_bytes(asked[8..16].try_into().unwrap());
    let len = u32::try_from(OUT_HEADER_BYTES + body.len()).unwrap();
    let mut bytes = OutHeader { len, error: 0, unique }.bytes().to_vec();
    bytes.extend_from_slice(body);
    server.send(&bytes).unwrap();
}

/// Lets the device look at its socket.
fn turn(driver: &FakeDriver) {
    driver.transport.process_host_event(0, EventSet::IN);
    driver.run();
}

fn answer(driver: &FakeDriver) -> OutHeader {
    OutHeader::parse(&driver.peek(ANSWER, OUT_HEADER_BYTES).try_into().unwrap())
}

#[test]
fn the_configuration_names_the_file_system_and_one_request_queue() {
    let driver = FakeDriver::new(Fs::new("shares", None));
    let mut space = [0; 44];
    use crate::bus::BusDevice as _;
    for (offset, word) in (0u64..).step_by(4).zip(space.chunks_exact_mut(4)) {
        driver.transport.read(register::CONFIG + offset, word);
    }
    assert_eq!((&space[..7], &space[36..]), (&b"shares\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0][..]));
}

#[test]
fn a_request_reaches_the_server_and_its_reply_the_guest() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(77, b"lookup"), 100);
    let asked = received(&server).unwrap();
    assert_eq!((&asked[40..], &asked[0..4]), (&b"lookup"[..], &46u32.to_le_bytes()[..]));
    assert_eq!(driver.take_used(REQUESTS), None);
    reply(&server, &asked, b"found");
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((head, 21)));
    assert_eq!(answer(&driver), OutHeader { len: 21, error: 0, unique: 77 });
    assert_eq!(driver.peek(ANSWER + 16, 6), b"found\0");
    assert!(driver.take_interrupt());
}

#[test]
fn replies_in_another_order_find_their_requests_even_with_equal_numbers() {
    let (mut driver, server) = start();
    let first = submit(&mut driver, &request(5, b"a"), 64);
    let buffers = [Buffer::readable(ASKED, 41), Buffer::writable(ANSWER + 0x1000, 64)];
    let second = driver.submit(REQUESTS, &buffers);
    let (one, two) = (received(&server).unwrap(), received(&server).unwrap());
    reply(&server, &two, b"2");
    reply(&server, &one, b"1");
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((second, 17)));
    assert_eq!(driver.take_used(REQUESTS), Some((first, 17)));
    assert_eq!(
        (driver.peek(ANSWER + 16, 1), driver.peek(ANSWER + 0x1010, 1)),
        (b"1".to_vec(), b"2".to_vec())
    );
}

#[test]
fn a_request_without_room_for_a_reply_is_done_when_it_is_sent() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(1, b"forget"), 0);
    assert_eq!(driver.take_used(REQUESTS), Some((head, 0)));
    let asked = received(&server).unwrap();
    reply(&server, &asked, b"unasked");
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), None);
    assert_eq!(driver.read(register::STATUS), 0xf);
}

#[test]
fn a_dead_server_fails_what_is_under_way_and_what_comes() {
    let (mut driver, server) = start();
    let first = submit(&mut driver, &request(8, b"a"), 64);
    drop(server);
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((first, 16)));
    assert_eq!(answer(&driver), OutHeader::failure(libc::ENOTCONN, 8));
    let second = submit(&mut driver, &request(9, b"b"), 64);
    assert_eq!(driver.take_used(REQUESTS), Some((second, 16)));
    assert_eq!(answer(&driver), OutHeader::failure(libc::ENOTCONN, 9));
    let told = driver.observed.take();
    assert!(told.iter().any(|line| line.contains("is gone")), "{told:?}");
    assert_eq!(driver.read(register::STATUS), 0xf);
}

#[test]
fn a_server_that_dies_unseen_is_found_out_by_the_next_request() {
    let (mut driver, server) = start();
    drop(server);
    let head = submit(&mut driver, &request(8, b"a"), 64);
    assert_eq!((driver.take_used(REQUESTS), answer(&driver).error), (Some((head, 16)), -libc::ENOTCONN));
}

#[test]
fn a_reply_that_is_too_long_is_an_error_and_nothing_more() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(3, b"read"), 32);
    reply(&server, &received(&server).unwrap(), &[0xee; 100]);
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((head, 16)));
    assert_eq!(answer(&driver), OutHeader::failure(libc::EIO, 3));
    assert_eq!(driver.peek(ANSWER + 16, 200), [0; 200]);
    // The rest of that message is no reply to the next request.
    let head = submit(&mut driver, &request(4, b"read"), 32);
    reply(&server, &received(&server).unwrap(), b"ok");
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((head, 18)));
}

#[test]
fn a_server_that_babbles_is_given_up() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(3, b"read"), 32);
    server.send(b"short").unwrap();
    turn(&driver);
    assert_eq!((driver.take_used(REQUESTS), answer(&driver).error), (Some((head, 16)), -libc::ENOTCONN));
}

#[test]
fn what_the_server_cannot_take_now_waits_in_the_queue() {
    let (mut driver, server) = start();
    let body = vec![1; 100 << 10];
    let heads: Vec<u16> = (0..8).map(|number| submit(&mut driver, &request(number, &body), 64)).collect();
    let mut answered = Vec::new();
    for _ in 0..heads.len() {
        while let Some(asked) = received(&server) {
            reply(&server, &asked, b"");
        }
        driver.transport.process_host_event(0, EventSet::IN | EventSet::OUT);
        driver.run();
        answered.extend(std::iter::from_fn(|| driver.take_used(REQUESTS)).map(|(head, _)| head));
    }
    assert_eq!(answered, heads);
}

#[test]
fn malformed_requests_break_the_protocol() {
    let large = u32::try_from(MAX_REQUEST_BYTES).unwrap() + 1;
    let cases: [&[Buffer]; 4] = [
        &[Buffer::readable(ASKED, 39)],
        &[Buffer::writable(ANSWER, 64)],
        &[Buffer::readable(ASKED, large), Buffer::writable(ANSWER, 64)],
        &[Buffer::writable(ANSWER, 64), Buffer::readable(ASKED, 64)],
    ];
    for buffers in cases {
        let (mut driver, server) = start();
        driver.submit(REQUESTS, buffers);
        assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET, "{buffers:?}");
        assert!(received(&server).is_none(), "{buffers:?}");
    }
}

#[test]
fn a_chain_that_changes_under_way_harms_only_the_guest() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(3, b"read"), 64);
    let asked = received(&server).unwrap();
    // The reply's buffer is outside memory now.
    driver.queues[1].write_descriptor(head + 1, Buffer::writable(1 << 40, 64), 2, 0);
    reply(&server, &asked, b"late");
    turn(&driver);
    assert_eq!(driver.read(register::STATUS), 0xf | status::NEEDS_RESET);
    assert_eq!(driver.peek(ANSWER, 64), [0; 64]);
}

#[test]
fn replies_after_a_reset_are_nobodys() {
    let (mut driver, server) = start();
    submit(&mut driver, &request(3, b"read"), 64);
    let late = received(&server).unwrap();
    driver.initialize(0);
    let head = submit(&mut driver, &request(3, b"read"), 64);
    reply(&server, &late, b"late");
    reply(&server, &received(&server).unwrap(), b"now");
    turn(&driver);
    assert_eq!(driver.take_used(REQUESTS), Some((head, 19)));
    assert_eq!(driver.peek(ANSWER + 16, 3), b"now");
}

#[test]
fn a_paused_machine_has_its_answers_and_a_restored_one_no_session() {
    let (mut driver, server) = start();
    let head = submit(&mut driver, &request(3, b"read"), 64);
    reply(&server, &received(&server).unwrap(), b"done");
    let state = driver.transport.save().unwrap();
    assert_eq!(driver.take_used(REQUESTS), Some((head, 20)));
    let (ours, server) = pair();
    let mut restored = FakeDriver::with_mem(Fs::new("shares", Some(ours)), driver.mem.clone());
    restored.transport.restore(&state).unwrap();
    std::mem::swap(&mut restored.queues, &mut driver.queues);
    let head = submit(&mut restored, &request(4, b"read"), 64);
    assert_eq!((restored.take_used(REQUESTS), answer(&restored).error), (Some((head, 16)), -libc::ENOTCONN));
    assert!(received(&server).is_none_or(|end| end.is_empty()));
}

#[test]
fn a_machine_saved_before_its_first_request_finds_its_own_server_when_restored() {
    let mut driver = FakeDriver::start(Fs::new("shares", None), 0);
    let state = driver.transport.save().unwrap();
    let (ours, server) = pair();
    let mut restored = FakeDriver::with_mem(Fs::new("shares", Some(ours)), driver.mem.clone());
    restored.transport.restore(&state).unwrap();
    std::mem::swap(&mut restored.queues, &mut driver.queues);
    submit(&mut restored, &request(4, b"init"), 64);
    assert!(received(&server).is_some());
    assert!(Fs::new("shares", None).restore(b"").is_err());
}

#[test]
fn random_rings_and_replies_neither_panic_nor_hold_the_loop() {
    for seed in 1..40 {
        let (mut driver, server) = start();
        let mut random = Random::new(seed);
        for _ in 0..300 {
            let index = u16::try_from(random.below(2)).unwrap();
            driver.queues[usize::from(index)].scribble(&mut random, 0x4_0000);
            driver.notify(index);
            if let Some(asked) = received(&server).filter(|asked| asked.len() >= IN_HEADER_BYTES) {
                let body = vec![0; usize::try_from(random.below(3000)).unwrap()];
                reply(&server, &asked, &body);
            }
            turn(&driver);
            if driver.read(register::STATUS) & status::NEEDS_RESET != 0 {
                driver.initialize(0);
            }
        }
    }
}
