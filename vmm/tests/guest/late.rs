//! PID 1: waits for a disk that comes after the boot, reads it, says what it cost, and powers off.
//!
//! Argument `bind`: probes slot 2 until there is a device. Argument `medium`: waits until the drive
//! `/dev/vdb` has a medium.

use std::ffi::{c_char, c_int, c_ulong, c_void};
use std::io::Read;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mount(
        from: *const c_char,
        to: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn reboot(command: c_int) -> c_int;
}

const ENODEV: i32 = 19;
const POWER_OFF: c_int = 0x4321_fedc;
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

fn main() {
    unsafe {
        mount(c"sysfs".as_ptr(), c"/sys".as_ptr(), c"sysfs".as_ptr(), 0, std::ptr::null());
        mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null());
    }
    let try_once = match std::env::args().nth(1).as_deref() {
        Some("medium") => medium,
        _ => bind,
    };
    let mut idle = Duration::MAX;
    let took = loop {
        let before = Instant::now();
        let found = try_once();
        let took = before.elapsed();
        if found {
            break took;
        }
        if idle == Duration::MAX {
            println!("waiting");
        }
        idle = took.min(idle);
        std::thread::sleep(Duration::from_millis(50));
    };
    let before = Instant::now();
    let mut text = [0; 16];
    std::fs::File::open("/dev/vdb").and_then(|mut disk| disk.read_exact(&mut text)).expect("/dev/vdb");
    let read = before.elapsed().as_micros();
    println!("took {} us, in vain {} us, first read {read} us", took.as_micros(), idle.as_micros());
    println!("disk says {}", String::from_utf8_lossy(&text));
    unsafe { reboot(POWER_OFF) };
}

fn bind() -> bool {
    match std::fs::write(BIND, "virtio-mmio.2") {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(ENODEV) => false,
        Err(error) => panic!("bind: {error}"),
    }
}

fn medium() -> bool {
    std::fs::read_to_string("/sys/block/vdb/size").expect("size").trim() != "0"
}
