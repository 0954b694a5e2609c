//! PID 1: asks the metadata service for what it is, waits for another medium in /dev/vdb, waits until it is told
//! something else than before, and powers off.

use std::ffi::{c_int, c_ulong};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut Request) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn mount(source: *const i8, target: *const i8, kind: *const i8, flags: c_ulong, data: *const i8) -> c_int;
}

const AF_INET: c_int = 2;
const SOCK_DGRAM: c_int = 2;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const SIOCSIFADDR: c_ulong = 0x8916;
const UP: u8 = 1;
const POWER_OFF: c_int = 0x4321_fedc;

/// `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

fn set(fd: c_int, request: c_ulong, value: &[u8]) {
    let mut name = [0; 16];
    name[..4].copy_from_slice(b"eth0");
    let mut argument = Request { name, value: [0; 24] };
    argument.value[..value.len()].copy_from_slice(value);
    assert_eq!(unsafe { ioctl(fd, request, &mut argument) }, 0, "{}", std::io::Error::last_os_error());
}

/// The body of the answer to `request`, if it is a good one.
fn ask(request: &str) -> Option<String> {
    let mut stream = TcpStream::connect("169.254.169.254:80").ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(format!("{request}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// What the guest is called, with a token of its own.
fn name() -> Option<String> {
    let token = ask("PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60")?;
    ask(&format!("GET /name HTTP/1.1\r\nX-metadata-token: {token}"))
}

fn sectors() -> String {
    std::fs::read_to_string("/sys/block/vdb/size").expect("a second disk").trim().to_owned()
}

fn main() {
    unsafe { mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null()) };
    let fd = unsafe { socket(AF_INET, SOCK_DGRAM, 0) };
    // Of the class B network that the service is in too.
    set(fd, SIOCSIFADDR, &[2, 0, 0, 0, 169, 254, 0, 2]);
    set(fd, SIOCSIFFLAGS, &[UP, 0]);
    println!("without a token: {:?}", ask("GET /name HTTP/1.1"));
    let first = name().expect("a name");
    println!("name: {first}");
    println!("medium: {}", sectors());
    while sectors() == "8" {
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("new medium: {}", sectors());
    let second = loop {
        match name() {
            Some(name) if name != first => break name,
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    println!("new name: {second}");
    unsafe { reboot(POWER_OFF) };
}
