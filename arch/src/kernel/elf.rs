//! ELF `vmlinux`: each PT_LOAD segment goes to its physical address, mapped rather than copied.

use std::fs::File;
use std::mem::size_of;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::{KernelError, LoadedKernel, check_fits};
use crate::layout::HIGH_RAM_START;
use crate::map_file;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
/// A kernel has about five segments. Bounds the work that a hostile header can ask for.
const MAX_SEGMENTS: u16 = 64;

/// Loads an ELF file whose first bytes are `head`; `file_size` is its length.
pub(super) fn load<M: GuestMemoryBackend>(
    mem: &M,
    file: &File,
    file_size: u64,
    head: &[u8],
) -> Result<LoadedKernel, KernelError> {
    let header = parse_header(head)?;
    let mut end = 0;
    let mut entry_is_loaded = false;
    for segment in segments(file, &header)?.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let range = check_segment(segment, file_size)?;
        check_fits(mem, range.end)?;
        map_file::place(mem, file, segment.p_offset, range.start, segment.p_filesz)?;
        entry_is_loaded |= range.contains(&header.e_entry);
        end = end.max(range.end);
    }
    if !entry_is_loaded {
        let what = format!("entry point {:#x} lies in no segment", header.e_entry);
        return Err(KernelError::Malformed { what });
    }
    Ok(LoadedKernel { entry: header.e_entry, end, setup_header: None })
}

fn parse_header(head: &[u8]) -> Result<Elf64_Ehdr, KernelError> {
    let bytes = head.get(..size_of::<Elf64_Ehdr>()).unwrap_or_default();
    let mut header = Elf64_Ehdr::default();
    if bytes.len() != size_of::<Elf64_Ehdr>() {
        return Err(KernelError::Malformed { what: "the ELF header is cut off".into() });
    }
    header.as_mut_slice().copy_from_slice(bytes);
    if header.e_ident[4] != CLASS_64 {
        return Err(KernelError::WrongMachine { found: "a 32-bit ELF file".into() });
    }
    if header.e_ident[5] != LITTLE_ENDIAN || header.e_machine != MACHINE_X86_64 {
        let found = format!("an ELF file for machine {}", header.e_machine);
        return Err(KernelError::WrongMachine { found });
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() || header.e_phnum > MAX_SEGMENTS {
        let what = format!("{} program headers of {} bytes", header.e_phnum, header.e_phentsize);
        return Err(KernelError::Malformed { what });
    }
    Ok(header)
}

fn segments(file: &File, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, KernelError> {
    let mut segments = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    for (index, segment) in segments.iter_mut().enumerate() {
        let offset = header
            .e_phoff
            .checked_add((index * size_of::<Elf64_Phdr>()) as u64)
            .ok_or_else(|| KernelError::Malformed { what: format!("e_phoff {:#x}", header.e_phoff) })?;
        file.read_exact_at(segment.as_mut_slice(), offset).map_err(KernelError::Read)?;
    }
    Ok(segments)
}

/// Returns the guest-physical range of a segment.
fn check_segment(segment: &Elf64_Phdr, file_size: u64) -> Result<std::ops::Range<u64>, KernelError> {
    let malformed = |what: String| Err(KernelError::Malformed { what });
    if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > file_size) {
        return malformed(format!(
            "a segment of {:#x} bytes at offset {:#x} reaches beyond the file's {file_size:#x} bytes",
            segment.p_filesz, segment.p_offset
        ));
    }
    if segment.p_filesz > segment.p_memsz {
        return malformed(format!(
            "a segment of {:#x} bytes in the file and {:#x} in memory",
            segment.p_filesz, segment.p_memsz
        ));
    }
    match segment.p_paddr.checked_add(segment.p_memsz) {
        Some(end) if segment.p_paddr >= HIGH_RAM_START => Ok(segment.p_paddr..end),
        _ => malformed(format!(
            "a segment at physical address {:#x}; a kernel starts at 1 MiB or above",
            segment.p_paddr
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    const RAM: usize = 4 << 20;

    /// A file with one segment: 0x1800 bytes of 0xab at offset 0x1000, loaded at 2 MiB, 0x3000 in memory.
    fn image(edit: impl Fn(&mut Elf64_Ehdr, &mut Elf64_Phdr)) -> File {
        let mut header = Elf64_Ehdr::default();
        header.e_ident[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
        header.e_machine = MACHINE_X86_64;
        header.e_entry = 0x20_0010;
        header.e_phoff = 64;
        header.e_phentsize = 56;
        header.e_phnum = 1;
        let mut segment = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: 0x1000,
            p_paddr: 0x20_0000,
            p_filesz: 0x1800,
            p_memsz: 0x3000,
            ..Default::default()
        };
        edit(&mut header, &mut segment);
        let mut file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0xab; 0x2800];
        bytes[..64].copy_from_slice(header.as_slice());
        bytes[64..120].copy_from_slice(segment.as_slice());
        file.write_all(&bytes).unwrap();
        file
    }

    fn try_load(file: &File) -> Result<(LoadedKernel, GuestMemoryMmap<()>), KernelError> {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        super::super::load(&mem, file).map(|kernel| (kernel, mem))
    }

    #[test]
    fn segments_land_at_their_physical_address() {
        let (kernel, mem) = try_load(&image(|_, _| ())).unwrap();
        assert_eq!((kernel.entry, kernel.end), (0x20_0010, 0x20_3000));
        let byte = |gpa| mem.read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!([byte(0x1f_ffff), byte(0x20_0000), byte(0x20_17ff), byte(0x20_1800)], [0, 0xab, 0xab, 0]);
    }

    #[test]
    fn foreign_machines_are_refused() {
        let class_32 = image(|header, _| header.e_ident[4] = 1);
        assert!(
            matches!(try_load(&class_32), Err(KernelError::WrongMachine { found }) if found.contains("32-bit"))
        );
        let arm = image(|header, _| header.e_machine = 183);
        assert!(matches!(try_load(&arm), Err(KernelError::WrongMachine { found }) if found.contains("183")));
    }

    #[test]
    fn too_little_memory_is_named_in_mib() {
        let file = image(|_, segment| segment.p_memsz = 0x100_0000);
        assert!(matches!(try_load(&file), Err(KernelError::TooLittleMemory { needed_mib: 18, has_mib: 4 })));
    }

    #[test]
    fn malformed_headers_are_refused() {
        type Edit = fn(&mut Elf64_Ehdr, &mut Elf64_Phdr);
        let edits: [Edit; 8] = [
            |header, _| header.e_phnum = 65,
            |header, _| header.e_phentsize = 32,
            |header, _| header.e_phnum = 0,
            |header, _| header.e_entry = 0x10,
            |_, segment| segment.p_filesz = u64::MAX,
            |_, segment| segment.p_offset = 0x1001,
            |_, segment| segment.p_memsz = 1,
            |_, segment| segment.p_paddr = 0x1000,
        ];
        for (index, edit) in edits.into_iter().enumerate() {
            let result = try_load(&image(edit));
            assert!(matches!(result, Err(KernelError::Malformed { .. })), "edit {index}: {:?}", result.err());
        }
        let no_table = image(|header, _| header.e_phoff = u64::MAX);
        assert!(try_load(&no_table).is_err());
    }
}
