//! What a VM is made of: plain data, handed to the VMM process as JSON.

use std::os::fd::RawFd;
use std::path::PathBuf;

pub use devices::rate::{BucketConfig, RateLimits, Rates};
pub use devices::virtio::block::BlockEngine;
pub use devices::virtio::net::detour::Service;
use serde::{Deserialize, Serialize};

use crate::memory::MemoryShape;
use crate::template::CpuTemplate;

/// One VM.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Number of vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u32,
    /// What boots.
    pub kernel: KernelConfig,
    /// Block devices, in the guest's order: `/dev/vda`, `/dev/vdb`, ...
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Persistent memory, in the guest's order: `/dev/pmem0`, `/dev/pmem1`, ...
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,
    /// Network interfaces, in the guest's order: `eth0`, `eth1`, ...
    #[serde(default)]
    pub net: Vec<NetConfig>,
    /// Socket device between host and guest.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// File system that a process beside the VMM serves.
    #[serde(default)]
    pub fs: Option<FsConfig>,
    /// The guest gives memory back that it does not use, and can be asked for more.
    #[serde(default)]
    pub balloon: bool,
    /// With a balloon: how often the guest says how much memory it uses, in seconds; 0 is never.
    #[serde(default)]
    pub balloon_statistics_s: u16,
    /// There is a keyboard, on which the host can press Ctrl+Alt+Del.
    #[serde(default)]
    pub keyboard: bool,
    /// Virtio slots after the devices above, for [`VmConfig::plugged`]. The guest's kernel knows all of them
    /// from its boot on; one without a device is ignored.
    #[serde(default)]
    pub spare_slots: u8,
    /// The guest's kernel is not told of spare slots that are empty at its boot: it can take them in later
    /// (`docs/kernel.md`), and a slot that it looks at costs it 70,000 instructions.
    #[serde(default)]
    pub spare_slots_untold: bool,
    /// Devices in the first spare slots. A restored VM may have more of them than the saved one had.
    #[serde(default)]
    pub plugged: PluggedConfig,
    /// Where the guest kernel's console goes; without it, console output is dropped.
    #[serde(default)]
    pub console_log: Option<PathBuf>,
    /// Go on from a snapshot instead of booting the kernel.
    #[serde(default)]
    pub restore: Option<RestoreConfig>,
    /// Unix socket to make for [`crate::control`]. Whoever may connect to it controls the VM.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// What no container has.
    #[serde(default)]
    pub rare: RareConfig,
}

/// What only who uses the microVM API can ask for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RareConfig {
    /// Memory that the guest can be given while it runs.
    pub hotplug: Option<HotplugConfig>,
    /// Guest memory is the host's pages of 2 MiB.
    pub huge_pages: bool,
    /// With a balloon: the host may ask which pages are free.
    pub balloon_hinting: bool,
    /// What the entropy device may carry.
    pub entropy_limits: Option<RateLimits>,
    /// What persistent memory may carry, as the first devices; those that are left out have no limits.
    pub pmem_limits: Vec<RateLimits>,
    /// Bytes of the console that are written; the others are dropped.
    pub console_rate: Option<BucketConfig>,
    /// What the processors have otherwise than this host's; only for who builds the VM in its own process.
    #[serde(skip)]
    pub cpu: CpuTemplate,
}

/// Memory that the guest can be given while it runs, and gives back.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HotplugConfig {
    /// Most of it, in MiB; a multiple of a block.
    pub size_mib: u32,
    /// Smallest part of it, in MiB; a power of two, 2 or more.
    pub block_mib: u32,
}

impl VmConfig {
    /// How much memory there is, and of which kind.
    pub fn memory(&self) -> MemoryShape {
        let hotplug_mib = self.rare.hotplug.map_or(0, |hotplug| hotplug.size_mib);
        MemoryShape { boot_mib: self.mem_size_mib, hotplug_mib, huge_pages: self.rare.huge_pages }
    }

    /// Most virtio slots of one VM, spare ones included.
    pub const MAX_SLOTS: usize = arch::layout::VIRTIO_MMIO_SLOTS;

    /// Number of the last spare slots of which the booting kernel is not told.
    pub fn untold_slots(&self) -> usize {
        let plugged = self.plugged.disks.len() + self.plugged.pmem.len() + self.plugged.net.iter().len();
        if self.spare_slots_untold { usize::from(self.spare_slots).saturating_sub(plugged) } else { 0 }
    }

    /// Number of the virtio slots before the spare ones.
    pub fn fixed_slots(&self) -> usize {
        let rng = 1;
        let single = [self.vsock.is_some(), self.balloon, self.rare.hotplug.is_some(), self.fs.is_some()];
        let single = single.into_iter().filter(|there| *there).count();
        self.disks.len() + self.net.len() + self.pmem.len() + single + rng
    }
}

/// What the guest calls disk `index`: `vda` and so on.
pub fn disk_name(index: usize) -> String {
    // No more disks than slots, so no letter past `z`.
    let letter = char::from(b'a' + index.min(25) as u8);
    format!("vd{letter}")
}

