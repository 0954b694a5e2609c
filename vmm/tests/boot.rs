//! What a kernel finds at its first instruction, for both kinds of image.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::io::Write;

use support::{DATA, PATIENCE, config, kernel, machine_code, words};
use tempfile::NamedTempFile;
use vmm::config::{VmConfig, VmExit};
use vmm::vm::Vm;

kvm_tests!(
    elf_and_bzimage_find_the_same_boot_data,
    memory_above_the_hole_is_in_the_map,
    an_initrd_that_does_not_fit_is_refused_with_its_size,
);

/// Bytes of the command line that the guest hands back.
const SHOWN: usize = 1024;

// RSI is the zero page: copies its magic, the initrd's size and first bytes, the number of memory ranges,
// the first processor's CS, and the command line.
guest!(witness:
    "mov eax, [rsi + 0x202]",
    "mov [r15], rax",
    "mov eax, [rsi + 0x21c]",
    "mov [r15 + 8], rax",
    "mov eax, [rsi + 0x218]",
    "test eax, eax",
    "jz 2f",
    "mov rax, [rax]",
    "mov [r15 + 16], rax",
    "2: movzx eax, byte ptr [rsi + 0x1e8]",
    "mov [r15 + 24], rax",
    "mov ax, cs",
    "mov [r15 + 32], ax",
    "mov esi, [rsi + 0x228]",
    "lea rdi, [r15 + 0x100]",
    "mov ecx, 1024",
    "rep movsb",
);

const MAGIC: u64 = 0x5372_6448;
const CODE_SELECTOR: u64 = 0x10;

/// A bzImage whose 64-bit entry is `guest`.
fn bzimage(guest: extern "C" fn()) -> NamedTempFile {
    let mut image = vec![0; 1024];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &0x1_0000_u32.to_le_bytes());
    image.extend([0xcc; 0x200]);
    image.extend(machine_code(guest));
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn boot(config: &VmConfig) -> ([u64; 5], String) {
    let mut vm = Vm::build(config).unwrap();
    vm.start().unwrap();
    assert_eq!(vm.run_for(PATIENCE, |_| ()).unwrap(), Some(VmExit::PowerOff));
    let line: [u64; SHOWN / 8] = words(&vm, DATA + 0x100);
    let bytes: Vec<u8> =
        line.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0).collect();
    (words(&vm, DATA), String::from_utf8(bytes).unwrap())
}

fn elf_and_bzimage_find_the_same_boot_data() {
    let mut initrd = NamedTempFile::new().unwrap();
    initrd.write_all(b"07070100and so on").unwrap();
    for image in [kernel(witness), bzimage(witness)] {
        let mut config = config(&image, 1);
        config.kernel.initrd = Some(initrd.path().to_owned());
        config.kernel.cmdline = "the.last=word".into();
        let (found, line) = boot(&config);
        assert_eq!(found, [MAGIC, 17, u64::from_le_bytes(*b"07070100"), 2, CODE_SELECTOR]);
        assert!(line.contains(" reboot=k panic=-1 ") && line.ends_with(" the.last=word"), "{line}");
        assert!(line.contains(" virtio_mmio.device=4K@0xd0000000:5 "), "{line}");
    }
}

fn memory_above_the_hole_is_in_the_map() {
    let image = kernel(witness);
    let mut config = config(&image, 1);
    config.mem_size_mib = 4096;
    let (found, _) = boot(&config);
    assert_eq!(found, [MAGIC, 0, 0, 3, CODE_SELECTOR]);
}

fn an_initrd_that_does_not_fit_is_refused_with_its_size() {
    let initrd = NamedTempFile::new().unwrap();
    initrd.as_file().set_len(32 << 20).unwrap();
    let image = kernel(witness);
    let mut config = config(&image, 1);
    config.kernel.initrd = Some(initrd.path().to_owned());
    let error = Vm::build(&config).err().unwrap();
    assert!(error.to_string().starts_with("cannot use the initrd "), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("its 33554432 bytes do not fit: "), "{cause}");
}
