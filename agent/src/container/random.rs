//! The guest's random generator.

use std::os::fd::AsRawFd as _;

use crate::failure::last_errno;

/// `struct rand_pool_info` of random(4) with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; 32],
}

/// `_IOW('R', 0x03, int[2])`, random(4).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)`, random(4).
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Adds the host's entropy to the generator, credits it and makes everything drawn from now on depend on it.
///
/// A kernel that refuses goes on with what it has (RDRAND, virtio-rng).
pub fn reseed(entropy: &[u8; 32]) {
    let Ok(random) = std::fs::File::open("/dev/urandom") else { return };
    let info = PoolInfo { entropy_bits: 256, bytes: 32, buffer: *entropy };
    // SAFETY: the ioctl reads a rand_pool_info and the `bytes` bytes that follow its header, all in `info`.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) } < 0 {
        eprintln!("lighter-agent: the host's entropy was not taken: {}", last_errno());
    }
    // SAFETY: this ioctl takes no argument. It fails on a generator that was not seeded before, which the
    // entropy above has then done.
    unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
}
