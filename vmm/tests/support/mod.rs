//! Tiny guests: a few instructions of 64-bit ring-0 code in an ELF file, run by the real VMM on real KVM.
//!
//! A guest starts with R15 = [`DATA`], has a stack, the first GiB mapped one to one, and powers off when it
//! falls off its end. What it leaves at `DATA` is its result.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod http;
pub mod linux;
pub mod micro;
pub mod volatile_disk;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm::config::{KernelConfig, VmConfig, VmExit};
use vmm::vm::Vm;

/// Where a guest's code is.
pub const CODE: u64 = 0x20_0000;
/// Where a guest puts its results; zero at first.
pub const DATA: u64 = 0x30_0000;
/// More than any tiny guest needs, even on a loaded host.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Defines a guest: `guest!(name: "instruction", ...)`. Labels from 2 to 79 are free.
#[macro_export]
macro_rules! guest {
    ($name:ident: $($line:expr),+ $(,)?) => {
        #[unsafe(naked)]
        extern "C" fn $name() {
            core::arch::naked_asm!(
                ".quad 99f - 98f",
                "98:",
                "mov r15, 0x300000",
                $($line),+,
                "mov dx, 0x600",
                "mov al, 1",
                "out dx, al",
                "97: cli",
                "hlt",
                "jmp 97b",
                "99:",
            )
        }
    };
}

/// Lines that send vector `$vector` to label 88; the IDT is at 0x31_0000. Clobbers RAX and RDI.
#[macro_export]
macro_rules! gate {
    ($vector:literal) => {
        concat!(
            "lea rax, [rip + 88f]\n",
            "mov rdi, 0x310000\n",
            "mov [rdi + 16 * ",
            $vector,
            "], ax\n",
            "mov word ptr [rdi + 16 * ",
            $vector,
            " + 2], 0x10\n",
            "mov word ptr [rdi + 16 * ",
            $vector,
            " + 4], 0x8e00\n",
            "shr rax, 16\n",
            "mov [rdi + 16 * ",
            $vector,
            " + 6], ax\n",
            "shr rax, 16\n",
            "mov [rdi + 16 * ",
            $vector,
            " + 8], eax\n",
            "mov word ptr [r15 + 0xf00], 0xfff\n",
            "mov [r15 + 0xf02], rdi\n",
            "lidt [r15 + 0xf00]\n",
        )
    };
}

/// The file's `main`: runs these functions as tests, or counts them as ignored where there is no KVM.
#[macro_export]
macro_rules! kvm_tests {
    ($($name:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::support::main(vec![$((stringify!($name), $name as fn())),+])
        }
    };
}

/// Runs `tests`, at most two at once: more would only wait for each other.
pub fn main(tests: Vec<(&'static str, fn())>) -> ExitCode {
    main_lacking(tests, None)
}

/// The same for tests that need more than KVM; `lacking` is what this host does not have.
pub fn main_lacking(tests: Vec<(&'static str, fn())>, lacking: Option<String>) -> ExitCode {
    let no_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").err();
    let lacking = no_kvm.map(|error| format!("no usable /dev/kvm, {error}")).or(lacking);
    let trial = |(name, run): (&'static str, fn())| {
        let trial = Trial::test(name, move || {
            run();
            Ok(())
        });
        match &lacking {
            Some(reason) => trial.with_ignored_flag(true).with_kind(format!("skipped: {reason}")),
            None => trial,
        }
    };
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// The machine code of a guest.
pub fn machine_code(guest: extern "C" fn()) -> Vec<u8> {
    let start = guest as *const u8;
    // SAFETY: `guest!` puts the length of the code, then the code, at the function's address.
    unsafe {
        let len = start.cast::<u64>().read_unaligned() as usize;
        std::slice::from_raw_parts(start.add(8), len).to_vec()
    }
}

/// An ELF file that loads `guest` at [`CODE`] and enters it there.
pub fn kernel(guest: extern "C" fn()) -> NamedTempFile {
    let code = machine_code(guest);
    let mut elf = vec![0; 0x1000];
    elf[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    let mut put = |offset: usize, bytes: &[u8]| elf[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x10, &2_u16.to_le_bytes());
    put(0x12, &62_u16.to_le_bytes());
    put(0x18, &CODE.to_le_bytes());
    put(0x20, &64_u64.to_le_bytes());
    put(0x36, &56_u16.to_le_bytes());
    put(0x38, &1_u16.to_le_bytes());
    // The program header: PT_LOAD, offset 0x1000, physical address, sizes.
    put(0x40, &1_u32.to_le_bytes());
    put(0x48, &0x1000_u64.to_le_bytes());
    put(0x58, &CODE.to_le_bytes());
    put(0x60, &(code.len() as u64).to_le_bytes());
    put(0x68, &(code.len() as u64).to_le_bytes());
    elf.extend(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// A VM with the least memory and no device.
pub fn config(kernel: &NamedTempFile, vcpus: u8) -> VmConfig {
    VmConfig {
        vcpus,
        mem_size_mib: 32,
        kernel: KernelConfig {
            path: kernel.path().to_owned(),
            initrd: None,
            cmdline: String::new(),
            bare: false,
        },
        disks: Vec::new(),
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
        console_log: None,
        restore: None,
        control: None,
        rare: Default::default(),
    }
}

/// The memory of `vm` in a file, region after region.
pub fn memory_file(vm: &Vm) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for region in vm.memory().iter() {
        let address = GuestAddress(region.start_addr().0);
        vm.memory().write_all_volatile_to(address, &mut file, region.len() as usize).unwrap();
    }
    file
}

/// Runs `guest` to its end and gives the VM with what it left in memory.
pub fn run(guest: extern "C" fn(), vcpus: u8) -> (VmExit, Vm) {
    let kernel = kernel(guest);
    let mut vm = Vm::build(&config(&kernel, vcpus)).unwrap();
    vm.start().unwrap();
    let exit = vm.run_for(PATIENCE, |_| ()).unwrap().expect("the guest ends in time");
    (exit, vm)
}

/// Runs `guest` on one vCPU and gives the first `N` words that it left.
pub fn results<const N: usize>(guest: extern "C" fn()) -> [u64; N] {
    let (exit, vm) = run(guest, 1);
    assert_eq!(exit, VmExit::PowerOff);
    words(&vm, DATA)
}

/// `N` words of guest memory.
pub fn words<const N: usize>(vm: &Vm, address: u64) -> [u64; N] {
    std::array::from_fn(|index| vm.memory().read_obj(GuestAddress(address + index as u64 * 8)).unwrap())
}
