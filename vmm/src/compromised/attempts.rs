//! The classic list. Each entry gets a target of the test's own and says whether it was reached.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};

type Attempt = fn(&str) -> io::Result<()>;

/// Threads that an attempt makes at most.
const THREADS: usize = 400;
/// Bytes of memory that an attempt maps, and touches a page of.
const MEMORY: usize = 2 << 30;
/// Where an attempt writes a byte to make a file large; the file stays sparse.
const FAR: i64 = 1 << 40;

/// All of them.
pub const ALL: &[(&str, Attempt)] = &[
    ("read-file", |path| File::open(path).map(drop)),
    ("ring-open", ring_open),
    ("write-file", |path| OpenOptions::new().append(true).open(path).map(drop)),
    ("make-file", |path| File::create(path).map(drop)),
    ("list-host", |_| exists(std::fs::read_dir("/")?.count() > 0)),
    ("ptrace", |pid| call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as i64, number(pid)?, 0, 0])),
    ("read-memory", read_memory),
    ("vm-readv", vm_readv),
    ("signal", |pid| call(libc::SYS_kill, [number(pid)?, 0, 0, 0])),
    ("unix-socket", |path| UnixStream::connect(path).map(drop)),
    ("abstract-socket", |name| UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?).map(drop)),
    ("tcp", |address| TcpStream::connect(address).map(drop)),
    ("raw-socket", |_| call(libc::SYS_socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0, 0])),
    ("tap", |path| OpenOptions::new().read(true).write(true).open(path).map(drop)),
    ("fork", |_| fork()),
    ("exec", exec),
    ("mount", mount),
    ("make-namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0, 0])),
    ("join-namespace", |path| {
        use std::os::fd::AsRawFd as _;
        let namespace = File::open(path)?;
        call(libc::SYS_setns, [namespace.as_raw_fd().into(), 0, 0, 0])
    }),
    ("become-root", |_| become_root()),
    ("bpf", |_| call(libc::SYS_bpf, [0, 0, 0, 0]).or_else(|error| known(error, libc::EINVAL))),
    ("keyring", |_| call(libc::SYS_keyctl, [0, -3, 1, 0])),
    ("threads", |_| threads()),
    ("memory", |_| memory()),
    ("grow-files", |_| grow_files()),
    ("grow-log", |_| grow(libc::STDERR_FILENO)),
];

fn exists(yes: bool) -> io::Result<()> {
    if yes { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(io::Error::other)
}

/// An error that shows that the call was reached.
fn known(error: io::Error, wanted: i32) -> io::Result<()> {
    if error.raw_os_error() == Some(wanted) { Ok(()) } else { Err(error) }
}

fn call(number: libc::c_long, arguments: [i64; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: those who call this pass numbers, or pointers to what outlives the call.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// By a ring of the intruder's own: filters do not see what it does.
fn ring_open(path: &str) -> io::Result<()> {
    use io_uring::{IoUring, opcode, types};
    let mut ring = IoUring::new(2)?;
    let path = CString::new(path)?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
    // SAFETY: the path outlives the entry, whose end is waited for.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|done| done.result()) {
        Some(result) if result >= 0 => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// `PID ADDRESS`
fn place(target: &str) -> io::Result<(i64, u64)> {
    let (pid, address) = target.split_once(' ').ok_or(io::ErrorKind::InvalidInput)?;
    Ok((number(pid)?, address.parse().map_err(io::Error::other)?))
}

fn read_memory(target: &str) -> io::Result<()> {
    let (pid, address) = place(target)?;
    let mut memory = File::open(format!("/proc/{pid}/mem"))?;
    memory.seek(SeekFrom::Start(address))?;
    memory.read_exact(&mut [0; 8])
}

fn vm_readv(target: &str) -> io::Result<()> {
    let (pid, address) = place(target)?;
    let mut bytes = [0_u8; 8];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `local` names a local buffer; `remote` is an address in another process.
    let read = unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

/// Root is who may change its root directory, here to what it is.
fn become_root() -> io::Result<()> {
    call(libc::SYS_setresuid, [0, 0, 0, 0])?;
    call(libc::SYS_chroot, [c"/".as_ptr() as i64, 0, 0, 0])
}

fn threads() -> io::Result<()> {
    for _ in 0..THREADS {
        std::thread::Builder::new().stack_size(16 << 10).spawn(|| {
            loop {
                std::thread::park();
            }
        })?;
    }
    Ok(())
}

fn memory() -> io::Result<()> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            MEMORY,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if place == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Any file that is open.
fn grow_files() -> io::Result<()> {
    let mut last = Err(io::ErrorKind::NotFound.into());
    for fd in 3..256 {
        // SAFETY: all zero is a valid stat; the call fills it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is a local; a number that is no descriptor is an error.
        let known = unsafe { libc::fstat(fd, &raw mut stat) } == 0;
        if known && stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_nlink > 0 {
            last = grow(fd);
            if last.is_ok() {
                return last;
            }
        }
    }
    last
}

fn grow(fd: i32) -> io::Result<()> {
    // SAFETY: one byte of a constant is written to a descriptor that this process has.
    let written = unsafe { libc::pwrite(fd, b"x".as_ptr().cast(), 1, FAR) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
