//! Attaches to a TAP interface, as the engine does before it starts a VMM.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::ioctl::{Opcode, Setter, ioctl};

/// TUNSETIFF.
const TUNSETIFF: Opcode = 0x4004_54ca;
/// IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
const FLAGS: u16 = 0x5002;

/// `struct ifreq` with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// A descriptor of the TAP interface `name`, for a child to inherit.
pub fn attach(name: &str) -> anyhow::Result<OwnedFd> {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").context("cannot open /dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
    anyhow::ensure!(name.len() < request.name.len(), "interface name {name} is too long");
    request.name.iter_mut().zip(name.bytes()).for_each(|(target, byte)| *target = byte);
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, whose layout `InterfaceRequest` has.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }
        .with_context(|| format!("cannot attach to the TAP {name}"))?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    Ok(file.into())
}
