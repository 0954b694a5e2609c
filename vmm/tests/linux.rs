//! The VMM under a real guest kernel: what only a kernel can show.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::linux::{self, Bench};
use support::memory_file;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::{BlockEngine, DiskConfig, PluggedConfig, PmemConfig, VmConfig, VmExit};
use vmm::vm::{Vm, VmState};

fn main() -> ExitCode {
    let tests: Vec<(&str, fn())> = vec![
        ("a_disk_plugged_into_a_restored_vm_is_found_by_binding_its_slot", plugging),
        ("clones_share_the_pages_of_an_image_in_persistent_memory", sharing),
        ("memory_that_a_guest_frees_comes_back_to_the_host", balloon),
        ("a_drive_restored_with_a_medium_is_read_without_a_probe", medium),
    ];
    support::main_lacking(tests, linux::kernel().is_none().then(|| "no guest kernel".to_owned()))
}

/// A saved VM.
struct Template {
    state: VmState,
    memory: File,
}

impl Template {
    /// Boots the VM of `config` until its guest waits, and saves it.
    fn new(bench: &Bench, config: &VmConfig) -> Self {
        let mut vm = Vm::build(config).unwrap();
        vm.start().unwrap();
        bench.wait_for(&mut vm, "waiting");
        Self::of(vm)
    }

    /// Saves `vm`.
    fn of(mut vm: Vm) -> Self {
        vm.pause().unwrap();
        let state = serde_json::to_string(&vm.save_state().unwrap()).unwrap();
        let memory = memory_file(&vm);
        Template { state: serde_json::from_str(&state).unwrap(), memory }
    }

    /// A running clone as `config` has it, which begins with an empty console.
    fn start(&self, config: &VmConfig) -> Vm {
        let console = config.console_log.as_ref().unwrap();
        File::create(console).unwrap();
        let memory = vmm::memory::map_private(config.mem_size_mib, &self.memory).unwrap();
        let mut vm = Vm::restore(config, &self.state, memory).unwrap();
        vm.start().unwrap();
        vm
    }
}

/// A template of `config` in which the guest waits, then a clone of it after `change`; the guest in the clone
/// finds a disk and reads it.
fn late_disk(bench: &Bench, mut config: VmConfig, change: impl FnOnce(&mut VmConfig, DiskConfig)) {
    let template = Template::new(bench, &config);
    let path = bench.path("late");
    std::fs::write(&path, [&b"it came in late!"[..], &[0; 4096 - 16]].concat()).unwrap();
    change(
        &mut config,
        DiskConfig {
            path,
            read_only: true,
            serial: String::new(),
            engine: BlockEngine::default(),
            limits: Default::default(),
        },
    );
    let mut clone = template.start(&config);
    let start = Instant::now();
    println!("late disk: {}", bench.wait_for(&mut clone, "took "));
    println!("late disk: {:?} after the first instruction", start.elapsed());
    assert_eq!(bench.wait_for(&mut clone, "disk says "), "it came in late!");
    assert_eq!(bench.end(&mut clone), VmExit::PowerOff);
}

fn plugging() {
    let bench = Bench::new("late");
    let mut config = bench.config(64);
    config.spare_slots = 2;
    late_disk(&bench, config, |config, disk| {
        config.plugged = PluggedConfig { disks: vec![disk], ..Default::default() };
    });
}

fn medium() {
    let bench = Bench::new("late");
    let mut config = bench.config(64);
    config.kernel.cmdline.push_str(" -- medium");
    let empty = bench.path("empty");
    std::fs::write(&empty, []).unwrap();
    config.disks.push(DiskConfig {
        path: empty,
        read_only: true,
        serial: String::new(),
        engine: BlockEngine::default(),
        limits: Default::default(),
    });
    late_disk(&bench, config, |config, disk| config.disks[1] = disk);
}