/// Where a VM goes on from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// Directory of the snapshot. Its machine must be the one configured here; disks and sockets may be other
    /// files.
    pub snapshot: PathBuf,
    /// For a differential snapshot: its base, the base of that one and so on, the full one last.
    #[serde(default)]
    pub bases: Vec<PathBuf>,
    /// Note which pages are written from the start on: `snapshot` can be the base of the next snapshot then.
    #[serde(default)]
    pub track: bool,
    /// Tell the guest a wall clock so many milliseconds ahead of the host's.
    #[serde(default)]
    pub step_ms: i64,
}

impl RestoreConfig {
    /// From a full snapshot, without logging what is written.
    pub fn full(snapshot: PathBuf) -> Self {
        RestoreConfig { snapshot, bases: Vec::new(), track: false, step_ms: 0 }
    }
}

/// Devices that a VM need not have had when it was saved, in slot order. The guest finds those that came
/// later by probing their slots again, see `docs/vmm.md`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PluggedConfig {
    /// Block devices, named after [`VmConfig::disks`].
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Persistent memory, numbered after [`VmConfig::pmem`].
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,
    /// Network interface, numbered after [`VmConfig::net`].
    #[serde(default)]
    pub net: Option<NetConfig>,
}

/// Kernel image and its command line.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// ELF `vmlinux` or `bzImage`.
    pub path: PathBuf,
    /// Initial RAM file system.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Appended to the command line that the VMM makes itself (console, devices, host quirks).
    #[serde(default)]
    pub cmdline: String,
    /// The command line that the VMM makes itself has only what the guest cannot run without: no console, no
    /// tuning for containers.
    #[serde(default)]
    pub bare: bool,
}

/// One raw disk image.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Raw image file or block device; its size is a multiple of 512 bytes. An empty file is a drive without
    /// a medium; a VM restored from its state may have one there.
    pub path: PathBuf,
    /// Offers VIRTIO_BLK_F_RO and opens the file for reading only.
    pub read_only: bool,
    /// Serial number that the guest reads, at most 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// Who executes reads, writes and flushes: `sync`, the event loop one after the other, or `io_uring`,
    /// the kernel many at a time.
    #[serde(default)]
    pub engine: BlockEngine,
    /// What it may carry.
    #[serde(default)]
    pub limits: RateLimits,
}

/// A file that the guest sees as memory, without a page cache of its own where it mounts it with DAX.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// A regular file that is not empty. It must not shrink while the VM runs; one that may be written has
    /// a multiple of 2 MiB bytes.
    pub path: PathBuf,
    /// What the guest writes reaches neither the file nor another VM.
    pub read_only: bool,
}

/// One network interface.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// An open descriptor that the VMM process inherits, as `backend` says.
    pub fd: RawFd,
    /// What the descriptor is.
    #[serde(default)]
    pub backend: NetBackend,
    /// MAC address of the guest's side.
    pub mac: [u8; 6],
    /// What it may carry.
    #[serde(default)]
    pub limits: RateLimits,
    /// Largest packet without its Ethernet header; left to the guest without it.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Answers on this wire in the host's place; only for who builds the VM in its own process.
    #[serde(skip)]
    pub service: Option<Service>,
}

/// What carries the frames of an interface.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetBackend {
    /// A TAP interface (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR).
    #[default]
    Tap,
    /// A connected Unix stream socket with frames behind their length, four bytes, big endian: what QEMU's `stream`
    /// and the program passt speak. Frames that the guest addresses to the host's loopback are dropped.
    Stream,
}

/// A file system device.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts, at most 36 bytes.
    pub tag: String,
    /// An open socket that the VMM process inherits (SOCK_SEQPACKET): each message is one FUSE request or reply. A
    /// machine that is saved before its guest mounts needs none.
    #[serde(default)]
    pub fd: Option<RawFd>,
}

/// The vsock device and its Unix socket on the host, as in Firecracker: a client connects to `uds_path`
/// and writes `CONNECT <port>\n`; a guest's connect to host port P goes to `<uds_path>_<P>`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context ID of the guest, 3 or more.
    pub guest_cid: u32,
    /// Path of the listening socket.
    pub uds_path: PathBuf,
}

/// Why a VM ended: the last event that the VMM process reports.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset (reboot, or a panic with `panic=-1`).
    Reset,
    /// The guest stopped in a way it cannot go on from.
    GuestFault {
        /// What KVM reported.
        what: String,
    },
    /// The host asked for the end.
    Stopped,
}

/// What the VMM process tells its parent, one JSON object a line on the event descriptor.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VmEvent {
    /// The VM is built; the first vCPU enters the guest now. Times are CLOCK_MONOTONIC nanoseconds.
    Started {
        /// When the process began to run `main`.
        process_start_ns: u64,
        /// When guest memory, kernel and devices were ready.
        built_ns: u64,
        /// Just before the first KVM_RUN.
        first_run_ns: u64,
        /// True where guest ring 0 is emulated by this host's KVM.
        emulated_ring0: bool,
    },
    /// A device's driver set DRIVER_OK.
    DriverReady {
        /// `vda`, `eth0`, `vsock`, ...
        device: String,
    },
    /// The VM could not be built or run; the process ends.
    Failed {
        /// What, why and the fix.
        message: String,
    },
    /// The guest is gone; the process ends.
    Exited(VmExit),
}
