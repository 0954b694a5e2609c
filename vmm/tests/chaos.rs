//! A guest that sends nonsense to every device: its VMM stays and stays small, and its neighbour works on.
//!
//! The nonsense is the micro-guest's (`xtask/micro_guest/chaos.rs`), native in ring 3. LIGHTER_CHAOS_SECONDS says for
//! how long, 15 without it; LIGHTER_CHAOS_SEED where it begins.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::micro::Micro;

kvm_tests!(a_guest_that_attacks_every_device_harms_nobody_but_itself);

/// Memory that the VMM may have more at the end than when the chaos was young.
const MAX_GROWTH_KIB: u64 = 4 << 10;
/// Bytes that the VMM may say about all of it: reports come for powers of two only.
const MAX_LOG: usize = 64 << 10;
/// Longest time in which the neighbour commits nothing, on a loaded host.
const MAX_SILENCE: Duration = Duration::from_secs(5);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn a_guest_that_attacks_every_device_harms_nobody_but_itself() {
    let directory = tempfile::tempdir().unwrap();
    let neighbour = Neighbour::start(directory.path());
    let outside = Outside::new(directory.path());
    let (seed, seconds) = (number("LIGHTER_CHAOS_SEED", 0x5eed), number("LIGHTER_CHAOS_SECONDS", 10));
    let words = format!("micro.test=chaos micro.seed={seed}");
    let mut guest = Micro::start(&words, &outside.config(directory.path()));
    guest.wait_for("ready\n");
    let begin = Instant::now();
    let (mut rounds, mut young) = (0, None);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let said = guest.read();
        assert!(!said.is_empty(), "the VM ended after {rounds} rounds of seed {seed}: {}", guest.log());
        rounds = said
            .lines()
            .filter_map(|line| line.strip_prefix("round n=")?.parse().ok())
            .fold(rounds, u64::max);
        if begin.elapsed() > Duration::from_secs(seconds) / 3 && young.is_none() {
            young = Some(Size::of(&guest));
        }
    }
    let (young, old, log) = (young.expect("it was looked at"), Size::of(&guest), guest.log());
    println!("{rounds} rounds, {} bytes of log, {young:?}, then {old:?}", log.len());
    assert!(rounds > 100, "only {rounds} rounds: nothing was tried");
    assert!(log.contains("protocol violation"), "no device noticed anything: {log}");
    assert!(log.len() < MAX_LOG, "{} bytes of log: {log:.2000}", log.len());
    assert!(old.memory_kib <= young.memory_kib + MAX_GROWTH_KIB, "{young:?}, then {old:?}");
    // Connections of the guest come and go; there are at most so many as the device allows.
    assert!(old.descriptors <= young.descriptors + 64, "{young:?}, then {old:?}");
    assert!(guest.is_alive());
    guest.kill();
    drop(outside);
    neighbour.check();
}

/// What the VMM takes beside the guest's memory.
#[derive(Debug)]
struct Size {
    memory_kib: u64,
    descriptors: usize,
}

impl Size {
    fn of(guest: &Micro) -> Self {
        Size { memory_kib: guest.memory_kib(), descriptors: guest.descriptors() }
    }
}

/// A VM beside it, which keeps a database.
struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(u64, Duration)>,
}

impl Neighbour {
    fn start(directory: &Path) -> Self {
        let disk = directory.join("database");
        std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        let config = serde_json::json!({ "disks": [{ "path": disk, "read_only": false, "serial": "" }] });
        let words = "micro.test=write micro.from=0 micro.flush=0 micro.feature=1";
        let mut guest = Micro::start(words, &config);
        guest.wait_for("ready\n");
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let (mut last, mut longest, mut commits) = (Instant::now(), Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    let said = guest.read();
                    assert!(!said.is_empty(), "the neighbour ended: {}", guest.log());
                    commits += said.matches("ack").count() as u64;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                assert_eq!(guest.log(), "");
                (commits, longest)
            }
        });
        Neighbour { stop, thread }
    }

    fn check(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (commits, longest) = self.thread.join().expect("the neighbour is well");
        println!("the neighbour committed {commits} transactions, the slowest after {longest:?}");
        assert!(commits > 100 && longest < MAX_SILENCE, "{commits} commits, once none for {longest:?}");
    }
}

/// What the attacked devices have behind them; the far ends say something back.
struct Outside {
    ends: Vec<OwnedFd>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Outside {
    fn new(directory: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (net, net_peer) = pair(libc::SOCK_STREAM);
        let (fs, fs_peer) = pair(libc::SOCK_SEQPACKET);
        let listener = UnixListener::bind(directory.join("v_1024")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = directory.join("v");
        let run = |work: Box<dyn FnMut() + Send>| {
            let (stop, mut work) = (stop.clone(), work);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work();
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        let (mut net_peer, fs_peer) = (UnixStream::from(net_peer), fs_peer);
        net_peer.set_nonblocking(true).unwrap();
        let mut streams = Vec::new();
        let threads = vec![
            // A network that reads what comes and sends frames, and a file server that answers with errors.
            run(Box::new(move || {
                let _ = net_peer.read(&mut [0; 64 << 10]);
                let _ = net_peer.write(&[&64_u32.to_be_bytes()[..], &[0xff; 64]].concat());
                answer_with_errors(&fs_peer);
            })),
            // Listeners and clients of the socket device, which come, say something and go.
            run(Box::new(move || {
                streams.extend(listener.accept().ok().map(|(stream, _)| stream));
                streams.extend(UnixStream::connect(&socket).ok());
                for stream in &mut streams {
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.write(b"CONNECT 1024\n");
                    let _ = stream.read(&mut [0; 4096]);
                }
                if streams.len() > 16 {
                    streams.clear();
                }
            })),
        ];
        Outside { ends: vec![net, fs], stop, threads }
    }

    /// One device of each kind, two disks, and two slots without a device.
    fn config(&self, directory: &Path) -> serde_json::Value {
        let file = |name: &str, len| {
            let path = directory.join(name);
            std::fs::File::create(&path).unwrap().set_len(len).unwrap();
            path
        };
        serde_json::json!({
            "disks": [
                { "path": file("one", 1 << 20), "read_only": false, "serial": "one", "engine": "io_uring" },
                { "path": file("two", 64 << 10), "read_only": true, "serial": "two", "engine": "sync" },
            ],
            "net": [{
                "fd": self.ends[0].as_raw_fd(), "backend": "stream", "mac": [2, 0, 0, 0, 0, 1], "mtu": null,
            }],
            "vsock": { "guest_cid": 42, "uds_path": directory.join("v") },
            "fs": { "tag": "chaos", "fd": self.ends[1].as_raw_fd() },
            "pmem": [{ "path": file("pmem", 2 << 20), "read_only": false }],
            "balloon": true,
            "balloon_statistics_s": 1,
            "keyboard": true,
            "spare_slots": 2,
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn answer_with_errors(socket: &OwnedFd) {
    let mut request = [0_u8; 4096];
    // SAFETY: as many writable bytes as stated.
    let got = unsafe {
        libc::recv(socket.as_raw_fd(), request.as_mut_ptr().cast(), request.len(), libc::MSG_DONTWAIT)
    };
    if got >= 16 {
        let reply = [&16_u32.to_le_bytes()[..], &(-libc::EIO).to_le_bytes(), &request[8..16]].concat();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as many readable bytes as stated.
        unsafe { libc::send(socket.as_raw_fd(), reply.as_ptr().cast(), reply.len(), flags) };
    }
}

/// Two ends that children inherit.
fn pair(kind: libc::c_int) -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
    // SAFETY: the call just made both and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) }
}
