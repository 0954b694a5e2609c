//! XSAVE and XRSTOR in ring 0 move the whole AVX state, on hardware and where the VMM completes them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use support::results;

kvm_tests!(
    xcr0_reads_back,
    the_standard_format_round_trips,
    only_what_is_asked_for_is_touched,
    the_compacted_format_round_trips,
    what_a_processor_refuses_raises_general_protection,
);

/// Lines that turn on x87, SSE and AVX state.
macro_rules! enable_avx {
    () => {
        "mov rax, cr4\n or eax, 0x40200\n mov cr4, rax\n mov eax, 7\n xor edx, edx\n xor ecx, ecx\n xsetbv\n"
    };
}

/// Lines that fill the area at R15 + 0x1000 with a pattern and a header of x87, SSE and AVX.
macro_rules! fill_area {
    () => {
        concat!(
            "lea rdi, [r15 + 0x1000]\n mov rax, 0x1122334455667788\n mov ecx, 104\n",
            "2: mov [rdi], rax\n add rax, rcx\n add rdi, 8\n dec ecx\n jnz 2b\n",
            "mov qword ptr [r15 + 0x1000], 0x37f\n mov qword ptr [r15 + 0x1008], 0\n",
            "mov qword ptr [r15 + 0x1010], 0\n mov dword ptr [r15 + 0x1018], 0x1f80\n",
            "lea rdi, [r15 + 0x1200]\n xor eax, eax\n mov ecx, 8\n rep stosq\n",
            "mov qword ptr [r15 + 0x1200], 7\n",
        )
    };
}

/// Lines that leave at R15 how many of `$count` words at `$left` and `$right` differ.
macro_rules! compare {
    ($left:literal, $right:literal, $count:literal, $result:literal) => {
        concat!(
            "lea rsi, [r15 + ",
            $left,
            "]\n lea rdi, [r15 + ",
            $right,
            "]\n mov ecx, ",
            $count,
            "\n",
            "xor ebx, ebx\n 3: mov rax, [rsi]\n cmp rax, [rdi]\n je 4f\n inc ebx\n 4: add rsi, 8\n",
            "add rdi, 8\n dec ecx\n jnz 3b\n mov [r15 + ",
            $result,
            "], rbx\n",
        )
    };
}

guest!(xcr0:
    enable_avx!(),
    "xor ecx, ecx",
    "mov rdx, -1",
    "xgetbv",
    "mov [r15], rax",
    "mov [r15 + 8], rdx",
);

fn xcr0_reads_back() {
    assert_eq!(results(xcr0), [7, 0]);
}

guest!(standard:
    enable_avx!(),
    fill_area!(),
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [r15 + 0x1000]",
    "xsave64 [r15 + 0x2000]",
    // x87 registers, whose last six bytes each are reserved, then XMM, then the upper halves.
    compare!("0x10a0", "0x20a0", "32", "0"),
    compare!("0x1240", "0x2240", "32", "8"),
    "mov rax, [r15 + 0x2200]",
    "mov [r15 + 16], rax",
    "mov eax, [r15 + 0x2018]",
    "mov [r15 + 24], rax",
    "mov rax, [r15 + 0x1020]",
    "sub rax, [r15 + 0x2020]",
    "mov [r15 + 32], rax",
);

fn the_standard_format_round_trips() {
    assert_eq!(results(standard), [0, 0, 7, 0x1f80, 0]);
}

guest!(partial:
    enable_avx!(),
    fill_area!(),
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [r15 + 0x1000]",
    // Only AVX is put into its initial state; SSE stays.
    "mov qword ptr [r15 + 0x1200], 0",
    "mov eax, 4",
    "xrstor64 [r15 + 0x1000]",
    "mov eax, 7",
    "xsave64 [r15 + 0x2000]",
    compare!("0x10a0", "0x20a0", "32", "0"),
    "mov rax, [r15 + 0x2200]",
    "and eax, 4",
    "mov [r15 + 8], rax",
    "mov rax, [r15 + 0x2240]",
    "mov [r15 + 16], rax",
    // A save of SSE alone leaves the rest of the area and of the header as it was.
    "mov rax, 0x5555555555555555",
    "mov [r15 + 0x3240], rax",
    "mov qword ptr [r15 + 0x3200], 4",
    "mov eax, 2",
    "xsave64 [r15 + 0x3000]",
    "mov rax, [r15 + 0x3240]",
    "mov [r15 + 24], rax",
    "mov rax, [r15 + 0x3200]",
    "mov [r15 + 32], rax",
    compare!("0x10a0", "0x30a0", "32", "40"),
);

fn only_what_is_asked_for_is_touched() {
    assert_eq!(results(partial), [0, 0, 0, 0x5555_5555_5555_5555, 6, 0]);
}

guest!(compacted:
    enable_avx!(),
    fill_area!(),
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [r15 + 0x1000]",
    "xsavec64 [r15 + 0x2000]",
    compare!("0x1240", "0x2240", "32", "0"),
    "mov rax, [r15 + 0x2208]",
    "mov [r15 + 8], rax",
    // Everything back to its initial state, then from the compacted area.
    "mov qword ptr [r15 + 0x1200], 0",
    "mov eax, 7",
    "xrstor64 [r15 + 0x1000]",
    "xrstor64 [r15 + 0x2000]",
    "xsaveopt64 [r15 + 0x3000]",
    compare!("0x1240", "0x3240", "32", "16"),
    compare!("0x10a0", "0x30a0", "32", "24"),
);

fn the_compacted_format_round_trips() {
    assert_eq!(results(compacted), [0, 1 << 63 | 7, 0, 0]);
}

guest!(faults:
    enable_avx!(),
    gate!(13),
    "mov eax, 7",
    "xor edx, edx",
    // Not a multiple of 64.
    "lea rbx, [r15 + 0x1008]",
    "xsave64 [rbx]",
    // A component that XCR0 does not have.
    "lea rbx, [r15 + 0x1000]",
    "mov qword ptr [rbx + 0x200], 0x200",
    "xrstor64 [rbx]",
    // A reserved bit of MXCSR.
    "mov qword ptr [rbx + 0x200], 7",
    "mov dword ptr [rbx + 0x18], 0x80000000",
    "xrstor64 [rbx]",
    // XCR0 without x87.
    "mov eax, 6",
    "xor ecx, ecx",
    "xsetbv",
    "jmp 2f",
    // Each of the XSAVE forms above has four bytes, XSETBV three.
    "88: inc qword ptr [r15]",
    "pop rsi",
    "cmp qword ptr [r15], 4",
    "je 5f",
    "inc qword ptr [rsp]",
    "5: add qword ptr [rsp], 3",
    "iretq",
    "2: mov qword ptr [r15 + 8], 1",
);

fn what_a_processor_refuses_raises_general_protection() {
    assert_eq!(results(faults), [4, 1]);
}
