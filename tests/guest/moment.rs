//! Prints the wall clock in nanoseconds since 1970 and 16 bytes of getrandom(2), as the first thing it does.

fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    println!("{} {}", now.as_nanos(), random().map(|byte| format!("{byte:02x}")).concat());
}

fn random() -> [u8; 16] {
    unsafe extern "C" {
        fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize;
    }
    let mut bytes = [0; 16];
    // SAFETY: the buffer has the length that is given.
    assert_eq!(unsafe { getrandom(bytes.as_mut_ptr(), bytes.len(), 0) }, 16);
    bytes
}
