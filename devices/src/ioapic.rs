//! The I/O APIC in user space, 24 pins (Intel 82093AA, with the EOI register of version 0x20).
//!
//! KVM's split irqchip has the local APICs only. A device's irqfd goes to a GSI, and a GSI's route is an
//! MSI: this model turns each redirection entry into the MSI that it stands for. So the pins have no level
//! here; an edge on a masked pin is lost, as on hardware, because the GSI has no route then.
//!
//! The guest controls every register.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

/// Number of pins, which are GSI 0 to 23.
pub const IOAPIC_PINS: usize = 24;
/// Bytes of address space.
pub const IOAPIC_SIZE: u64 = 0x1000;

/// Index register.
const IOREGSEL: u64 = 0x00;
/// Window on the register that the index selects.
const IOWIN: u64 = 0x10;
/// Vector whose interrupt has ended.
const EOI: u64 = 0x40;

/// Version 0x20, and the number of the last pin.
const VERSION: u32 = 0x0017_0020;

/// Redirection entry: the bits that the guest writes; delivery status and remote IRR are read-only.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const VECTOR: u64 = 0xff;
const DELIVERY_MODE_SHIFT: u32 = 8;
const DELIVERY_MODE: u64 = 0x7;
const DELIVERY_MODE_EXTINT: u64 = 0x7;
const LOGICAL_DESTINATION: u64 = 1 << 11;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// Where MSIs are written (Intel SDM volume 3, section 11.11).
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_LOGICAL_DESTINATION: u64 = 1 << 2;
const MSI_LEVEL_TRIGGERED: u64 = 1 << 15;
const MSI_LEVEL_ASSERT: u64 = 1 << 14;

/// A message signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Physical address that is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Carries routes to KVM. Called under the I/O APIC's lock: must not call it.
pub trait MsiRouter: Send + Sync {
    /// An interrupt on `gsi` is `route` from now on; without one it goes nowhere.
    fn update(&self, gsi: u32, route: Option<Msi>);
    /// All GSIs are routed like this from now on, at the price of one change.
    fn update_all(&self, routes: [Option<Msi>; IOAPIC_PINS]);
    /// The guest has handled a level-triggered interrupt of `gsi`: raise it again if its device still
    /// wants it.
    fn resample(&self, gsi: u32);
}

/// What a snapshot keeps of an [`Ioapic`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct IoapicState {
    index: u8,
    id: u8,
    entries: [u64; IOAPIC_PINS],
}

/// The I/O APIC.
pub struct Ioapic {
    router: Arc<dyn MsiRouter>,
    state: Mutex<IoapicState>,
}

impl Ioapic {
    /// An I/O APIC after reset: each pin is masked and no GSI has a route.
    pub fn new(router: Arc<dyn MsiRouter>) -> Self {
        let state = IoapicState { index: 0, id: 0, entries: [MASKED; IOAPIC_PINS] };
        Self { router, state: Mutex::new(state) }
    }

    /// KVM reports the end of an interrupt with this vector whose trigger mode is level.
    pub fn end_of_interrupt(&self, vector: u8) {
        let state = self.lock();
        for (gsi, &entry) in (0..).zip(&state.entries) {
            let unmasked_level = entry & (LEVEL_TRIGGERED | MASKED) == LEVEL_TRIGGERED;
            if unmasked_level && entry & VECTOR == u64::from(vector) {
                self.router.resample(gsi);
            }
        }
    }

    /// For a snapshot.
    pub fn state(&self) -> IoapicState {
        self.lock().clone()
    }

    /// Loads a saved state and hands out its routes. Each value of each field is one that a guest could
    /// have written, or is made so.
    pub fn restore(&self, saved: &IoapicState) {
        let mut state = self.lock();
        state.index = saved.index;
        state.id = saved.id & 0xf;
        state.entries = saved.entries.map(|entry| entry & WRITABLE);
        self.router.update_all(state.entries.map(route));
    }

