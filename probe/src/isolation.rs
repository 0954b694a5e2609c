//! Attempts to see and touch what is the host's. `open` means that it worked.
//!
//! Decoys come as `NAME=VALUE`: `boot` the host's boot ID, `marker` a word in the command line of a process of the
//! host, `file` a file of the host whose content is that word, `port` a port on which the host's loopback interface
//! answers, `socket` an abstract Unix socket of the host, `disk` the bytes that the host's disk has left. Of another
//! instance ([`crate::neighbour`]): `neighbour` its word, `memory` where that is in its process, `address` its port.

use std::ffi::CString;
use std::fs;
use std::net::SocketAddrV4;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::{disk, neighbour, syscalls, tcp};

/// Whether it worked, and what was found.
pub type Found = (bool, String);
type Attempt<'a> = (&'a str, Box<dyn Fn() -> Found + 'a>);

/// Kernel interfaces below `/proc` and `/sys` that tell of the host or act on it.
const LEAKS: &[&str] = &[
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/interrupts",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/iomem",
    "/proc/diskstats",
    "/proc/swaps",
    "/proc/sysrq-trigger",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cmdline",
    "/proc/version",
    "/proc/modules",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/class/dmi/id/product_uuid",
    "/sys/devices/virtual/powercap",
    "/sys/fs/bpf",
];

/// What instances of this program are called.
const PROBE: &[u8] = b"/probe";

/// Makes every attempt.
pub fn run(decoys: &[&str]) {
    let decoy = |name: &str| {
        decoys.iter().find_map(|decoy| decoy.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let same_kernel = !decoy("boot").is_empty() && read("/proc/sys/kernel/random/boot_id") == decoy("boot");
    let attempts: Vec<Attempt<'_>> = vec![
        ("kernel", Box::new(move || (same_kernel, read("/proc/sys/kernel/osrelease")))),
        ("processes", Box::new(|| processes(decoy("marker")))),
        ("kernel_log", Box::new(move || kernel_log(same_kernel))),
        ("leaks", Box::new(move || leaks(same_kernel))),
        ("system_calls", Box::new(move || system_calls(same_kernel))),
        ("device_nodes", Box::new(move || host_only(same_kernel, device_nodes()))),
        ("clock", Box::new(move || host_only(same_kernel, clock()))),
        ("modules", Box::new(move || host_only(same_kernel, modules()))),
        ("mount", Box::new(move || host_only(same_kernel, mount()))),
        ("trace", Box::new(|| trace(decoy("marker")))),
        ("raw_sockets", Box::new(raw_sockets)),
        ("files", Box::new(|| files(decoy("file"), decoy("marker")))),
        ("loopback", Box::new(|| loopback(decoy("port")))),
        ("unix_socket", Box::new(|| unix_socket(decoy("socket")))),
        ("disk_filler", Box::new(|| disk::filler(decoy("disk")))),
        ("neighbour_files", Box::new(|| neighbour::files(decoy("neighbour")))),
        ("neighbour_memory", Box::new(|| neighbour::memory(decoy("neighbour"), decoy("memory")))),
        ("neighbour_network", Box::new(|| neighbour::network(decoy("neighbour"), decoy("address")))),
    ];
    for (name, attempt) in attempts {
        let (open, found) = attempt();
        println!("{name} {} {}", if open { "open" } else { "held" }, found.replace('\n', " "));
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// What a machine may do to its own kernel is nobody else's.
fn host_only(same_kernel: bool, (open, found): Found) -> Found {
    match (open, same_kernel) {
        (true, false) => (false, format!("{found}, but of its own kernel")),
        other => (other.0, found),
    }
}

fn errno() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// The decoy: the process whose command line has the marker, but not ourselves, who were told it.
fn marked(marker: &str) -> Option<i32> {
    all_marked(marker).find(|(_, program)| program != PROBE).map(|(pid, _)| pid)
}

/// Of another instance's probe, whose command line has the word.
pub fn neighbours(word: &str) -> impl Iterator<Item = i32> {
    all_marked(word).filter(|(_, program)| program == PROBE).map(|(pid, _)| pid)
}

/// Processes with the word in their command line, but not this one, and their programs.
fn all_marked(word: &str) -> impl Iterator<Item = (i32, Vec<u8>)> {
    let (own, word) = (i32::try_from(std::process::id()).ok(), word.to_owned());
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok().filter(|pid| Some(*pid) != own)?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let program = words.next()?.to_owned();
        (!word.is_empty() && words.any(|other| other == word.as_bytes())).then_some((pid, program))
    })
}

fn processes(marker: &str) -> Found {
    let entries = fs::read_dir("/proc").map(|entries| {
        entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .count()
    });
    (marked(marker).is_some(), format!("{} processes to be seen", entries.unwrap_or(0)))
}

fn kernel_log(same_kernel: bool) -> Found {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is as long as said; SYSLOG_ACTION_READ_ALL (3) takes nothing away.
    let count = unsafe { libc::klogctl(3, buffer.as_mut_ptr().cast(), buffer.len() as libc::c_int) };
    match count {
        0.. => host_only(same_kernel, (true, format!("{count} bytes read"))),
        _ => (false, errno().to_string()),
    }
}

fn leaks(same_kernel: bool) -> Found {
    use std::io::Read as _;
    let readable = |path: &&&str| {
        let path = Path::new(path);
        match path.is_dir() {
            true => fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()),
            false => {
                fs::File::open(path).and_then(|mut file| file.read(&mut [0; 16])).is_ok_and(|count| count > 0)
            }
        }
    };
    let open: Vec<_> = LEAKS.iter().filter(readable).copied().collect();
    host_only(
        same_kernel,
        (!open.is_empty(), format!("{} of {}: {}", open.len(), LEAKS.len(), open.join(" "))),
    )
}

