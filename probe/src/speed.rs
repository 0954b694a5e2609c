//! Benchmarks, each for a bounded time: how often something could be done in a second.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::tcp;

type Measured = std::io::Result<f64>;
type Benchmark = (&'static str, fn(Duration) -> Measured);

/// Name and what measures it. The unit is in `compare`. These enter a kernel.
const OTHERS: &[Benchmark] = &[
    ("syscall", syscall),
    ("fork_exec", fork_exec),
    ("context_switch", context_switch),
    ("page_fault", page_fault),
    ("file_create", file_create),
    ("file_write", file_write),
    ("file_read", file_read),
    ("file_random", file_random),
    ("file_fsync", file_fsync),
    ("network_round_trip", network_round_trip),
    ("network_throughput", network_throughput),
];

/// Benchmarks that only compute. They are short everywhere, so they are done again and again between the others: what
/// else the host has to do changes from moment to moment, and their spread shall show it.
const CHEAP: &[Benchmark] = &[("integer", integer), ("float", float), ("memory_copy", memory_copy)];
/// Of the others this many come between.
const BETWEEN: usize = 2;

/// Where files are made: below the root, on the container's writable layer.
const DIRECTORY: &str = "/lighter-probe";
/// Bytes of the file that is read and written.
const FILE: usize = 16 << 20;
/// The least of it where writing is slow.
const LEAST: usize = 128 << 10;
/// Bytes that are read or written at once.
const CHUNK: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// Runs those that are named, or all.
pub fn run(budget: Duration, only: &[&str]) {
    let _ = fs::create_dir(DIRECTORY);
    for others in OTHERS.chunks(BETWEEN) {
        let wanted = |(name, _): &&Benchmark| only.is_empty() || only.contains(name);
        for (name, measure) in CHEAP.iter().chain(others).filter(wanted) {
            match measure(budget) {
                Ok(value) => println!("{name} {value}"),
                Err(error) => println!("{name} error {error}"),
            }
        }
    }
    let _ = fs::remove_dir_all(DIRECTORY);
}

/// Calls `work`, which does `amount` at once, until the time is over; amount per second.
fn rate(budget: Duration, amount: f64, mut work: impl FnMut() -> std::io::Result<()>) -> Measured {
    let start = Instant::now();
    let mut times = 0u32;
    loop {
        work()?;
        times += 1;
        let elapsed = start.elapsed();
        if elapsed >= budget {
            return Ok(f64::from(times) * amount / elapsed.as_secs_f64());
        }
    }
}

fn integer(budget: Duration) -> Measured {
    let mut x = 88_172_645_463_325_252_u64;
    rate(budget, 100_000.0, || {
        for _ in 0..100_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        black_box(x);
        Ok(())
    })
}

fn float(budget: Duration) -> Measured {
    let mut x = 1.000_001_f64;
    rate(budget, 100_000.0, || {
        for _ in 0..100_000 {
            x = x * 1.000_000_1 + 0.000_001;
            if x > 2.0 {
                x -= 1.0;
            }
        }
        black_box(x);
        Ok(())
    })
}

/// MiB copied, a quarter of one at once. To touch memory for the first time takes longer than the rest where the guest's
/// kernel is emulated, so the blocks are small and always the same.
fn memory_copy(budget: Duration) -> Measured {
    const BLOCK: usize = MIB / 4;
    static BLOCKS: Mutex<([u8; BLOCK], [u8; BLOCK])> = Mutex::new(([0; BLOCK], [0; BLOCK]));
    let mut blocks = BLOCKS.lock().map_err(|_| std::io::ErrorKind::Other)?;
    let (from, to) = &mut *blocks;
    if from.first() == Some(&0) {
        from.fill(1);
        to.fill(2);
    }
    rate(budget, 0.25, || {
        to.copy_from_slice(black_box(from));
        black_box(&mut *to);
        Ok(())
    })
}

fn syscall(budget: Duration) -> Measured {
    rate(budget, 100.0, || {
        for _ in 0..100 {
            // SAFETY: getppid takes nothing.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        Ok(())
    })
}

fn fork_exec(budget: Duration) -> Measured {
    rate(budget, 1.0, || {
        let mut command = Command::new("/proc/self/exe");
        command.arg("nothing").stdin(Stdio::null()).stdout(Stdio::null()).status().map(drop)
    })
}

fn pipe() -> std::io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let [read, write] = ends;
    // SAFETY: both are new and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(read).into(), OwnedFd::from_raw_fd(write).into()) })
}

/// A byte to another process and back: two switches.
fn context_switch(budget: Duration) -> Measured {
    let (mut our_end, mut to_us) = pipe()?;
    let (mut their_end, mut to_them) = pipe()?;
    // SAFETY: this program has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(to_them);
        let mut byte = [0];
        while their_end.read_exact(&mut byte).is_ok() && to_us.write_all(&byte).is_ok() {}
        // SAFETY: _exit takes no pointers.
        unsafe { libc::_exit(0) };
    }
    drop((their_end, to_us));
    let result = rate(budget, 2.0, || {
        let mut byte = [7];
        to_them.write_all(&byte)?;
        our_end.read_exact(&mut byte)
    });
    drop(to_them);
    // SAFETY: the child is ours; its status may be ignored.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    result
}

