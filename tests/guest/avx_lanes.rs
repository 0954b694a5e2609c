//! Fills all AVX registers with values that only this process knows, lets other processes run, and checks
//! every lane. Arguments: seed, rounds. Says `ok ROUNDS` or which lane was lost.

use std::arch::asm;

/// 16 registers of 4 lanes of 64 bits.
#[repr(C, align(32))]
struct Registers([[u64; 4]; 16]);

fn main() {
    let argument = |index: usize| std::env::args().nth(index).and_then(|text| text.parse::<u64>().ok());
    let (Some(seed), Some(rounds)) = (argument(1), argument(2)) else {
        eprintln!("usage: avx_lanes SEED ROUNDS");
        std::process::exit(2);
    };
    if !std::arch::is_x86_feature_detected!("avx") {
        println!("no avx");
        return;
    }
    for round in 0..rounds {
        let expected = pattern(seed, round);
        let mut found = Registers([[0; 4]; 16]);
        // SAFETY: AVX is there (checked above); both operands are 512 bytes, 32-byte aligned and live.
        unsafe { spin(&expected, &mut found) };
        for (register, (want, have)) in expected.0.iter().zip(&found.0).enumerate() {
            for lane in 0..4 {
                if want[lane] != have[lane] {
                    println!("round {round}: ymm{register} lane {lane}: {:#x} became {:#x}", want[lane], have[lane]);
                    std::process::exit(1);
                }
            }
        }
    }
    println!("ok {rounds}");
}

fn pattern(seed: u64, round: u64) -> Registers {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (round << 32);
    let mut registers = [[0; 4]; 16];
    for lane in registers.iter_mut().flatten() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *lane = state;
    }
    Registers(registers)
}

/// Loads the registers, waits in a loop and yields the CPU (which switches tasks), then stores them.
unsafe fn spin(input: &Registers, output: &mut Registers) {
    // SAFETY: the caller promises AVX and valid buffers; sched_yield (24) touches no memory; every
    // register that is changed is named.
    unsafe {
        asm!(
            "vmovdqa ymm0, [{i}]", "vmovdqa ymm1, [{i}+32]", "vmovdqa ymm2, [{i}+64]", "vmovdqa ymm3, [{i}+96]",
            "vmovdqa ymm4, [{i}+128]", "vmovdqa ymm5, [{i}+160]", "vmovdqa ymm6, [{i}+192]", "vmovdqa ymm7, [{i}+224]",
            "vmovdqa ymm8, [{i}+256]", "vmovdqa ymm9, [{i}+288]", "vmovdqa ymm10, [{i}+320]", "vmovdqa ymm11, [{i}+352]",
            "vmovdqa ymm12, [{i}+384]", "vmovdqa ymm13, [{i}+416]", "vmovdqa ymm14, [{i}+448]", "vmovdqa ymm15, [{i}+480]",
            "mov r12d, 1000000",
            "2: dec r12d", "jnz 2b",
            "mov eax, 24", "syscall",
            "vmovdqa [{o}], ymm0", "vmovdqa [{o}+32], ymm1", "vmovdqa [{o}+64], ymm2", "vmovdqa [{o}+96], ymm3",
            "vmovdqa [{o}+128], ymm4", "vmovdqa [{o}+160], ymm5", "vmovdqa [{o}+192], ymm6", "vmovdqa [{o}+224], ymm7",
            "vmovdqa [{o}+256], ymm8", "vmovdqa [{o}+288], ymm9", "vmovdqa [{o}+320], ymm10", "vmovdqa [{o}+352], ymm11",
            "vmovdqa [{o}+384], ymm12", "vmovdqa [{o}+416], ymm13", "vmovdqa [{o}+448], ymm14", "vmovdqa [{o}+480], ymm15",
            i = in(reg) input, o = in(reg) output,
            out("rax") _, out("rcx") _, out("r11") _, out("r12") _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _,
            out("ymm13") _, out("ymm14") _, out("ymm15") _,
        );
    }
}