fn system_calls(same_kernel: bool) -> Found {
    match syscalls::count() {
        Ok((reached, refused)) => {
            host_only(same_kernel, (reached > 0, format!("{reached} reach the kernel, {refused} do not")))
        }
        Err(error) => (false, error.to_string()),
    }
}

/// A node for a device that nobody has: block device 259:1048575.
fn device_nodes() -> Found {
    let Ok(path) = CString::new("/tmp/lighter-probe-node") else { return (false, String::new()) };
    // SAFETY: the path ends with zero and lives until the end.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, libc::makedev(259, 1_048_575)) };
    if made < 0 {
        return (false, errno().to_string());
    }
    let opened = fs::File::open("/tmp/lighter-probe-node");
    let _ = fs::remove_file("/tmp/lighter-probe-node");
    match opened.err().and_then(|error| error.raw_os_error()) {
        // The kernel looked for the device.
        None | Some(libc::ENXIO | libc::ENODEV) => (true, "a block device's node works".into()),
        Some(code) => (false, std::io::Error::from_raw_os_error(code).to_string()),
    }
}

/// Asks for the permission to set the clock, and sets nothing: both arguments are absent.
fn clock() -> Found {
    // SAFETY: null is allowed for both.
    let result =
        unsafe { libc::syscall(libc::SYS_settimeofday, std::ptr::null::<u8>(), std::ptr::null::<u8>()) };
    if result == 0 { (true, "the clock may be set".into()) } else { (false, errno().to_string()) }
}

/// Loads what is no descriptor.
fn modules() -> Found {
    // SAFETY: no descriptor is open under this number, and the parameters are an empty string.
    unsafe { libc::syscall(libc::SYS_finit_module, -1, c"".as_ptr(), 0) };
    let error = errno();
    // What a kernel says that has come to look at the module.
    match error.raw_os_error() {
        Some(libc::EBADF | libc::ENOEXEC | libc::EINVAL) => (true, "a module would be loaded".into()),
        _ => (false, error.to_string()),
    }
}

