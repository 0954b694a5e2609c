//! PID 1: waits for an image in slot 2, a disk or persistent memory, mounts it, runs a program of it, reads
//! every file, and says what each step cost.

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mount(
        from: *const c_char,
        to: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
}

const READABLE: c_int = 1;
const PRIVATE: c_int = 2;

const READ_ONLY: c_ulong = 1;
const BIND: &str = "/sys/bus/platform/drivers/virtio-mmio/bind";

fn mount_at(from: &str, to: &str, kind: &str, flags: c_ulong, options: &str) {
    let [from, to, kind, options] =
        [from, to, kind, options].map(|text| CString::new(text).expect("no zero"));
    let options = options.as_ptr().cast();
    if unsafe { mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, options) } != 0 {
        panic!("mount {from:?}: {}", std::io::Error::last_os_error());
    }
}

fn main() {
    mount_at("sysfs", "/sys", "sysfs", 0, "");
    mount_at("proc", "/proc", "proc", 0, "");
    mount_at("dev", "/dev", "devtmpfs", 0, "");
    println!("waiting");
    // Saved meanwhile, so that no measured time has the pause in it.
    std::thread::sleep(Duration::from_millis(500));
    let mut start = Instant::now();
    while std::fs::write(BIND, "virtio-mmio.2").is_err() {
        std::thread::sleep(Duration::from_millis(50));
        start = Instant::now();
    }
    // The memory's driver is probed asynchronously.
    let device = loop {
        let devices = ["/dev/pmem0", "/dev/vdb"];
        if let Some(device) = devices.into_iter().find(|device| File::open(device).is_ok()) {
            break device;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let options = if device == "/dev/pmem0" { "dax=always" } else { "" };
    let mut steps = vec![("probe", start.elapsed())];
    let mut step = |name, work: &dyn Fn()| {
        let start = Instant::now();
        work();
        steps.push((name, start.elapsed()));
    };
    let free = free_kib();
    step("mount", &|| mount_at(device, "/mnt", "erofs", READ_ONLY, options));
    let execute = || assert!(Command::new("/mnt/busybox").arg("true").status().expect("busybox").success());
    step("first exec", &execute);
    step("second exec", &execute);
    step("mapping all", &|| println!("sum {}", sum_all()));
    step("mapping all again", &|| println!("sum {}", sum_all()));
    step("reading 1 MiB", &read_one);
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    println!("mounted {}", mounts.lines().find(|line| line.contains(" /mnt ")).unwrap_or_default());
    let steps: Vec<String> =
        steps.iter().map(|(name, took)| format!("{name} {} ms", took.as_millis())).collect();
    println!("steps {}, {} KiB less free", steps.join(", "), free.saturating_sub(free_kib()));
    // For clones.
    loop {
        std::thread::sleep(Duration::from_secs(1));
        println!("again {}", sum_all());
    }
}

fn free_kib() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let free = info.lines().find_map(|line| line.strip_prefix("MemFree:")).expect("MemFree");
    free.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Every byte of every file, without a copy by the kernel.
fn sum_all() -> u64 {
    let paths = std::fs::read_dir("/mnt").expect("/mnt").map(|entry| entry.expect("entry").path());
    paths.map(|path| sum(&File::open(path).expect("file"))).sum()
}

fn sum(file: &File) -> u64 {
    let len = file.metadata().expect("metadata").len() as usize;
    let bytes = unsafe { mmap(std::ptr::null_mut(), len, READABLE, PRIVATE, file.as_raw_fd(), 0) };
    assert_ne!(bytes as isize, -1, "mmap");
    let sum = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) }
        .iter()
        .map(|&byte| u64::from(byte))
        .sum();
    unsafe { munmap(bytes, len) };
    sum
}

fn read_one() {
    let mut file = File::open("/mnt/file0").expect("file");
    file.read_exact(&mut vec![0; 1 << 20]).expect("read");
}