/// A number from the environment, for a measurement of more than the test needs.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// An image of busybox and `mib` MiB of bytes in files of 1 MiB.
fn image(bench: &Bench, mib: usize) -> PathBuf {
    let tree = bench.path("image.tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::copy("/bin/busybox", tree.join("busybox")).unwrap();
    for number in 0..mib {
        let bytes: Vec<u8> =
            (0..1 << 20).map(|at: usize| (at >> 12).wrapping_mul(number + 3) as u8).collect();
        std::fs::write(tree.join(format!("file{number}")), bytes).unwrap();
    }
    bench.erofs("image", &tree)
}

/// KiB of guest memory that is this VM's own: what it wrote since it was restored.
fn own_kib(vm: &Vm) -> u64 {
    let start = vm.memory().get_host_address(GuestAddress(0)).unwrap() as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut sum = 0;
    let end = start + vm.memory().iter().next().unwrap().len();
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if let Some((from, _)) = first.split_once('-') {
            inside = u64::from_str_radix(from, 16).is_ok_and(|from| (start..end).contains(&from));
        } else if inside && first == "Anonymous:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

fn sharing() {
    let bench = Bench::new("rootfs");
    let mib = setting("LIGHTER_TEST_IMAGE_MIB", 4);
    let path = image(&bench, mib);
    let mut config = bench.config(96 + mib as u32);
    config.spare_slots = 1;
    let template = Template::new(&bench, &config);
    let disk = DiskConfig {
        path: path.clone(),
        read_only: true,
        serial: String::new(),
        engine: BlockEngine::default(),
        limits: Default::default(),
    };
    let disk = PluggedConfig { disks: vec![disk], ..Default::default() };
    let memory = PluggedConfig { pmem: vec![PmemConfig { path, read_only: true }], ..Default::default() };
    let run = |plugged: &PluggedConfig| {
        let config = VmConfig { plugged: plugged.clone(), ..config.clone() };
        let mut vm = template.start(&config);
        let steps = bench.wait_for(&mut vm, "steps");
        let (mounted, own) = (bench.wait_for(&mut vm, "mounted"), own_kib(&vm));
        println!("{mib} MiB, {mounted}: {steps}, {own} KiB its own");
        (bench.wait_for(&mut vm, "sum"), mounted, own, vm)
    };
    for round in 0..setting("LIGHTER_TEST_ROUNDS", 1) {
        let (sum, _, cached, on_disk) = run(&disk);
        let (same, mounted, shared, in_memory) = run(&memory);
        assert_eq!(sum, same);
        assert!(mounted.contains("dax=always"), "{mounted}");
        let saved = cached.saturating_sub(shared);
        assert!(saved > mib as u64 * 900, "{shared} KiB of its own, {cached} KiB with a page cache");
        // Clones of a VM that has the image mounted and read it read it as well.
        let again = |vm, plugged: &PluggedConfig| {
            let config = VmConfig { plugged: plugged.clone(), ..config.clone() };
            let mut clone = Template::of(vm).start(&config);
            assert_eq!(bench.wait_for(&mut clone, "again "), sum);
            own_kib(&clone)
        };
        if round == 0 {
            let (cached, shared) = (again(on_disk, &disk), again(in_memory, &memory));
            println!("their clones: {cached} KiB on disk, {shared} KiB with DAX");
        }
    }
}

/// Runs `vm` until `done`, which is asked now and then.
fn run_until(vm: &mut Vm, mut done: impl FnMut(&Vm) -> bool) {
    let end = Instant::now() + linux::PATIENCE;
    while !done(vm) {
        assert!(Instant::now() < end, "in vain");
        assert_eq!(vm.run_for(Duration::from_millis(100), |_| ()).unwrap(), None);
    }
}

fn balloon() {
    const MIB: u64 = 64;
    let bench = Bench::new("balloon");
    let mut config = bench.config(160);
    config.kernel.cmdline.push_str(&format!(" -- {MIB}"));
    config.balloon = true;
    let mut vm = Vm::build(&config).unwrap();
    vm.start().unwrap();
    bench.wait_for(&mut vm, "filled");
    let filled = own_kib(&vm);
    assert!(filled > MIB << 10, "{filled} KiB");
    bench.wait_for(&mut vm, "freed");
    // All but what is in blocks of less than 2 MiB.
    let start = Instant::now();
    run_until(&mut vm, |vm| own_kib(vm) + ((MIB - 8) << 10) < filled);
    println!("free pages: {filled} KiB, then {} KiB after {:?}", own_kib(&vm), start.elapsed());

    let control = vm.balloon().unwrap().clone();
    control.set_target(8).unwrap();
    let start = Instant::now();
    run_until(&mut vm, |_| control.actual_mib() == 8);
    println!("balloon of 8 MiB after {:?}, {} KiB", start.elapsed(), own_kib(&vm));
    control.set_target(0).unwrap();
    run_until(&mut vm, |_| control.actual_mib() == 0);
}
