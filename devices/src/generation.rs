//! Tells the guest that it was restored or cloned: a new identity, and clocks that are right again.
//!
//! Our kernel's driver (`docs/kernel.md`) writes three 32-bit registers at [`GENERATION_PORT`]: the guest
//! address of its [area](self#area), low and high half, and the interrupt vector by which it wants to hear of
//! a change; the last write arms the device. While no vCPU runs, the VMM calls [`Generation::renew`] and then
//! sends every vCPU the vector, so that no program runs before the kernel has dealt with it.
//!
//! The guest controls the three registers and all of the area. What is read from the area is only added to.
//!
//! # Area
//!
//! | offset | size | |
//! | --: | --: | --- |
//! | 0 | 4 | sequence: one more for each renewal |
//! | 4 | 4 | the sequence that the guest has dealt with; never written here |
//! | 8 | 8 | how many cycles the TSC ran on while the VM did not, in all, modulo 2^64 |
//! | 16 | 8 | the TSC at the time given next |
//! | 24 | 8 | CLOCK_REALTIME of the host in nanoseconds |
//! | 32 | 8 | nanoseconds during which the VM was not there; the guest takes them and leaves 0 |
//! | 40 | 32 | random bytes that no other VM gets |

use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestRam;
use crate::bus::BusDevice;

/// First I/O port of the device.
pub const GENERATION_PORT: u64 = 0x610;
/// Number of its ports.
pub const GENERATION_SIZE: u64 = 12;
/// Bytes of a generation's identity.
pub const ID_SIZE: usize = 32;

const ADDRESS_LOW: u64 = 0;
const ADDRESS_HIGH: u64 = 4;
const VECTOR: u64 = 8;

const SEQUENCE: u64 = 0;
const TSC_JUMP: u64 = 8;
const TSC: u64 = 16;
const REAL_NS: u64 = 24;
const PAUSED_NS: u64 = 32;
const ID: u64 = 40;

/// Vectors below are the processor's own exceptions.
const FIRST_VECTOR: u8 = 0x20;

/// What a restored guest is told.
pub struct Renewal {
    /// Random bytes of the host.
    pub id: [u8; ID_SIZE],
    /// The guest's TSC when it was saved.
    pub saved_tsc: u64,
    /// The guest's TSC now.
    pub tsc: u64,
    /// CLOCK_REALTIME of the host now, in nanoseconds.
    pub real_ns: u64,
    /// How long ago it was saved, in nanoseconds.
    pub paused_ns: u64,
}

/// What the driver has told the device.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct GenerationState {
    /// Guest address of the area.
    area: u64,
    /// Interrupt vector; 0 while there is no driver.
    vector: u8,
}

/// The device.
#[derive(Default)]
pub struct Generation {
    state: Mutex<GenerationState>,
}

impl Generation {
    /// A device without a driver.
    pub fn new() -> Self {
        Self::default()
    }

    /// The vector that the driver wants, if there is a driver.
    pub fn vector(&self) -> Option<u8> {
        Some(self.lock().vector).filter(|vector| *vector >= FIRST_VECTOR)
    }

    /// Writes `renewal` into the driver's area. No vCPU runs; afterwards every vCPU gets the vector returned.
    /// `None`: there is no driver to tell, or its area is not memory.
    pub fn renew(&self, memory: &GuestRam, renewal: &Renewal) -> Option<u8> {
        let vector = self.vector()?;
        let area = self.lock().area;
        write_area(memory, area, renewal).ok()?;
        Some(vector)
    }

    /// What must survive a snapshot.
    pub fn state(&self) -> GenerationState {
        *self.lock()
    }

    /// Takes a saved state; any is allowed, as the guest could have made it.
    pub fn restore(&self, state: GenerationState) {
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, GenerationState> {
        self.state.lock().expect("invariant: nobody panics while holding the lock")
    }
}

impl BusDevice for Generation {
    /// There is nothing to read.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        let mut state = self.lock();
        match offset {
            ADDRESS_LOW => state.area = (state.area & !0xffff_ffff) | u64::from(value),
            ADDRESS_HIGH => state.area = (state.area & 0xffff_ffff) | (u64::from(value) << 32),
            VECTOR => state.vector = u8::try_from(value).unwrap_or(0),
            _ => {}
        }
    }
}

