//! The micro-guest (`xtask/micro_guest`) in a VMM process of its own: ring 3, native on every host.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

/// Guest memory in MiB: what the micro-guest's buffers need.
pub const MEM_SIZE_MIB: u32 = 256;
/// Where the command line says that devices are.
pub const MMIO_WORDS: &str = "micro.mmio=0xd0000000 micro.stride=4096";

/// The micro-guest, built once.
pub fn program() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = BUILT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("micro-guest");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/micro_guest");
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"]);
        rustc.args(["-Clinker-features=-lld", "-Crelocation-model=static"]);
        rustc.args(["-Clink-args=-nostdlib -nostartfiles -static -no-pie"]);
        rustc.args(["-Clink-args=-Wl,--build-id=none,-z,max-page-size=4096"]);
        rustc.arg(format!("-Clink-arg=-Wl,-T,{}", source.join("link.ld").display()));
        let output = rustc.arg("-o").arg(&program).arg(source.join("main.rs")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (directory, program)
    });
    program
}

/// A VMM with the micro-guest in it; killed with its owner.
pub struct Micro {
    child: Child,
    console: File,
    /// What the VMM itself said.
    log: File,
}

impl Micro {
    /// Starts the VMM with these words on the command line; `more` is merged into its configuration.
    pub fn start(words: &str, more: &serde_json::Value) -> Self {
        let (console, writer) = rustix::pipe::pipe().unwrap();
        let mut config = serde_json::json!({
            "vcpus": 1,
            "mem_size_mib": MEM_SIZE_MIB,
            "kernel": { "path": program(), "cmdline": format!("{MMIO_WORDS} {words}") },
            "console_log": format!("/proc/self/fd/{}", writer.as_raw_fd()),
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(config.to_string().as_bytes()).unwrap();
        file.rewind().unwrap();
        let config = inheritable(file.into());
        let events = inheritable(File::options().write(true).open("/dev/null").unwrap().into());
        let writer = inheritable(writer);
        let log = tempfile::tempfile().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lighter-machine"));
        command.arg("vmm");
        command.args(["--config-fd", &config.as_raw_fd().to_string()]);
        command.args(["--event-fd", &events.as_raw_fd().to_string()]);
        // Also where a failed test leaves it in another thread.
        command.args(["--parent", &std::process::id().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone().unwrap());
        let child = command.spawn().unwrap();
        drop(writer);
        Micro { child, console: console.into(), log }
    }

    /// Memory of the VMM beside the guest's, in KiB.
    pub fn memory_kib(&self) -> u64 {
        let maps = std::fs::read_to_string(self.proc("smaps")).unwrap();
        let (mut memory_kib, mut is_guests) = (0, false);
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let kib = || second.parse::<u64>().unwrap_or(0);
            match first {
                "Size:" => is_guests = kib() >= u64::from(MEM_SIZE_MIB) << 9,
                "Rss:" if !is_guests => memory_kib += kib(),
                _ => {}
            }
        }
        memory_kib
    }

    /// Open descriptors of the VMM.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Threads of the VMM.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(self.proc("task")).unwrap().count()
    }

    /// Processor time of the VMM, all of its threads and the guest included.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).unwrap();
        // Behind the name, which ends with the last parenthesis: fields 14 and 15, in ticks of 10 ms.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Waits for at least one byte of the console, and gives what is there; empty at its end.
    pub fn read(&mut self) -> String {
        let mut bytes = [0; 64 << 10];
        let got = self.console.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..got]).into_owned()
    }

    /// Waits until the console has said `what`; gives all it said.
    pub fn wait_for(&mut self, what: &str) -> String {
        let mut said = String::new();
        while !said.contains(what) {
            let more = self.read();
            assert!(!more.is_empty(), "no {what:?}: {said}\n{}", self.log());
            said.push_str(&more);
        }
        said
    }

    /// Whether the VMM still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What the VMM wrote on standard error so far.
    pub fn log(&self) -> String {
        let mut log = self.log.try_clone().unwrap();
        log.rewind().unwrap();
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        text
    }

    /// SIGKILL; gives the rest of what the console said.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        self.console.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Micro {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets children have `fd`.
fn inheritable(fd: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    fd
}