fn page_fault(budget: Duration) -> Measured {
    const PAGES: usize = 64;
    rate(budget, PAGES as f64, || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping, touched within its length and unmapped with it.
        unsafe {
            let memory = libc::mmap(
                std::ptr::null_mut(),
                PAGES * 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            for page in 0..PAGES {
                memory.cast::<u8>().add(page * 4096).write_volatile(1);
            }
            libc::munmap(memory, PAGES * 4096);
        }
        Ok(())
    })
}

fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

fn file_create(budget: Duration) -> Measured {
    rate(budget, 1.0, || {
        drop(File::create(path("new"))?);
        fs::remove_file(path("new"))
    })
}

/// MiB written, without waiting for the disk.
fn file_write(budget: Duration) -> Measured {
    let bytes = vec![7u8; CHUNK];
    let mut file = File::create(path("write"))?;
    let mut at = 0;
    rate(budget, CHUNK as f64 / MIB as f64, || {
        file.write_all(&bytes)?;
        at += CHUNK;
        if at >= FILE {
            at = 0;
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(())
    })
}

fn filled() -> std::io::Result<File> {
    let name = path("read");
    if let Ok(file) = File::open(&name) {
        return Ok(file);
    }
    let chunk = vec![9u8; CHUNK];
    let mut file = File::create(&name)?;
    let start = Instant::now();
    let mut written = 0;
    while written < FILE && (written < LEAST || start.elapsed() < Duration::from_millis(200)) {
        file.write_all(&chunk)?;
        written += CHUNK;
    }
    File::open(name)
}

/// MiB read, from memory after the first time.
fn file_read(budget: Duration) -> Measured {
    let mut file = filled()?;
    let size = file.metadata()?.len() as usize / CHUNK;
    let (mut buffer, mut at) = (vec![0u8; CHUNK], 0);
    rate(budget, CHUNK as f64 / MIB as f64, || {
        if at == size {
            at = 0;
            file.seek(SeekFrom::Start(0))?;
        }
        at += 1;
        file.read_exact(&mut buffer)
    })
}

/// Reads of 4 KiB at random places.
fn file_random(budget: Duration) -> Measured {
    use std::os::unix::fs::FileExt as _;
    let file = filled()?;
    let pages = (file.metadata()?.len() / 4096).max(1);
    let (mut buffer, mut x) = ([0u8; 4096], 123_456_789_u64);
    rate(budget, 1.0, || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        file.read_exact_at(&mut buffer, x % pages * 4096)
    })
}

fn file_fsync(budget: Duration) -> Measured {
    let mut file = File::create(path("sync"))?;
    rate(budget, 1.0, || {
        file.write_all(&[1; 512])?;
        file.sync_data()
    })
}

/// Connects to a child of ours that runs `serve` on each connection.
fn connect(serve: fn(TcpStream)) -> std::io::Result<(TcpStream, libc::pid_t)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let SocketAddr::V4(address) = listener.local_addr()? else {
        return Err(std::io::ErrorKind::Other.into());
    };
    // SAFETY: this program has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        if let Ok((stream, _)) = listener.accept() {
            let _ = stream.set_nodelay(true);
            serve(stream);
        }
        // SAFETY: _exit takes no pointers.
        unsafe { libc::_exit(0) };
    }
    let stream = tcp::connect(address, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    Ok((stream, pid))
}

fn finish(stream: TcpStream, pid: libc::pid_t) {
    drop(stream);
    // SAFETY: the child is ours; its status may be ignored.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

fn network_round_trip(budget: Duration) -> Measured {
    let (mut stream, pid) = connect(|mut stream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    })?;
    let result = rate(budget, 1.0, || {
        let mut byte = [1];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    });
    finish(stream, pid);
    result
}

/// MiB sent through the loopback interface.
fn network_throughput(budget: Duration) -> Measured {
    let (mut stream, pid) = connect(|mut stream| {
        let mut buffer = vec![0; 256 << 10];
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
    })?;
    let bytes = vec![5u8; 64 << 10];
    let result = rate(budget, 1.0 / 16.0, || stream.write_all(&bytes));
    finish(stream, pid);
    result
}
