//! A network in user mode: the program `passt` carries the guest's connections over sockets of the user.
//!
//! ```text
//! guest eth0 ── VMM ── socket pair, frames behind their length ── passt ── the host's sockets
//! ```
//!
//! passt confines itself (namespaces, seccomp, no files, no capabilities) and ends with the machine: when its socket is
//! closed. It gets a PID namespace, where root starts it, and limits besides; `inspect --security` shows what it holds.
//! The gateway's address does not lead to the host, and the VMM lets no frame pass that is addressed to loopback.

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_protocol::message::InterfacePlan;
use jailer::child::Child;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::attachment::Interface;
use super::spec::Mac;
use super::wire::Station;
use super::{MTU, NetworkError, host, nft};
use crate::process::spawn_apart;

/// The program.
pub const PROGRAM: &str = "passt";
/// The guest's side, as every user-mode network has it.
pub const GUEST: Station = ([0x02, 0x6c, 10, 0, 2, 15], Ipv4Addr::new(10, 0, 2, 15));
/// passt's side.
pub const GATEWAY: Station = ([0x02, 0x6c, 10, 0, 2, 2], Ipv4Addr::new(10, 0, 2, 2));
const PREFIX: u8 = 24;
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd6c, 0x6967, 0x6874, 0, 0, 0, 0, 0x15);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd6c, 0x6967, 0x6874, 0, 0, 0, 0, 2);
const PREFIX6: u8 = 64;
/// What passt may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest file that it may write: its messages. Private memory that it may have.
const MAX_FILE: u64 = 1 << 20;
const MAX_DATA: u64 = 256 << 20;
/// Bytes of its messages that are shown.
const MAX_SAID: u64 = 2 << 10;

/// A running passt, ended on drop.
#[derive(Debug)]
pub struct Passt {
    child: Child,
}

impl Passt {
    /// Starts it, and gives the machine's end of the wire and what the guest must know.
    pub fn start() -> Result<(Self, Interface, InterfacePlan), NetworkError> {
        let missing = super::permission::missing_for_user_mode();
        let Some(program) = nft::find(PROGRAM).filter(|_| missing.is_empty()) else {
            return Err(NetworkError::NoUserMode { missing: missing.join(" and ") });
        };
        let six = has_default_route6();
        let wire = || host("make a socket pair for passt");
        let (ours, theirs) = UnixStream::pair().map_err(wire())?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())
            .map_err(|error| wire()(error.into()))?;
        // For the user nobody too, whom passt becomes where root starts it.
        let anyone = Permissions::from_mode(0o666);
        let ready = tempfile::Builder::new().permissions(anyone.clone()).tempfile();
        let ready = ready.and_then(|file| file.as_file().set_permissions(anyone).map(|()| file));
        let ready = ready.map_err(host("make a file for passt"))?;
        let mut said = tempfile::tempfile().map_err(host("make a file for passt"))?;
        let stderr = said.try_clone().map_err(host("make a file for passt"))?;
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut arguments = text(&["--foreground", "--quiet", "--stderr", "--one-off", "--no-map-gw"]);
        let mac = Mac(GATEWAY.0).to_string();
        arguments.extend(text(&["--no-dhcp", "--no-dhcpv6", "--no-ra", "--mac-addr", &mac]));
        arguments.extend(text(&["--fd", &theirs.as_raw_fd().to_string(), "--mtu", &MTU.to_string()]));
        arguments.extend(text(&["--pid", &ready.path().to_string_lossy()]));
        arguments.extend(text(&["--address", &GUEST.1.to_string(), "--netmask", &PREFIX.to_string()]));
        arguments.extend(text(&["--gateway", &GATEWAY.1.to_string()]));
        match six {
            true => arguments.extend(text(&["--address", &ADDRESS6.to_string()])),
            false => arguments.push("--ipv4-only".to_owned()),
        }
        let child =
            spawn_apart(&program, &arguments, stderr.as_fd()).map_err(host(format!("start {PROGRAM}")))?;
        let mut passt = Self { child };
        drop(theirs);
        passt.wait_until_ready(ready.as_file(), &mut said)?;
        passt.limit();
        let plan = InterfacePlan {
            mac: GUEST.0,
            ipv4: Some((GUEST.1, PREFIX)),
            gateway_v4: Some(GATEWAY.1),
            ipv6: six.then_some((ADDRESS6, PREFIX6)),
            gateway_v6: six.then_some(GATEWAY6),
            mtu: MTU,
        };
        Ok((passt, Interface::stream(ours.into(), GUEST.0), plan))
    }

    /// What it may use from now on. A host that does not permit to say so is as before.
    fn limit(&self) {
        let Some(pid) = Pid::from_raw(self.child.id() as i32) else { return };
        for (resource, most) in [(Resource::Fsize, MAX_FILE), (Resource::Data, MAX_DATA), (Resource::Core, 0)]
        {
            let _ = prlimit(Some(pid), resource, Rlimit { current: Some(most), maximum: Some(most) });
        }
    }

    /// It writes its process ID when it is ready.
    fn wait_until_ready(&mut self, ready: &File, said: &mut File) -> Result<(), NetworkError> {
        let failed = || host(format!("start {PROGRAM}"));
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if ready.metadata().map_err(failed())?.len() > 0 {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(failed())? {
                let mut text = Vec::new();
                let _ = said.rewind().and_then(|()| said.take(MAX_SAID).read_to_end(&mut text));
                let text = without_syslog(&String::from_utf8_lossy(&text));
                let text = crate::text::printable(text.as_bytes());
                return Err(failed()(io::Error::other(format!("it ended with {status}: {text}"))));
            }
            if Instant::now() > deadline {
                return Err(failed()(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Fails only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What passt says, without its complaints about a host that has no system log.
fn without_syslog(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("Failed to send")).collect::<Vec<_>>().join("; ")
}

/// A wire with nobody at the other end.
pub fn detached() -> io::Result<Interface> {
    let (ours, _) = UnixStream::pair()?;
    Ok(Interface::stream(ours.into(), GUEST.0))
}

/// Whether this thread's network namespace has a default route.
pub fn has_way_out() -> bool {
    let text = std::fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let default = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        matches!(columns.as_slice(), [_, "00000000", _, _, _, _, _, "00000000", ..])
    };
    text.lines().skip(1).any(default) || has_default_route6()
}

fn has_default_route6() -> bool {
    let text = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    // Destination, prefix length, …, interface. The kernel's own unreachable route is on lo.
    text.lines().any(|line| {
        line.starts_with("00000000000000000000000000000000 00 ")
            && line.split_whitespace().last() != Some("lo")
    })
}
