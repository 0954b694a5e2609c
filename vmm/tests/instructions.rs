//! Instructions that an emulating KVM cannot do: with the VMM's help they give what a processor gives.
//!
//! On hardware the same guests run natively, so each test also states what is right.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use support::{results, run};
use vmm::config::VmExit;

kvm_tests!(
    popcnt_counts_and_sets_the_flags,
    crc32_gives_the_standard_check_value,
    cmpxchg16b_exchanges_only_the_expected_value,
    stac_and_clac_change_the_ac_flag,
    the_time_stamp_grows_and_comes_with_the_processors_number,
    sse_and_x87_control_words_keep_their_values,
    segment_descriptors_can_be_asked_about,
    cache_and_tlb_hints_go_through,
    int3_traps_and_returns_behind_itself,
    int_n_calls_its_handler_and_returns,
    an_operand_that_is_not_mapped_raises_a_page_fault,
    a_non_canonical_operand_raises_general_protection,
    an_instruction_that_nobody_completes_ends_the_vm_with_its_name,
);

const ZERO: u64 = 1 << 6;
const ARITHMETIC: u64 = 0x8d5;

guest!(popcnt:
    "mov rax, 0xf0f0f0f0f0f0f0f1",
    "stc",
    "popcnt rbx, rax",
    "pushfq",
    "pop [r15 + 8]",
    "mov [r15], rbx",
    "mov qword ptr [r15 + 0x100], 0",
    "mov rcx, -1",
    "popcnt ecx, dword ptr [r15 + 0x100]",
    "pushfq",
    "pop [r15 + 24]",
    "mov [r15 + 16], rcx",
);

fn popcnt_counts_and_sets_the_flags() {
    let [count, flags, none, zero_flags] = results(popcnt);
    assert_eq!((count, flags & ARITHMETIC), (33, 0));
    assert_eq!((none, zero_flags & ARITHMETIC), (0, ZERO));
}

guest!(crc32:
    "mov eax, -1",
    "mov rbx, 0x3837363534333231",
    "crc32 rax, rbx",
    "mov bl, 0x39",
    "crc32 eax, bl",
    "not eax",
    "mov [r15], rax",
);

fn crc32_gives_the_standard_check_value() {
    assert_eq!(results(crc32), [0xe306_9283]);
}

guest!(cmpxchg16b:
    "mov qword ptr [r15 + 0x100], 5",
    "mov qword ptr [r15 + 0x108], 6",
    "mov eax, 1",
    "xor edx, edx",
    "mov ebx, 7",
    "mov ecx, 8",
    "lock cmpxchg16b [r15 + 0x100]",
    "setz byte ptr [r15]",
    "mov [r15 + 8], rax",
    "mov [r15 + 16], rdx",
    "lock cmpxchg16b [r15 + 0x100]",
    "setz byte ptr [r15 + 24]",
    "mov rax, [r15 + 0x100]",
    "mov [r15 + 32], rax",
    "mov rax, [r15 + 0x108]",
    "mov [r15 + 40], rax",
);

fn cmpxchg16b_exchanges_only_the_expected_value() {
    assert_eq!(results(cmpxchg16b), [0, 5, 6, 1, 7, 8]);
}

guest!(stac_clac:
    "stac",
    "pushfq",
    "pop [r15]",
    "clac",
    "pushfq",
    "pop [r15 + 8]",
);

fn stac_and_clac_change_the_ac_flag() {
    let [set, clear] = results(stac_clac);
    assert_eq!((set & (1 << 18), clear & (1 << 18)), (1 << 18, 0));
}

guest!(rdtscp:
    "rdtscp",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [r15], rax",
    "mov [r15 + 8], rcx",
    "rdtscp",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [r15 + 16], rax",
);

fn the_time_stamp_grows_and_comes_with_the_processors_number() {
    let [first, aux, second] = results(rdtscp);
    assert!(first < second, "{first} {second}");
    assert_eq!(aux, 0, "as after a reset");
}

guest!(sse_control:
    // CR4.OSFXSR
    "mov rax, cr4",
    "or eax, 0x200",
    "mov cr4, rax",
    "fninit",
    "mov dword ptr [r15 + 0x100], 0x3f80",
    "ldmxcsr [r15 + 0x100]",
    "stmxcsr [r15]",
    "mov eax, -1",
    "fnstsw ax",
    "mov [r15 + 8], rax",
    "emms",
    "fwait",
    "mov qword ptr [r15 + 16], 1",
);

