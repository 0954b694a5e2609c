//! Physical memory by address: it is mapped one to one and this program is alone in it.

/// Rings and small structures, 64 KiB a queue.
pub const RINGS: u64 = 32 << 20;
/// Request headers, statuses, packet headers.
pub const HEADERS: u64 = 48 << 20;
/// Data buffers up to the end of memory.
pub const DATA: u64 = 64 << 20;

/// Reads a value.
pub fn read<T: Copy>(at: u64) -> T {
    // SAFETY: the whole memory is mapped, holds only plain numbers and outlives the program.
    unsafe { (at as *const T).read_volatile() }
}

/// Writes a value.
pub fn write<T: Copy>(at: u64, value: T) {
    // SAFETY: as in `read`; the addresses above are away from the program's own image.
    unsafe { (at as *mut T).write_volatile(value) }
}

/// Fills with zeroes.
pub fn clear(at: u64, len: u64) {
    for offset in (0..len).step_by(8) {
        write(at + offset, 0u64);
    }
}

/// The compiler calls these; nothing here is worth a faster one.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    for index in 0..len {
        // SAFETY: the caller's promise; volatile, so that this does not become a call of itself.
        unsafe { to.add(index).write_volatile(value as u8) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    for index in 0..len {
        // SAFETY: as in `memset`.
        unsafe { to.add(index).write_volatile(from.add(index).read()) };
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: as in `memset`.
        let (a, b) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
