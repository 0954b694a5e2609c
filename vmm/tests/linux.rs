//! The VMM under a real guest kernel: what only a kernel can show.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::process::ExitCode;

use support::linux::{self, Bench};
use support::memory_file;
use vmm::config::{DiskConfig, PluggedConfig, VmConfig, VmExit};
use vmm::vm::{Vm, VmState};

fn main() -> ExitCode {
    let tests: Vec<(&str, fn())> = vec![
        ("a_disk_plugged_into_a_restored_vm_is_found_by_binding_its_slot", plugging),
        ("a_drive_restored_with_a_medium_is_read_without_a_probe", medium),
    ];
    support::main_lacking(tests, linux::kernel().is_none().then(|| "no guest kernel".to_owned()))
}

/// Saves `vm` and restores it as `config` has it.
fn clone(vm: &mut Vm, config: &VmConfig) -> Vm {
    vm.pause().unwrap();
    let saved = serde_json::to_string(&vm.save_state().unwrap()).unwrap();
    let state: VmState = serde_json::from_str(&saved).unwrap();
    let memory = vmm::memory::map_private(config.mem_size_mib, &memory_file(vm)).unwrap();
    Vm::restore(config, &state, memory).unwrap()
}

/// A template of `config` in which the guest waits, then a clone of it after `change`; the guest in the clone
/// finds a disk and reads it.
fn late_disk(bench: &Bench, mut config: VmConfig, change: impl FnOnce(&mut VmConfig, DiskConfig)) {
    let mut template = Vm::build(&config).unwrap();
    template.start().unwrap();
    bench.wait_for(&mut template, "waiting");
    let path = bench.path("late");
    std::fs::write(&path, [&b"it came in late!"[..], &[0; 4096 - 16]].concat()).unwrap();
    change(&mut config, DiskConfig { path, read_only: true, serial: String::new() });
    let mut clone = clone(&mut template, &config);
    drop(template);
    clone.start().unwrap();
    let start = std::time::Instant::now();
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
        config.plugged = PluggedConfig { disks: vec![disk], net: None };
    });
}

fn medium() {
    let bench = Bench::new("late");
    let mut config = bench.config(64);
    config.kernel.cmdline.push_str(" -- medium");
    let empty = bench.path("empty");
    std::fs::write(&empty, []).unwrap();
    config.disks.push(DiskConfig { path: empty, read_only: true, serial: String::new() });
    late_disk(&bench, config, |config, disk| config.disks[1] = disk);
}