fn mount() -> Found {
    let target = c"/tmp/lighter-probe-mount";
    let _ = fs::create_dir("/tmp/lighter-probe-mount");
    // SAFETY: all strings end with zero; a new empty file system is mounted on a directory of our own and taken away.
    let result = unsafe {
        let result =
            libc::mount(c"probe".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=4k".as_ptr().cast());
        let error = errno();
        libc::umount2(target.as_ptr(), libc::MNT_DETACH);
        if result == 0 { None } else { Some(error) }
    };
    let _ = fs::remove_dir("/tmp/lighter-probe-mount");
    result.map_or((true, "a file system was mounted".into()), |error| (false, error.to_string()))
}

fn trace(marker: &str) -> Found {
    let Some(pid) = marked(marker) else { return (false, "the decoy is not to be seen".into()) };
    const PTRACE_SEIZE: libc::c_uint = 0x4206;
    // SAFETY: a seized process goes on; it is the decoy, and let go when this process ends.
    let result = unsafe { libc::ptrace(PTRACE_SEIZE, pid, 0, 0) };
    if result == 0 { (true, "the decoy was seized".into()) } else { (false, errno().to_string()) }
}

fn raw_sockets() -> Found {
    // SAFETY: socket takes integers; the descriptor goes with this process.
    let packet = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    if packet < 0 {
        return (false, errno().to_string());
    }
    let names = fs::read_dir("/sys/class/net").map(|entries| {
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    });
    (true, format!("on {}", names.unwrap_or_default().join(" ")))
}

/// The host's decoy by its own path, and through the roots of other processes.
fn files(path: &str, marker: &str) -> Found {
    let holds =
        |path: &Path| fs::read_to_string(path).is_ok_and(|text| !marker.is_empty() && text.trim() == marker);
    if path.is_empty() {
        return (false, "no decoy".into());
    }
    let through = |pid: &str| Path::new("/proc").join(pid).join("root").join(path.trim_start_matches('/'));
    let decoy = marked(marker).map(|pid| pid.to_string());
    let ways = [Some(Path::new(path).to_owned()), Some(through("1")), decoy.map(|pid| through(&pid))];
    match ways.into_iter().flatten().find(|way| holds(way)) {
        Some(way) => (true, format!("read by {}", way.display())),
        None => (false, "not to be read".into()),
    }
}

fn loopback(port: &str) -> Found {
    let Ok(port) = port.parse::<u16>() else { return (false, "no decoy".into()) };
    match tcp::connect(SocketAddrV4::new([127, 0, 0, 1].into(), port), Duration::from_secs(5)) {
        Ok(_) => (true, "the host's loopback interface answers".into()),
        Err(error) => (false, error.to_string()),
    }
}

fn unix_socket(name: &str) -> Found {
    if name.is_empty() {
        return (false, "no decoy".into());
    }
    match UnixAddress::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address)) {
        Ok(_) => (true, "an abstract socket of the host answers".into()),
        Err(error) => (false, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `finit_module` fails with in a thread whose kernel answers `errno`: a system call filter is a stand-in for
    /// kernels with and without modules.
    fn answered(errno: u32) -> Found {
        let run = move || {
            let statement = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
            let mut filter = [
                // The number of the call.
                statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
                statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_finit_module as u32, 0, 1),
                statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno, 0, 0),
                statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
            ];
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            // SAFETY: the program is a live array of the length that it says; the filter is this thread's alone.
            let set = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
            };
            assert_eq!(set, 0, "{}", errno_text());
            modules()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn errno_text() -> String {
        errno().to_string()
    }

    #[test]
    fn a_module_would_be_loaded_where_the_kernel_looks_at_it() {
        assert!(answered(libc::EBADF as u32).0);
        assert!(!answered(libc::EPERM as u32).0 && !answered(libc::ENOSYS as u32).0);
    }

    #[test]
    fn a_machines_own_kernel_is_nobody_elses() {
        let found = || (true, "done".to_owned());
        assert!(host_only(true, found()).0 && !host_only(false, found()).0);
    }
}
