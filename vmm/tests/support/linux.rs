//! Real guests: our kernel and, as PID 1, one static program of `tests/guest`, on an EROFS disk.
//!
//! The program talks to the test through its console. Guests are slow where KVM emulates ring 0.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm::config::{BlockEngine, DiskConfig, KernelConfig, VmConfig, VmExit};
use vmm::vm::Vm;

/// A guest that has not said what is expected by then hangs.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// How often the console is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// The kernel that `cargo xtask kernel` made, or LIGHTER_KERNEL.
pub fn kernel() -> Option<PathBuf> {
    let cache = || {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("lighter/kernel/current/vmlinux"))
    };
    std::env::var_os("LIGHTER_KERNEL").map(PathBuf::from).or_else(cache).filter(|path| path.exists())
}

/// A disk with PID 1, and a place for what else a test needs.
pub struct Bench {
    directory: TempDir,
}

impl Bench {
    /// Builds `program`, a file of `tests/guest` without its suffix, and its disk.
    pub fn new(program: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        for name in ["dev", "proc", "sys", "mnt"] {
            std::fs::create_dir_all(tree.join(name)).unwrap();
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest").join(program);
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition=2024", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"]);
        rustc.arg("-Ctarget-feature=+crt-static").arg("-o").arg(tree.join("init"));
        run(rustc.arg(source.with_extension("rs")));
        let bench = Bench { directory };
        bench.erofs("agent", &tree);
        bench
    }

    /// Path of `name` in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes an EROFS image of `tree` called `name`.
    pub fn erofs(&self, name: &str, tree: &Path) -> PathBuf {
        let image = self.path(name);
        run(Command::new("mkfs.erofs").arg("-x-1").arg(&image).arg(tree));
        image
    }

    /// A VM with one vCPU and the disk with PID 1, whose console is the file `console` in here.
    pub fn config(&self, mem_size_mib: u32) -> VmConfig {
        let cmdline = "root=/dev/vda ro rootfstype=erofs init=/init".to_owned();
        let agent = DiskConfig {
            path: self.path("agent"),
            read_only: true,
            serial: String::new(),
            engine: BlockEngine::default(),
            limits: Default::default(),
        };
        VmConfig {
            vcpus: 1,
            mem_size_mib,
            kernel: KernelConfig { path: kernel().unwrap(), initrd: None, cmdline, bare: false },
            disks: vec![agent],
            pmem: Vec::new(),
            net: Vec::new(),
            vsock: None,
            balloon: false,
            fs: None,
            balloon_statistics_s: 0,
            keyboard: false,
            spare_slots: 0,
            spare_slots_untold: false,
            plugged: Default::default(),
            console_log: Some(self.path("console")),
            restore: None,
            control: None,
            rare: Default::default(),
        }
    }

    /// What the guests of this directory wrote on their console.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.path("console")).unwrap_or_default()
    }

    /// Lets `vm` run until its console has a line that starts with `start`, and gives the rest of that line.
    pub fn wait_for(&self, vm: &mut Vm, start: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let console = self.console();
            let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return rest.trim().to_owned();
            }
            assert!(Instant::now() < end, "no {start:?} in time; the console said:\n{console}");
            if let Some(exit) = vm.run_for(GLANCE, |_| ()).unwrap() {
                // What it said last is in the file by now.
                let said = self.console().lines().any(|line| line.starts_with(start));
                assert!(said, "{exit:?} without {start:?}; the console said:\n{}", self.console());
            }
        }
    }

    /// Lets `vm` run to its end.
    pub fn end(&self, vm: &mut Vm) -> VmExit {
        vm.run_for(PATIENCE, |_| ()).unwrap().expect("the guest ends in time")
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
