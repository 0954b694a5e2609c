//! `bzImage`: the protected-mode part goes to its preferred address and is entered 0x200 bytes in
//! (Linux boot protocol, "64-bit boot protocol").

use std::fs::File;
use std::mem::size_of;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::{KernelError, LoadedKernel, check_fits};
use crate::layout::HIGH_RAM_START;
use crate::map_file;

/// Offset of the setup header in the file.
const SETUP_HEADER: usize = 0x1f1;
/// Boot protocol 2.12, the first with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// XLF_KERNEL_64: there is a 64-bit entry at 0x200.
const KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;

/// Loads a bzImage whose first bytes are `head`; `file_size` is its length.
pub(super) fn load<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    file_size: u64,
    head: &[u8],
) -> Result<LoadedKernel, KernelError> {
    let header = parse_header(head)?;
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let payload = (setup_sectors + 1) * SECTOR;
    let Some(len) = file_size.checked_sub(payload).filter(|len| *len > ENTRY_64) else {
        let what = format!("the file ends within its {payload} bytes of setup code");
        return Err(KernelError::Malformed { what });
    };
    let start = header.pref_address;
    let end = start.checked_add(len.max(u64::from(header.init_size)));
    let Some(end) = end.filter(|_| start >= HIGH_RAM_START) else {
        return Err(KernelError::Malformed { what: format!("preferred address {start:#x}") });
    };
    check_fits(mem, end)?;
    map_file::place(mem, file, payload, start, len)?;
    Ok(LoadedKernel { entry: start + ENTRY_64, end, setup_header: Some(header) })
}

fn parse_header(head: &[u8]) -> Result<setup_header, KernelError> {
    let bytes = head.get(SETUP_HEADER..SETUP_HEADER + size_of::<setup_header>());
    let Some(bytes) = bytes else {
        return Err(KernelError::Malformed { what: "the setup header is cut off".into() });
    };
    let mut header = setup_header::default();
    header.as_mut_slice().copy_from_slice(bytes);
    let version = header.version;
    if version < MIN_VERSION || header.xloadflags & KERNEL_64 == 0 {
        let found = format!("a bzImage without a 64-bit entry (boot protocol {:#06x})", version);
        return Err(KernelError::WrongMachine { found });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// A file with one setup sector and 0x1000 bytes of payload, preferred address 1 MiB.
    fn image(edit: impl Fn(&mut setup_header), payload: usize) -> File {
        let mut header = setup_header {
            setup_sects: 1,
            header: 0x5372_6448,
            version: 0x020f,
            xloadflags: KERNEL_64,
            pref_address: 0x10_0000,
            init_size: 0x8000,
            cmdline_size: 255,
            initrd_addr_max: 0x7fff_ffff,
            ..Default::default()
        };
        edit(&mut header);
        let mut bytes = vec![0; 1024];
        bytes[SETUP_HEADER..SETUP_HEADER + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        bytes.extend(std::iter::repeat_n(0xcd, payload));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn try_load(file: &File) -> Result<(LoadedKernel, GuestMemoryMmap<()>), KernelError> {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        super::super::load(&mem, file).map(|kernel| (kernel, mem))
    }

    #[test]
    fn the_payload_lands_at_the_preferred_address() {
        let (kernel, mem) = try_load(&image(|_| (), 0x1000)).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x10_0200, 0x10_8000));
        assert_eq!((kernel.cmdline_max(), kernel.initrd_limit()), (256, 0x8000_0000));
        let byte = |gpa| mem.read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([byte(0xf_ffff), byte(0x10_0000), byte(0x10_0fff), byte(0x10_1000)], [0, 0xcd, 0xcd, 0]);
    }

    #[test]
    fn kernels_without_a_64_bit_entry_are_refused() {
        let flag = image(|header| header.xloadflags = 0, 0x1000);
        assert!(matches!(try_load(&flag), Err(KernelError::WrongMachine { .. })));
        let old = image(|header| header.version = 0x0206, 0x1000);
        assert!(
            matches!(try_load(&old), Err(KernelError::WrongMachine { found }) if found.contains("0x0206"))
        );
    }

    #[test]
    fn broken_sizes_are_refused() {
        let short = image(|header| header.setup_sects = 64, 0x1000);
        assert!(matches!(try_load(&short), Err(KernelError::Malformed { .. })));
        let low = image(|header| header.pref_address = 0x7000, 0x1000);
        assert!(matches!(try_load(&low), Err(KernelError::Malformed { .. })));
        let far = image(|header| header.pref_address = u64::MAX - 5, 0x1000);
        assert!(matches!(try_load(&far), Err(KernelError::Malformed { .. })));
        let big = image(|header| header.init_size = 64 << 20, 0x1000);
        assert!(matches!(try_load(&big), Err(KernelError::TooLittleMemory { needed_mib: 65, has_mib: 2 })));
    }
}
