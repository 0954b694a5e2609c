//! The server as a guest that took over its kernel sees it: FUSE requests, raw, over its socket.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use shares::{Plan, Share};

/// The first argument of this program when it is the server.
const SERVER: &str = "serve";
const LOOKUP: u32 = 1;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const OPEN: u32 = 14;
const READ: u32 = 15;
const SETXATTR: u32 = 21;
const LISTXATTR: u32 = 23;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const CREATE: u32 = 35;
const ROOT: u64 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == SERVER) {
        return serve(&arguments[2], arguments[3].parse().unwrap());
    }
    let unable = !rustix::process::getuid().is_root();
    let test = |name: &str, run: fn()| {
        let trial = Trial::test(name, move || {
            run();
            Ok(())
        });
        trial.with_ignored_flag(unable)
    };
    let trials = vec![
        test("a_guest_reaches_its_shares_and_nothing_else", reach),
        test("what_is_no_request_harms_nobody", malformed),
        test("a_server_ends_with_its_connection_and_refuses_what_is_not_there", ends),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The server: `place` is for its tree, and has the shares beside it.
fn serve(place: &str, socket: i32) -> ExitCode {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the parent left both descriptors to this process, which is their only owner.
    let (socket, mut status) =
        unsafe { (OwnedFd::from_raw_fd(socket), UnixStream::from(OwnedFd::from_raw_fd(socket + 1))) };
    let base = Path::new(place).parent().unwrap();
    let share = |name: &str, read_only| Share { source: base.join(name), read_only };
    let shares = vec![share("open", false), share("open", true), share("single", false)];
    let shares = if base.join("open").exists() { shares } else { vec![share("open", true)] };
    match shares::enter(&Plan { place: place.into(), shares }, None) {
        Ok(files) => {
            status.write_all(b"ready").unwrap();
            drop(status);
            shares::serve(files, &socket).unwrap();
            ExitCode::SUCCESS
        }
        Err(error) => {
            status.write_all(error.to_string().as_bytes()).unwrap();
            ExitCode::FAILURE
        }
    }
}

struct Guest {
    server: Child,
    socket: Option<UnixDatagram>,
    base: tempfile::TempDir,
    unique: u64,
}

impl Guest {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        std::fs::create_dir_all(path("open/inner")).unwrap();
        std::fs::write(path("open/file"), "content").unwrap();
        std::fs::write(path("single"), "alone").unwrap();
        std::fs::write(path("sibling"), "secret").unwrap();
        std::os::unix::fs::symlink(path("sibling"), path("open/out")).unwrap();
        let (mut guest, status) = Self::start(base);
        assert_eq!(status, "ready");
        let init = [7, 38, 0x2_0000, 0].map(u32::to_le_bytes).concat();
        guest.ask(INIT, 0, &init).unwrap();
        guest
    }

    fn start(base: tempfile::TempDir) -> (Self, String) {
        let place = base.path().join("place");
        std::fs::create_dir(&place).unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
        let (mut status, child) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let number = 100;
        command.args([SERVER, place.to_str().unwrap(), &number.to_string()]);
        let gifts = [(theirs.as_raw_fd(), number), (child.as_raw_fd(), number + 1)];
        let mine = ours.as_fd().as_raw_fd();
        // SAFETY: only async-signal-safe calls on descriptors that the child has copies of.
        unsafe {
            use std::os::unix::process::CommandExt as _;
            command.pre_exec(move || {
                for (from, to) in gifts {
                    libc::dup2(from, to);
                }
                libc::close(mine);
                Ok(())
            });
        }
        let server = command.spawn().unwrap();
        drop((theirs, child));
        let mut text = String::new();
        status.read_to_string(&mut text).unwrap();
        let socket = UnixDatagram::from(ours);
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (Self { server, socket: Some(socket), base, unique: 0 }, text)
    }

    /// Sends a request for `node` and gives the reply's body, or the errno.
    fn ask(&mut self, operation: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let len = u32::try_from(40 + body.len()).unwrap();
        let mut request = [len.to_le_bytes(), operation.to_le_bytes()].concat();
        request.extend([self.unique.to_le_bytes(), node.to_le_bytes()].concat());
        request.extend([0; 16]);
        request.extend(body);
        let socket = self.socket.as_ref().unwrap();
        socket.send(&request).unwrap();
        let mut reply = vec![0; 1 << 18];
        loop {
            let len = socket.recv(&mut reply).expect("a reply");
            assert!(len >= 16, "the server is gone");
            if reply[8..16] == self.unique.to_le_bytes() {
                return match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
                    0 => Ok(reply[16..len].to_vec()),
                    error => Err(-error),
                };
            }
        }
    }

    fn look(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(LOOKUP, parent, &text(name))?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn numbers(numbers: &[u32], name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    bytes.extend(text(name));
    bytes
}

fn reach() {
    let mut guest = Guest::new();
    let [open, read_only, single] = ["0", "1", "2"].map(|name| guest.look(ROOT, name).unwrap());
    // Out of the root there is no way up, and beside the shares nothing.
    let root = guest.look(ROOT, "..").unwrap_or(ROOT);
    assert_eq!(guest.look(root, "..").unwrap_or(root), root);
    let above = guest.look(open, "..").unwrap_or(root);
    let above = guest.look(above, "..").unwrap_or(root);
    for name in ["proc", "shares", "sibling", "single", "etc", "3", "../sibling", "0/file"] {
        for from in [ROOT, root, open, above] {
            assert!(guest.look(from, name).is_err(), "{name} from {from:#x}");
        }
    }
    // A link is text, never followed.
    let link = guest.look(open, "out").unwrap();
    assert!(String::from_utf8(guest.ask(READLINK, link, b"").unwrap()).unwrap().ends_with("/sibling"));
    assert!(guest.look(link, "x").is_err());
    assert!(guest.ask(OPEN, link, &[0; 8]).is_err());
    guest.ask(SYMLINK, open, &[text("up"), text("../../../..")].concat()).unwrap();
    let up = guest.look(open, "up").unwrap();
    assert!(guest.look(up, "etc").is_err() && guest.ask(OPENDIR, up, &[0; 8]).is_err());

    // Read-only is the host's word.
    let create = numbers(&[libc::O_RDWR as u32, 0o644, 0, 0], "new");
    assert_eq!(guest.ask(CREATE, read_only, &create).unwrap_err(), libc::EROFS);
    assert_eq!(guest.ask(MKDIR, read_only, &numbers(&[0o755, 0], "new")).unwrap_err(), libc::EROFS);
    let file = guest.look(read_only, "file").unwrap();
    assert_eq!(guest.ask(OPEN, file, &numbers(&[libc::O_RDWR as u32, 0], "")).unwrap_err(), libc::EROFS);
    assert!(guest.ask(SETXATTR, file, &[numbers(&[1, 0], "user.x"), b"1".to_vec()].concat()).is_err());
    assert!(guest.ask(MKDIR, ROOT, &numbers(&[0o755, 0], "new")).is_err());
    assert!(guest.ask(CREATE, open, &create).is_ok());
    assert!(guest.base.path().join("open/new").exists());
    assert!(guest.ask(OPEN, single, &numbers(&[libc::O_RDWR as u32, 0], "")).is_ok());

    // No device; attributes are reached although there is no /proc.
    let device = numbers(&[libc::S_IFBLK | 0o666, 0x700, 0, 0], "device");
    assert_eq!(guest.ask(MKNOD, open, &device).unwrap_err(), libc::EPERM);
    guest.ask(LISTXATTR, file, &[0, 0, 1, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(std::fs::read(guest.base.path().join("sibling")).unwrap(), b"secret");
}

fn malformed() {
    let mut guest = Guest::new();
    let open = guest.look(ROOT, "0").unwrap();
    let socket = guest.socket.as_ref().unwrap().try_clone().unwrap();
    for len in [1, 7, 39] {
        socket.send(&vec![0xff; len]).unwrap();
    }
    let mut state = 88_172_645_463_325_252u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..3000u32 {
        let body: Vec<u8> = (0..random() % 200).map(|_| random() as u8).collect();
        let node = if round % 2 == 0 { open } else { random() };
        // DESTROY and what ends a session is the guest's own loss; FORGET and INTERRUPT have no reply.
        let operation = round % 52;
        if ![2, 26, 36, 38, 42].contains(&operation) {
            let _ = guest.ask(operation, node, &body);
        }
    }
    let huge = [vec![0; 16], u32::MAX.to_le_bytes().to_vec(), vec![0; 20]].concat();
    assert!(guest.ask(READ, open, &huge).is_err());
    assert_eq!(guest.look(ROOT, "0"), Ok(open));
    assert!(guest.server.try_wait().unwrap().is_none());
}

fn ends() {
    let mut guest = Guest::new();
    guest.socket = None;
    assert!(guest.server.wait().unwrap().success());
    let (_guest, status) = Guest::start(tempfile::tempdir().unwrap());
    assert!(status.contains("cannot share") && status.contains("/open"), "{status}");
}
