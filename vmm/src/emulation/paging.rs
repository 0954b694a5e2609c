//! Guest-virtual to guest-physical, as the processor does it for a data access in long mode.
//!
//! Intel SDM 3A, sections 4.5 and 4.6. Other paging modes are not needed: what runs in ring 0 here is a
//! 64-bit kernel, before it a boot loader without paging.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::GuestRam;
use kvm_bindings::kvm_sregs;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::exception::{Exception, Trap};

const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR0_PAGING: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const RFLAGS_ALIGNMENT_CHECK: u64 = 1 << 18;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ERROR_PRESENT: u32 = 1 << 0;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;

/// What an instruction does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes, or reads and writes.
    Write,
}

/// The registers that paging depends on.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    enabled: bool,
    long_mode: bool,
    root: u64,
    levels: u32,
    write_protect: bool,
    user: bool,
    smap: bool,
}

impl Paging {
    /// Paging as `sregs` and `rflags` have it, for an access by the code that runs there.
    pub fn new(sregs: &kvm_sregs, rflags: u64) -> Self {
        let user = sregs.cs.dpl == 3;
        Paging {
            enabled: sregs.cr0 & CR0_PAGING != 0,
            long_mode: sregs.efer & EFER_LONG_MODE_ACTIVE != 0,
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            write_protect: sregs.cr0 & CR0_WRITE_PROTECT != 0,
            user,
            smap: !user && sregs.cr4 & CR4_SMAP != 0 && rflags & RFLAGS_ALIGNMENT_CHECK == 0,
        }
    }

    /// True where `linear` is an address that the paging mode has.
    pub fn is_canonical(&self, linear: u64) -> bool {
        let unused = 64 - (12 + 9 * self.levels);
        !self.long_mode || ((linear << unused) as i64 >> unused) as u64 == linear
    }

    /// Translates `linear` and sets the accessed and dirty bits on the way.
    pub fn translate(&self, memory: &GuestRam, linear: u64, access: Access) -> Result<u64, Trap> {
        if !self.enabled {
            return Ok(linear);
        }
        if !self.long_mode {
            return Err(Trap::Unsupported);
        }
        let mut path = [(0, 0); 5];
        let mut table = self.root;
        let mut rights = WRITABLE | USER;
        for level in (1..=self.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let address = table + ((linear >> shift) & 0x1ff) * 8;
            let entry: u64 = memory.read_obj(GuestAddress(address)).map_err(|_| Trap::Unsupported)?;
            if entry & PRESENT == 0 {
                return Err(self.fault(linear, access, 0).into());
            }
            rights &= entry;
            path[level as usize - 1] = (address, entry);
            let leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
            if leaf {
                self.check_rights(linear, access, rights)?;
                mark(memory, &path[level as usize - 1..self.levels as usize], access)?;
                let offset = (1 << shift) - 1;
                return Ok((entry & ADDRESS & !offset) | (linear & offset));
            }
            table = entry & ADDRESS;
        }
        Err(Trap::Unsupported)
    }

    fn check_rights(&self, linear: u64, access: Access, rights: u64) -> Result<(), Exception> {
        let read_only = rights & WRITABLE == 0 && (self.user || self.write_protect);
        let forbidden = if rights & USER == 0 { self.user } else { self.smap };
        if forbidden || (access == Access::Write && read_only) {
            return Err(self.fault(linear, access, ERROR_PRESENT));
        }
        Ok(())
    }

    fn fault(&self, linear: u64, access: Access, present: u32) -> Exception {
        let write = if access == Access::Write { ERROR_WRITE } else { 0 };
        let user = if self.user { ERROR_USER } else { 0 };
        Exception::page_fault(linear, present | write | user)
    }
}

