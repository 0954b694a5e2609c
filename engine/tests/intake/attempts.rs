//! What an intruder would try first. Each attempt gets a target of the test's own.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};

type Attempt = fn(&str) -> io::Result<()>;

/// What is said of an attempt.
pub const REACHED: &str = "attempt: reached";
pub const STOPPED: &str = "attempt: stopped: ";

/// Bytes of memory that an attempt maps: more than any job needs.
const MEMORY: usize = 16 << 30;
/// Where an attempt writes a byte to make a file large; the file stays sparse.
const FAR: i64 = 1 << 40;

/// Those that show nothing without root.
pub const NEED_ROOT: &[&str] = &["raw-socket", "mount", "make-namespace", "become-root"];

/// All of them.
pub const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-file", |path| File::open(path).map(drop)),
    ("write-file", |path| OpenOptions::new().append(true).open(path).map(drop)),
    ("make-file", |path| File::create(path).map(drop)),
    ("change-names", |path| OpenOptions::new().append(true).open(path).map(drop)),
    ("read-passwords", |_| File::open("/etc/passwd").map(drop)),
    ("look-at-processes", |_| File::open("/proc/1/status").map(drop)),
    ("ptrace", |pid| call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as i64, number(pid)?, 0])),
    ("read-memory", read_memory),
    ("signal", |pid| call(libc::SYS_kill, [number(pid)?, 0, 0])),
    ("unix-socket", |path| UnixStream::connect(path).map(drop)),
    ("abstract-socket", |name| UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?).map(drop)),
    ("listen", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("raw-socket", |_| call(libc::SYS_socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0])),
    ("fork", |_| fork()),
    ("exec", exec),
    ("mount", mount),
    ("make-namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0])),
    ("become-root", |_| {
        call(libc::SYS_setresuid, [0, 0, 0])?;
        call(libc::SYS_chroot, [c"/".as_ptr() as i64, 0, 0])
    }),
    ("memory", |_| map(MEMORY, libc::PROT_READ | libc::PROT_WRITE)),
    ("code", |_| map(4096, libc::PROT_READ | libc::PROT_EXEC)),
    ("io_uring", |_| call(libc::SYS_io_uring_setup, [1, 0, 0]).or_else(|error| known(error, libc::EFAULT))),
    ("grow-log", |_| {
        // SAFETY: one byte of a constant is written to a descriptor that this process has.
        match unsafe { libc::pwrite(libc::STDERR_FILENO, b"x".as_ptr().cast(), 1, FAR) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
];

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(io::Error::other)
}

/// An error that shows that the call was reached.
fn known(error: io::Error, wanted: i32) -> io::Result<()> {
    if error.raw_os_error() == Some(wanted) { Ok(()) } else { Err(error) }
}

fn call(number: libc::c_long, arguments: [i64; 3]) -> io::Result<()> {
    let [a, b, c] = arguments;
    // SAFETY: those who call this pass numbers, or pointers to what outlives the call.
    let result = unsafe { libc::syscall(number, a, b, c, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `PID ADDRESS`
fn read_memory(target: &str) -> io::Result<()> {
    let (pid, address) = target.split_once(' ').ok_or(io::ErrorKind::InvalidInput)?;
    let mut memory = File::open(format!("/proc/{pid}/mem"))?;
    memory.seek(SeekFrom::Start(address.parse().map_err(io::Error::other)?))?;
    memory.read_exact(&mut [0; 8])
}

fn fork() -> io::Result<()> {
    // SAFETY: the child ends at once.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        child
    };
    if child < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs a program whose end the test sees in the exit code.
fn exec(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let arguments = [path.as_ptr(), std::ptr::null()];
    // SAFETY: the path and the list of arguments end as they must; no return on success.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), std::ptr::null()) };
    Err(io::Error::last_os_error())
}

fn mount(target: &str) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: every string ends with a zero.
    let result =
        unsafe { libc::mount(c"x".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    Ok(())
}

fn map(size: usize, protection: libc::c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
