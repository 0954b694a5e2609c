//! Pausing, resuming, saving and restoring a running guest.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::time::Duration;

use support::{DATA, config, kernel, memory_file, words};
use vmm::vm::{Vm, VmState};

kvm_tests!(
    a_paused_guest_stands_still_and_goes_on,
    requests_that_do_not_fit_the_state_are_refused,
    a_restored_guest_goes_on_where_it_was_saved,
    a_state_of_another_machine_is_refused,
);

// Counts for ever in memory and in a register that it never reloads.
guest!(counter:
    "xor eax, eax",
    "mov r8, 0x1234567890abcdef",
    "2: inc rax",
    "mov [r15], rax",
    "mov [r15 + 8], r8",
    "jmp 2b",
);

const A_WHILE: Duration = Duration::from_millis(50);

fn count(vm: &Vm) -> u64 {
    let [count] = words(vm, DATA);
    count
}

fn started(vcpus: u8) -> (tempfile::NamedTempFile, Vm) {
    let kernel = kernel(counter);
    let mut vm = Vm::build(&config(&kernel, vcpus)).unwrap();
    vm.start().unwrap();
    vm.run_for(A_WHILE, |_| ()).unwrap();
    (kernel, vm)
}

fn a_paused_guest_stands_still_and_goes_on() {
    let (_kernel, mut vm) = started(2);
    for _ in 0..3 {
        vm.pause().unwrap();
        let paused = count(&vm);
        vm.run_for(A_WHILE, |_| ()).unwrap();
        assert_eq!(count(&vm), paused);
        vm.resume().unwrap();
        vm.run_for(A_WHILE, |_| ()).unwrap();
        assert!(count(&vm) > paused);
    }
}

fn requests_that_do_not_fit_the_state_are_refused() {
    let (_kernel, mut vm) = started(1);
    assert_eq!(vm.start().unwrap_err().to_string(), "cannot start a VM that is running");
    assert_eq!(vm.resume().unwrap_err().to_string(), "cannot resume a VM that is running");
    assert_eq!(vm.save_state().err().unwrap().to_string(), "cannot save a VM that is running");
    vm.pause().unwrap();
    assert_eq!(vm.pause().unwrap_err().to_string(), "cannot pause a VM that is paused");
}

fn a_restored_guest_goes_on_where_it_was_saved() {
    for vcpus in [1, 2] {
        let (kernel, mut vm) = started(vcpus);
        vm.pause().unwrap();
        let saved = serde_json::to_string(&vm.save_state().unwrap()).unwrap();
        let memory = memory_file(&vm);
        let at_save = count(&vm);
        drop(vm);

        let state: VmState = serde_json::from_str(&saved).unwrap();
        let memory = vmm::memory::map_private(32, &memory).unwrap();
        let mut clone = Vm::restore(&config(&kernel, vcpus), &state, memory).unwrap();
        assert_eq!(count(&clone), at_save);
        clone.start().unwrap();
        clone.run_for(A_WHILE, |_| ()).unwrap();
        let [count, constant] = words(&clone, DATA);
        assert!(count > at_save, "{count} {at_save}");
        assert_eq!(constant, 0x1234_5678_90ab_cdef, "a register that only the saved state has");
    }
}

fn a_state_of_another_machine_is_refused() {
    let (kernel, mut vm) = started(1);
    vm.pause().unwrap();
    let state = vm.save_state().unwrap();
    let refused = Vm::restore(&config(&kernel, 2), &state, vmm::memory::allocate(32).unwrap());
    assert_eq!(refused.err().unwrap().to_string(), "the saved state has 1 vCPUs, the configuration 2");
}