    fn read_register(&self) -> u32 {
        let state = self.lock();
        match Selected::from_index(state.index) {
            Selected::Id | Selected::Arbitration => u32::from(state.id) << 24,
            Selected::Version => VERSION,
            Selected::Entry { pin, high } => {
                let entry = state.entries.get(pin).copied().unwrap_or(0);
                let word = if high { entry >> 32 } else { entry & 0xffff_ffff };
                u32::try_from(word).unwrap_or(0)
            }
            Selected::None => 0,
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = self.lock();
        match Selected::from_index(state.index) {
            Selected::Id => state.id = value.to_be_bytes()[0] & 0xf,
            Selected::Entry { pin, high } => {
                let (Some(entry), Ok(gsi)) = (state.entries.get_mut(pin), u32::try_from(pin)) else {
                    return;
                };
                let new = if high {
                    (*entry & 0xffff_ffff) | (u64::from(value) << 32)
                } else {
                    (*entry & !0xffff_ffff) | u64::from(value)
                };
                self.replace(gsi, entry, new);
            }
            Selected::Version | Selected::Arbitration | Selected::None => {}
        }
    }

    /// Sets a redirection entry, and its route if that is another one now.
    fn replace(&self, gsi: u32, entry: &mut u64, new: u64) {
        let before = route(*entry);
        *entry = new & WRITABLE;
        let after = route(*entry);
        if before != after {
            self.router.update(gsi, after);
        }
    }

    fn lock(&self) -> MutexGuard<'_, IoapicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers are accessed with 32 bits; a shorter read gives the low bytes, a shorter write does nothing.
impl BusDevice for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            IOREGSEL => self.lock().index.into(),
            IOWIN => self.read_register(),
            _ => 0,
        };
        for (byte, register_byte) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = register_byte;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match offset {
            IOREGSEL => self.lock().index = word[0],
            IOWIN => self.write_register(u32::from_le_bytes(word)),
            EOI => self.end_of_interrupt(word[0]),
            _ => {}
        }
    }
}

/// What the index register selects.
enum Selected {
    Id,
    Version,
    Arbitration,
    Entry { pin: usize, high: bool },
    None,
}

impl Selected {
    fn from_index(index: u8) -> Self {
        match index {
            0x00 => Self::Id,
            0x01 => Self::Version,
            0x02 => Self::Arbitration,
            0x10..=0x3f => {
                Self::Entry { pin: usize::from(index.wrapping_sub(0x10) >> 1), high: index & 1 != 0 }
            }
            _ => Self::None,
        }
    }
}

