//! The VMM under a real guest kernel: what only a kernel can show.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::process::ExitCode;

use support::linux::{self, Bench};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::{DiskConfig, PluggedConfig, VmConfig, VmExit};
use vmm::vm::{Vm, VmState};

fn main() -> ExitCode {
    let tests: Vec<(&str, fn())> =
        vec![("a_disk_plugged_into_a_restored_vm_is_found_by_binding_its_slot", plugging)];
    support::main_lacking(tests, linux::kernel().is_none().then(|| "no guest kernel".to_owned()))
}

/// Saves `vm` and restores it as `config` has it.
fn clone(vm: &mut Vm, config: &VmConfig) -> Vm {
    vm.pause().unwrap();
    let saved = serde_json::to_string(&vm.save_state().unwrap()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    for region in vm.memory().iter() {
        let address = GuestAddress(region.start_addr().0);
        vm.memory().write_all_volatile_to(address, &mut file, region.len() as usize).unwrap();
    }
    let state: VmState = serde_json::from_str(&saved).unwrap();
    let memory = vmm::memory::map_private(config.mem_size_mib, &file).unwrap();
    Vm::restore(config, &state, memory).unwrap()
}

fn plugging() {
    let bench = Bench::new("plug");
    let mut config = bench.config(64);
    config.spare_slots = 2;
    let mut template = Vm::build(&config).unwrap();
    template.start().unwrap();
    println!("bind of an empty slot: {}", bench.wait_for(&mut template, "empty slot refused after"));

    let path = bench.path("late");
    std::fs::write(&path, [&b"plugged in late!"[..], &[0; 4096 - 16]].concat()).unwrap();
    let disk = DiskConfig { path, read_only: true, serial: String::new() };
    config.plugged = PluggedConfig { disks: vec![disk], net: None };
    let mut clone = clone(&mut template, &config);
    drop(template);
    clone.start().unwrap();
    println!("bind of a disk: {}", bench.wait_for(&mut clone, "bind took"));
    assert_eq!(bench.wait_for(&mut clone, "disk says "), "plugged in late!");
    assert_eq!(bench.end(&mut clone), VmExit::PowerOff);
}
