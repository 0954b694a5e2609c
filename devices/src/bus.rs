//! Port and MMIO buses: which device answers at an address.
//!
//! A bus is filled while the VM is built and never changes afterwards, so a lookup takes no lock and the
//! vCPU threads share it through an `Arc`. A device that has state behind `&self` locks it itself.

use std::sync::Arc;

/// A device on a bus. Called by any vCPU thread, several at a time.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range could not be put on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or wraps around.
    #[error("bus range at {base:#x} with {len:#x} bytes is empty or wraps around")]
    InvalidRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device is there.
    #[error("bus range at {base:#x} with {len:#x} bytes overlaps the one at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the range that is there.
        other: u64,
    },
}

/// An address space of devices: the I/O ports, or the MMIO part of the physical addresses.
#[derive(Default)]
pub struct Bus {
    /// Sorted by address, without overlaps.
    ranges: Vec<Range>,
}

struct Range {
    first: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::InvalidRange { base, len })?;
        let at = self.ranges.partition_point(|range| range.last < base);
        if let Some(next) = self.ranges.get(at).filter(|next| next.first <= last) {
            return Err(BusError::Overlap { base, len, other: next.first });
        }
        self.ranges.insert(at, Range { first: base, last, device });
        Ok(())
    }

    /// Reads at `address`. Where no device answers every bit is one, as on real hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`. Where no device answers nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that owns all of the access, and the offset of the access in it.
    fn find(&self, address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let span = u64::try_from(len).ok()?.checked_sub(1)?;
        let last = address.checked_add(span)?;
        let at = self.ranges.partition_point(|range| range.last < address);
        let range = self.ranges.get(at).filter(|range| range.first <= address && last <= range.last)?;
        Some((range.device.as_ref(), address.checked_sub(range.first)?))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn a_device_gets_the_offset_in_its_own_range() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::new();
        bus.insert(0x200, 0x10, high.clone()).unwrap();
        bus.insert(0x100, 0x10, low.clone()).unwrap();
        bus.write(0x103, &[1, 2]);
        bus.write(0x20f, &[3]);
        assert_eq!(*low.0.lock().unwrap(), [(3, vec![1, 2])]);
        assert_eq!(*high.0.lock().unwrap(), [(15, vec![3])]);
        assert_eq!(read(&bus, 0x105), 5);
    }

    #[test]
    fn an_access_that_no_device_owns_wholly_reads_all_ones() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 4, device.clone()).unwrap();
        for address in [0, 0xff, 0x104, u64::MAX] {
            assert_eq!(read(&bus, address), 0xff, "{address:#x}");
        }
        let mut across = [0; 4];
        bus.read(0x102, &mut across);
        assert_eq!(across, [0xff; 4]);
        bus.write(0x102, &across);
        bus.write(u64::MAX, &across);
        assert!(device.0.lock().unwrap().is_empty());
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let device = || Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, device()).unwrap();
        for base in [0xf1, 0x100, 0x10f] {
            let error = bus.insert(base, 0x10, device()).unwrap_err();
            assert!(matches!(error, BusError::Overlap { other: 0x100, .. }), "{base:#x}");
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            let error = bus.insert(base, len, device()).unwrap_err();
            assert_eq!(error, BusError::InvalidRange { base, len });
        }
        bus.insert(0x110, 1, device()).unwrap();
        bus.insert(u64::MAX, 1, device()).unwrap();
        assert_eq!(read(&bus, u64::MAX), 0);
    }
}
