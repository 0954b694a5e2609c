//! PID 1 of a guest that is cloned and saved: idle until somebody connects. A connection to port 1024 gets the
//! output of a program that is executed for it; one to port 1025 makes the guest write 16 pages ten times a
//! second from then on.

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const ANY_CID: u32 = u32::MAX;
const PAGE: usize = 4096;
const PAGES: usize = 16;

/// `struct sockaddr_vm` of vsock(7).
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const Address, len: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn mount(
        from: *const c_char,
        at: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, len: *mut u32) -> c_int;
}

fn listener(port: u32) -> c_int {
    let address = Address { family: AF_VSOCK as u16, reserved: 0, port, cid: ANY_CID, zero: [0; 4] };
    unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        assert!(fd >= 0 && bind(fd, &address, 16) == 0 && listen(fd, 8) == 0, "no vsock");
        fd
    }
}

fn accepted(listener: c_int) -> File {
    loop {
        let fd = unsafe { accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
        if fd >= 0 {
            return unsafe { File::from_raw_fd(fd) };
        }
    }
}

fn write_for_ever() {
    let mut memory = vec![1_u8; PAGES * PAGE];
    loop {
        for page in memory.chunks_mut(PAGE) {
            page[0] = page[0].wrapping_add(1);
        }
        std::hint::black_box(&memory);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("child") {
        return println!("hello");
    }
    // As lighter's agent does: nothing wakes an idle guest often.
    unsafe { mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null()) };
    for (name, value) in [("compaction_proactiveness", "0"), ("stat_interval", "3600")] {
        std::fs::write(format!("/proc/sys/vm/{name}"), value).unwrap();
    }
    let (commands, writer) = (listener(1024), listener(1025));
    std::thread::spawn(move || {
        drop(accepted(writer));
        write_for_ever();
    });
    println!("waiting");
    loop {
        let mut client = accepted(commands);
        // There is no /dev/null.
        let output = Command::new("/init").arg("child").stdin(Stdio::piped()).output().unwrap();
        let _ = client.write_all(&output.stdout);
    }
}