/// Sets accessed in every entry of `path` (the leaf first) and dirty in the leaf for a write.
fn mark(memory: &GuestRam, path: &[(u64, u64)], access: Access) -> Result<(), Trap> {
    for (index, (address, entry)) in path.iter().enumerate() {
        let bits = if index == 0 && access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
        if entry & bits == bits {
            continue;
        }
        let slice = memory.get_slice(GuestAddress(*address), 8).map_err(|_| Trap::Unsupported)?;
        let atomic = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| Trap::Unsupported)?;
        atomic.fetch_or(bits, Ordering::SeqCst);
        slice.bitmap().mark_dirty(0, 8);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const ROOT: u64 = 0x1000;
    const LINEAR: u64 = 0xffff_8000_0040_5123;

    fn long_mode() -> kvm_sregs {
        kvm_sregs { cr0: CR0_PAGING, cr3: ROOT, efer: EFER_LONG_MODE_ACTIVE, ..Default::default() }
    }

    /// Maps the page of [`LINEAR`] to 0x7000 with `leaf` as the flags of its last entry.
    fn tables(leaf: u64) -> GuestRam {
        let mem = memory::allocate(32).unwrap();
        let all = PRESENT | WRITABLE | USER;
        let set = |address: u64, entry: u64| mem.write_obj(entry, GuestAddress(address)).unwrap();
        set(ROOT + 256 * 8, 0x2000 | all);
        set(0x2000, 0x3000 | all);
        set(0x3000 + 2 * 8, 0x4000 | all);
        set(0x4000 + 5 * 8, 0x7000 | leaf);
        mem
    }

    fn translate(mem: &GuestRam, sregs: &kvm_sregs, access: Access) -> Result<u64, Exception> {
        Paging::new(sregs, 0).translate(mem, LINEAR, access).map_err(|trap| match trap {
            Trap::Exception(exception) => exception,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_page_is_found_and_marked() {
        let mem = tables(PRESENT | WRITABLE);
        assert_eq!(translate(&mem, &long_mode(), Access::Read), Ok(0x7123));
        let leaf = || mem.read_obj::<u64>(GuestAddress(0x4000 + 40)).unwrap();
        assert_eq!(leaf() & (ACCESSED | DIRTY), ACCESSED);
        assert_eq!(translate(&mem, &long_mode(), Access::Write), Ok(0x7123));
        assert_eq!(leaf() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        let top: u64 = mem.read_obj(GuestAddress(ROOT + 2048)).unwrap();
        assert_eq!(top & (ACCESSED | DIRTY), ACCESSED);
    }

    #[test]
    fn a_large_page_keeps_the_lower_bits() {
        let mem = tables(0);
        mem.write_obj(0x20_0000 | PRESENT | LARGE, GuestAddress(0x3000 + 16)).unwrap();
        assert_eq!(translate(&mem, &long_mode(), Access::Read), Ok(0x20_5123));
    }

    #[test]
    fn faults_carry_address_and_reason() {
        let absent = translate(&tables(0), &long_mode(), Access::Write);
        assert_eq!(absent, Err(Exception::page_fault(LINEAR, ERROR_WRITE)));
        let mut protected = long_mode();
        protected.cr0 |= CR0_WRITE_PROTECT;
        let read_only = tables(PRESENT);
        assert_eq!(
            translate(&read_only, &protected, Access::Write),
            Err(Exception::page_fault(LINEAR, ERROR_PRESENT | ERROR_WRITE))
        );
        assert!(translate(&read_only, &long_mode(), Access::Write).is_ok(), "supervisor without CR0.WP");
        let mut user = long_mode();
        user.cs.dpl = 3;
        assert_eq!(
            translate(&read_only, &user, Access::Read),
            Err(Exception::page_fault(LINEAR, ERROR_PRESENT | ERROR_USER))
        );
    }

    #[test]
    fn smap_guards_user_pages_unless_ac_is_set() {
        let mem = tables(PRESENT | USER);
        let mut sregs = long_mode();
        sregs.cr4 = CR4_SMAP;
        assert!(Paging::new(&sregs, 0).translate(&mem, LINEAR, Access::Read).is_err());
        assert!(Paging::new(&sregs, RFLAGS_ALIGNMENT_CHECK).translate(&mem, LINEAR, Access::Read).is_ok());
    }

    #[test]
    fn tables_outside_memory_end_the_walk() {
        let mut sregs = long_mode();
        sregs.cr3 = 0xf_ffff_f000;
        let trap = Paging::new(&sregs, 0).translate(&tables(PRESENT), LINEAR, Access::Read);
        assert!(matches!(trap, Err(Trap::Unsupported)));
    }

    #[test]
    fn canonical_addresses_depend_on_the_levels() {
        let four = Paging::new(&long_mode(), 0);
        assert!(four.is_canonical(LINEAR) && four.is_canonical(0x7fff_ffff_ffff));
        assert!(!four.is_canonical(0x8000_0000_0000));
        let mut sregs = long_mode();
        sregs.cr4 = CR4_LA57;
        assert!(Paging::new(&sregs, 0).is_canonical(0x8000_0000_0000));
    }
}
