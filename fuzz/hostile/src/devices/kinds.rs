//! One target a kind of device.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs::File, io};

use ::devices::rate::{RateLimiter, RateLimits};
use ::devices::virtio::balloon::Balloon;
use ::devices::virtio::block::{Block, BlockConfig, BlockEngine};
use ::devices::virtio::fs::Fs;
use ::devices::virtio::mem::{Mem, MemRegion};
use ::devices::virtio::net::tap::FrameIo;
use ::devices::virtio::net::{Net, NetIdentity};
use ::devices::virtio::pmem::{Pmem, Window};
use ::devices::virtio::rng::Rng;
use ::devices::virtio::testing::guest_ram;
use ::devices::virtio::vsock::Vsock;

use super::driver::{drive, drive_on};
use crate::bytes::Bytes;

/// Bytes of the disk.
const DISK_SIZE: u64 = 64 << 10;
/// The guest's identity on its wire.
const IDENTITY: NetIdentity = NetIdentity { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1400) };

/// A name in the process's own directory that nobody else has.
fn scratch(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().unwrap());
    directory.path().join(format!("{name}{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Requests to a disk; the first byte says how it is opened.
pub fn block(bytes: &[u8]) {
    let mut input = Bytes::new(bytes);
    let mode = input.u8();
    let path = scratch("disk");
    File::create(&path).unwrap().set_len(DISK_SIZE).unwrap();
    let engine = if mode & 1 == 0 { BlockEngine::Sync } else { BlockEngine::IoUring };
    let config = BlockConfig {
        path: path.clone(),
        read_only: mode & 2 != 0,
        serial: "hostile".into(),
        engine,
        limits: RateLimits::default(),
    };
    let device = Block::open(&config).unwrap();
    drive(device, &mut input, |_| ());
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(len, DISK_SIZE, "the guest changed the size of its disk");
}

/// The other end of a socket pair.
struct FakeTap(UnixDatagram);

impl FrameIo for FakeTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&self, _: libc::c_uint) -> io::Result<()> {
        Ok(())
    }
}

/// Frames of the guest, and of whoever sends it some.
pub fn net(bytes: &[u8]) {
    let (ours, wire) = UnixDatagram::pair().unwrap();
    for end in [&ours, &wire] {
        end.set_nonblocking(true).unwrap();
    }
    let limiter = RateLimiter::new(&RateLimits::default()).unwrap();
    drive(Net::new(FakeTap(ours), IDENTITY, limiter), &mut Bytes::new(bytes), |input| {
        let len = usize::from(input.u16());
        // A full wire is as good as another frame.
        let _ = wire.send(input.take(len));
        let _ = wire.recv(&mut [0; 2048]);
    });
}

/// Packets of the guest, and clients and listeners on the host.
pub fn vsock(bytes: &[u8]) {
    let path = scratch("v");
    let listens_at = path.with_file_name(format!("{}_7", path.file_name().unwrap().to_str().unwrap()));
    let listener = UnixListener::bind(&listens_at).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut streams: Vec<UnixStream> = Vec::new();
    drive(Vsock::new(42, &path).unwrap(), &mut Bytes::new(bytes), |input| match input.u8() % 4 {
        0 => streams.extend(listener.accept().ok().map(|(stream, _)| stream)),
        1 => streams.extend(UnixStream::connect(&path).ok()),
        2 => drop(streams.pop()),
        _ => {
            let len = usize::from(input.u8());
            let said = input.take(len);
            for stream in &mut streams {
                let _ = stream.set_nonblocking(true);
                let _ = stream.write(said);
                let _ = stream.read(&mut [0; 256]);
            }
        }
    });
    for path in [&path, &listens_at] {
        let _ = std::fs::remove_file(path);
    }
}

/// Requests for entropy.
pub fn rng(bytes: &[u8]) {
    drive(Rng::new(), &mut Bytes::new(bytes), |_| ());
}

/// Pages that the guest gives back or asks for, and its statistics.
pub fn balloon(bytes: &[u8]) {
    // Its own memory, so that pages which are none of the driver's are given back too.
    let device = Balloon::with_options(guest_ram(4 << 20), 1, true).unwrap();
    let control = device.control();
    drive(device, &mut Bytes::new(bytes), |input| {
        let byte = input.u8();
        let _ = control.set_target(u32::from(byte));
        let _ = control.start_hinting(byte & 1 == 0);
    });
}

/// Memory that the guest plugs and unplugs.
pub fn mem(bytes: &[u8]) {
    let region = MemRegion { address: 0, size: 4 << 20, block: 64 << 10 };
    let device = Mem::new(guest_ram(4 << 20), region).unwrap();
    let control = device.control();
    drive(device, &mut Bytes::new(bytes), |input| {
        let _ = control.request(u64::from(input.u8()) << 16);
        let sizes = control.sizes();
        assert!(sizes.plugged <= region.size && sizes.requested <= region.size, "{sizes:?}");
    });
}

/// Flushes of persistent memory.
pub fn pmem(bytes: &[u8]) {
    let window =
        Window { start: 1 << 32, size: 2 << 20, read_only: bytes.first().is_some_and(|b| b & 1 != 0) };
    drive(Pmem::new(tempfile::tempfile().unwrap(), window), &mut Bytes::new(bytes), |_| ());
}

/// FUSE requests of the guest and replies of a server that the guest took over.
pub fn fs(bytes: &[u8]) {
    let (ours, server) = seqpacket_pair();
    let reply = |input: &mut Bytes<'_>| {
        let len = usize::from(input.u8());
        let mut reply = input.take(len).to_vec();
        let mut request = [0; 512];
        let got = receive(&server, &mut request);
        // One that names a request which is under way, with its length as it should be.
        if input.u8() & 1 == 0 && got >= 16 && reply.len() >= 16 {
            reply[8..16].copy_from_slice(&request[8..16]);
            let len = u32::try_from(reply.len()).unwrap();
            reply[..4].copy_from_slice(&len.to_le_bytes());
        }
        send(&server, &reply);
    };
    // Paused, the device waits seconds for a server that says nothing.
    drive_on(Fs::new("hostile", Some(ours)), &mut Bytes::new(bytes), reply, false);
}

fn seqpacket_pair() -> (OwnedFd, OwnedFd) {
    use std::os::fd::FromRawFd as _;
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
    // SAFETY: the call just made both and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
}

fn receive(socket: &OwnedFd, into: &mut [u8]) -> usize {
    use std::os::fd::AsRawFd as _;
    // SAFETY: as many writable bytes as stated.
    let got = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(got).unwrap_or(0)
}

fn send(socket: &OwnedFd, message: &[u8]) {
    use std::os::fd::AsRawFd as _;
    // SAFETY: as many readable bytes as stated. What the socket does not take is lost.
    unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
}