/// The MSI that a redirection entry stands for. There is no 8259 behind an ExtINT entry, so it has none.
fn route(entry: u64) -> Option<Msi> {
    let delivery_mode = (entry >> DELIVERY_MODE_SHIFT) & DELIVERY_MODE;
    if entry & MASKED != 0 || delivery_mode == DELIVERY_MODE_EXTINT {
        return None;
    }
    let mut address = MSI_ADDRESS | ((entry >> DESTINATION_SHIFT) << MSI_DESTINATION_SHIFT);
    if entry & LOGICAL_DESTINATION != 0 {
        address |= MSI_LOGICAL_DESTINATION;
    }
    let mut data = (entry & VECTOR) | (delivery_mode << DELIVERY_MODE_SHIFT);
    if entry & LEVEL_TRIGGERED != 0 {
        data |= MSI_LEVEL_TRIGGERED | MSI_LEVEL_ASSERT;
    }
    Some(Msi { address, data: u32::try_from(data).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Call {
        Update(u32, Option<Msi>),
        UpdateAll(Box<[Option<Msi>; IOAPIC_PINS]>),
        Resample(u32),
    }

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Call>>);

    impl Recorder {
        fn take(&self) -> Vec<Call> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MsiRouter for Recorder {
        fn update(&self, gsi: u32, route: Option<Msi>) {
            self.0.lock().unwrap().push(Call::Update(gsi, route));
        }

        fn update_all(&self, routes: [Option<Msi>; IOAPIC_PINS]) {
            self.0.lock().unwrap().push(Call::UpdateAll(Box::new(routes)));
        }

        fn resample(&self, gsi: u32) {
            self.0.lock().unwrap().push(Call::Resample(gsi));
        }
    }

    fn ioapic() -> (Ioapic, Arc<Recorder>) {
        let router = Arc::new(Recorder::default());
        (Ioapic::new(router.clone()), router)
    }

    fn write(ioapic: &Ioapic, index: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(index).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn read(ioapic: &Ioapic, index: u8) -> u32 {
        ioapic.write(IOREGSEL, &u32::from(index).to_le_bytes());
        let mut word = [0; 4];
        ioapic.read(IOWIN, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn registers_read_as_the_specification_says() {
        let (ioapic, _) = ioapic();
        assert_eq!(read(&ioapic, 1), 0x0017_0020);
        assert_eq!(read(&ioapic, 0x10), 0x1_0000);
        write(&ioapic, 0, 0xff00_0000);
        assert_eq!(read(&ioapic, 0), 0x0f00_0000);
        write(&ioapic, 0x3f, 0xffff_ffff);
        assert_eq!(read(&ioapic, 0x3f), 0xff00_0000);
        for index in [0x03, 0x0f, 0x40, 0xff] {
            write(&ioapic, index, 0xffff_ffff);
            assert_eq!(read(&ioapic, index), 0, "{index:#x}");
        }
        let mut other = [0xaa; 4];
        ioapic.read(0x20, &mut other);
        assert_eq!(other, [0; 4]);
    }

    #[test]
    fn read_only_bits_of_an_entry_stay_clear() {
        let (ioapic, _) = ioapic();
        write(&ioapic, 0x10, 0xffff_ffff);
        assert_eq!(read(&ioapic, 0x10), 0x0001_afff);
    }

    #[test]
    fn a_route_is_told_once_when_it_changes() {
        let (ioapic, router) = ioapic();
        write(&ioapic, 0x1b, 3 << 24);
        write(&ioapic, 0x1a, 0x1_0031);
        assert_eq!(router.take(), []);
        write(&ioapic, 0x1a, 0x31);
        let msi = Msi { address: 0xfee0_3000, data: 0x31 };
        assert_eq!(router.take(), [Call::Update(5, Some(msi))]);
        write(&ioapic, 0x1a, 0x31);
        assert_eq!(router.take(), []);
        write(&ioapic, 0x1a, 0x1_0031);
        assert_eq!(router.take(), [Call::Update(5, None)]);
    }

    #[test]
    fn every_part_of_an_entry_reaches_the_message() {
        let table = [
            (0x0000_0000_0000_0031, Some((0xfee0_0000, 0x0031))),
            (0xff00_0000_0000_0031, Some((0xfeef_f000, 0x0031))),
            (0x0100_0000_0000_0831, Some((0xfee0_1004, 0x0031))),
            (0x0000_0000_0000_0131, Some((0xfee0_0000, 0x0131))),
            (0x0000_0000_0000_8031, Some((0xfee0_0000, 0xc031))),
            (0x0000_0000_0000_0731, None),
            (0x0000_0000_0001_0031, None),
        ];
        for (entry, expected) in table {
            let expected = expected.map(|(address, data)| Msi { address, data });
            assert_eq!(route(entry), expected, "{entry:#x}");
        }
    }

    #[test]
    fn the_end_of_a_level_interrupt_resamples_the_pins_with_its_vector() {
        let (ioapic, router) = ioapic();
        write(&ioapic, 0x10, 0x8040);
        write(&ioapic, 0x12, 0x8041);
        write(&ioapic, 0x14, 0x0040);
        write(&ioapic, 0x16, 0x1_8040);
        write(&ioapic, 0x18, 0x8040);
        router.take();
        ioapic.end_of_interrupt(0x40);
        assert_eq!(router.take(), [Call::Resample(0), Call::Resample(4)]);
        ioapic.write(EOI, &0x41u32.to_le_bytes());
        assert_eq!(router.take(), [Call::Resample(1)]);
    }

    #[test]
    fn a_restored_state_brings_its_routes() {
        let (saved, _) = ioapic();
        write(&saved, 0, 2 << 24);
        write(&saved, 0x1a, 0x31);
        let bytes = postcard::to_allocvec(&saved.state()).unwrap();
        let (restored, router) = ioapic();
        restored.restore(&postcard::from_bytes(&bytes).unwrap());
        let mut routes = [const { None }; IOAPIC_PINS];
        routes[5] = Some(Msi { address: 0xfee0_0000, data: 0x31 });
        assert_eq!(router.take(), [Call::UpdateAll(Box::new(routes))]);
        assert_eq!(restored.state(), saved.state());
    }

    #[test]
    fn a_hostile_state_sets_only_bits_that_a_guest_can_set() {
        let (ioapic, _) = ioapic();
        ioapic.restore(&IoapicState { index: 0xff, id: 0xff, entries: [u64::MAX; IOAPIC_PINS] });
        assert_eq!(read(&ioapic, 0), 0x0f00_0000);
        assert_eq!(read(&ioapic, 0x10), 0x0001_afff);
    }
}