fn sse_and_x87_control_words_keep_their_values() {
    assert_eq!(results(sse_control), [0x3f80, 0xffff_0000, 1]);
}

guest!(segments:
    "mov eax, 0x10",
    "lsl ebx, eax",
    "setz byte ptr [r15]",
    "mov [r15 + 8], rbx",
    "lar ebx, eax",
    // The other bits are undefined.
    "and ebx, 0xf0ff00",
    "mov [r15 + 16], rbx",
    "verw ax",
    "setz byte ptr [r15 + 24]",
    "mov eax, 0x18",
    "verw ax",
    "setz byte ptr [r15 + 25]",
    "verr ax",
    "setz byte ptr [r15 + 26]",
    "mov eax, 0x1000",
    "lsl ebx, eax",
    "setz byte ptr [r15 + 27]",
    "xor eax, eax",
    "lsl ebx, eax",
    "setz byte ptr [r15 + 28]",
);

fn segment_descriptors_can_be_asked_about() {
    assert_eq!(results(segments), [1, 0xffff_ffff, 0xa0_9b00, 0x0001_0100]);
}

guest!(hints:
    "clwb [r15]",
    "mov qword ptr [r15 + 0x100], 0",
    "mov qword ptr [r15 + 0x108], 0",
    "mov eax, 2",
    "invpcid rax, [r15 + 0x100]",
    "mov qword ptr [r15], 1",
);

fn cache_and_tlb_hints_go_through() {
    assert_eq!(results(hints), [1]);
}

guest!(breakpoint:
    gate!(3),
    "int3",
    "mov qword ptr [r15], 1",
    "jmp 2f",
    "88: inc qword ptr [r15 + 8]",
    "mov rax, [rsp]",
    // The byte before the return address is the int3.
    "movzx eax, byte ptr [rax - 1]",
    "mov [r15 + 16], rax",
    "iretq",
    "2:",
);

fn int3_traps_and_returns_behind_itself() {
    assert_eq!(results(breakpoint), [1, 1, 0xcc]);
}

guest!(software_interrupt:
    gate!(0x40),
    "int 0x40",
    "mov qword ptr [r15], 1",
    "jmp 2f",
    "88: inc qword ptr [r15 + 8]",
    "iretq",
    "2:",
);

fn int_n_calls_its_handler_and_returns() {
    assert_eq!(results(software_interrupt), [1, 1]);
}

guest!(page_fault:
    gate!(14),
    // Beyond the identity map of one GiB.
    "mov rbx, 0x80000040",
    "popcnt rax, [rbx]",
    "jmp 2f",
    "88: pop [r15]",
    "mov rax, cr2",
    "mov [r15 + 8], rax",
    // Goes on behind the five bytes of the instruction.
    "add qword ptr [rsp], 5",
    "iretq",
    "2: mov qword ptr [r15 + 16], 1",
);

fn an_operand_that_is_not_mapped_raises_a_page_fault() {
    assert_eq!(results(page_fault), [0, 0x8000_0040, 1]);
}

guest!(non_canonical:
    gate!(13),
    "mov rbx, 0x8000000000000000",
    "popcnt rax, [rbx]",
    "jmp 2f",
    "88: pop [r15]",
    "add qword ptr [rsp], 5",
    "iretq",
    "2: mov qword ptr [r15 + 8], 1",
);

fn a_non_canonical_operand_raises_general_protection() {
    assert_eq!(results(non_canonical), [0, 1]);
}

guest!(unsupported:
    "mov rax, cr4",
    "or eax, 0x40200",
    "mov cr4, rax",
    "mov eax, 7",
    "xor edx, edx",
    "xor ecx, ecx",
    "xsetbv",
    "vaddps ymm0, ymm1, ymm2",
);

fn an_instruction_that_nobody_completes_ends_the_vm_with_its_name() {
    match run(unsupported, 1).0 {
        // On hardware it is an instruction like any other.
        VmExit::PowerOff => assert!(std::arch::is_x86_feature_detected!("avx")),
        VmExit::GuestFault { what } => {
            assert!(what.contains("KVM cannot emulate") && what.contains("Vaddps"), "{what}");
            assert!(what.contains("rip 0x2"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}
