//! The micro-guest: a program without an operating system that drives a virtio device from ring 3.
//!
//! ```text
//! entry.s (ring 0) ─ iretq ─► main (ring 3): command line ─► virtio-mmio ─► queue ─► measured loop ─► report
//! ```
//!
//! It measures a VMM's devices and not a guest kernel: after a few instructions everything runs in ring 3,
//! which is native even where KVM emulates ring 0. It takes no interrupt and polls the used ring. The same
//! file boots under lighter (Linux' 64-bit entry) and QEMU (PVH). `cargo xtask bench` builds and starts it.

#![no_std]
#![no_main]

mod block;
mod boot;
mod chaos;
mod console;
mod device;
mod flood;
mod ledger;
mod memory;
mod net;
mod queue;
mod writer;

core::arch::global_asm!(include_str!("entry.s"));

/// Ring 3 begins here; `boot` is the zero page, or with `pvh` the start info.
#[unsafe(no_mangle)]
extern "C" fn main(boot: u64, pvh: u64) -> ! {
    let options = boot::Options::read(boot, pvh != 0);
    match options.word("micro.test=") {
        b"read" => block::run(&options, device::BLOCK),
        b"send" => net::send(&options, device::NET),
        b"echo" => net::echo(&options, device::NET),
        b"chaos" => chaos::run(&options),
        b"flood" => flood::run(&options),
        b"write" => writer::run(&options),
        _ => fail("no such test"),
    }
    console::put(b"micro-guest: end\n");
    stop()
}

/// Says why and stops.
fn fail(what: &str) -> ! {
    console::put(b"micro-guest: failed: ");
    console::put(what.as_bytes());
    console::put(b"\n");
    stop()
}

fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// The processor's cycle counter.
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has it and CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    fail("panic")
}
