//! Ends by a fault, as a program with a bug does: SIGSEGV.

fn main() {
    println!("about to crash");
    // SAFETY: deliberately not sound: address 8 is never mapped, and the fault is the point.
    unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
}
