//! PID 1: waits until a disk is plugged into slot 2, reads it, says what it cost, and powers off.

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
    let mut said = false;
    let took = loop {
        let before = Instant::now();
        match std::fs::write(BIND, "virtio-mmio.2") {
            Ok(()) => break before.elapsed(),
            Err(error) if error.raw_os_error() == Some(ENODEV) => {}
            Err(error) => panic!("bind: {error}"),
        }
        if !said {
            println!("empty slot refused after {} us", before.elapsed().as_micros());
            said = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut text = [0; 16];
    std::fs::File::open("/dev/vdb").and_then(|mut disk| disk.read_exact(&mut text)).expect("/dev/vdb");
    println!("bind took {} us", took.as_micros());
    println!("disk says {}", String::from_utf8_lossy(&text));
    unsafe { reboot(POWER_OFF) };
}