fn write_area(memory: &GuestRam, area: u64, renewal: &Renewal) -> Result<(), GuestMemoryError> {
    let at = |offset: u64| GuestAddress(area.wrapping_add(offset));
    let sequence: u32 = memory.read_obj(at(SEQUENCE))?;
    let jump: u64 = memory.read_obj(at(TSC_JUMP))?;
    let untaken: u64 = memory.read_obj(at(PAUSED_NS))?;
    memory.write_slice(&renewal.id, at(ID))?;
    memory.write_obj(renewal.real_ns, at(REAL_NS))?;
    memory.write_obj(renewal.tsc, at(TSC))?;
    memory.write_obj(untaken.wrapping_add(renewal.paused_ns), at(PAUSED_NS))?;
    let further = renewal.tsc.wrapping_sub(renewal.saved_tsc);
    memory.write_obj(jump.wrapping_add(further), at(TSC_JUMP))?;
    memory.write_obj(sequence.wrapping_add(1), at(SEQUENCE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::guest_ram;

    const AREA: u64 = 0x1080;

    fn memory() -> GuestRam {
        guest_ram(0x10000)
    }

    fn armed(area: u64, vector: u32) -> Generation {
        let device = Generation::new();
        device.write(ADDRESS_LOW, &(area as u32).to_le_bytes());
        device.write(ADDRESS_HIGH, &((area >> 32) as u32).to_le_bytes());
        device.write(VECTOR, &vector.to_le_bytes());
        device
    }

    fn renewal(saved_tsc: u64, tsc: u64) -> Renewal {
        Renewal { id: [7; ID_SIZE], saved_tsc, tsc, real_ns: 1_000, paused_ns: 30 }
    }

    fn words(memory: &GuestRam) -> [u64; 5] {
        std::array::from_fn(|index| memory.read_obj(GuestAddress(AREA + index as u64 * 8)).unwrap())
    }

    #[test]
    fn without_a_driver_nothing_is_written() {
        let memory = memory();
        assert_eq!(Generation::new().renew(&memory, &renewal(1, 2)), None);
        for vector in [0, 0x1f, 0x100, u32::MAX] {
            assert_eq!(armed(AREA, vector).renew(&memory, &renewal(1, 2)), None);
        }
        assert_eq!(words(&memory), [0; 5]);
    }

    #[test]
    fn a_renewal_fills_the_area_and_names_the_vector() {
        let memory = memory();
        assert_eq!(armed(AREA, 0xf7).renew(&memory, &renewal(100, 150)), Some(0xf7));
        assert_eq!(words(&memory), [1, 50, 150, 1_000, 30]);
        let id: [u8; ID_SIZE] = memory.read_obj(GuestAddress(AREA + ID)).unwrap();
        assert_eq!(id, [7; ID_SIZE]);
    }

    #[test]
    fn what_the_guest_has_not_taken_adds_up() {
        let memory = memory();
        let device = armed(AREA, 0xf7);
        device.renew(&memory, &renewal(100, 150));
        // To a host whose counter is behind.
        device.renew(&memory, &renewal(200, 20));
        assert_eq!(words(&memory), [2, 50_u64.wrapping_sub(180), 20, 1_000, 60]);
    }

    #[test]
    fn an_area_that_is_not_memory_is_left_alone() {
        for area in [0xfff8, 0x10000, u64::MAX, u64::MAX - 39] {
            assert_eq!(armed(area, 0xf7).renew(&memory(), &renewal(1, 2)), None, "{area:#x}");
        }
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let device = armed(AREA, 0xf7);
        let before = device.state();
        for (offset, data) in [(0, &[1_u8][..]), (8, &[0; 8]), (4, &[]), (2, &[0; 4]), (12, &[0; 4])] {
            device.write(offset, data);
        }
        assert_eq!(device.state(), before);
        let mut data = [1; 4];
        device.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_state_survives() {
        let device = armed(0x1_0000_2000, 0xf7);
        let bytes = postcard::to_allocvec(&device.state()).unwrap();
        let other = Generation::new();
        other.restore(postcard::from_bytes(&bytes).unwrap());
        assert_eq!(other.state(), device.state());
        assert_eq!(other.vector(), Some(0xf7));
    }
}
