//! Register layout of the MMIO transport (virtio 1.2, section 4.2.2).

/// "virt", the value of MagicValue.
pub const MAGIC: u32 = 0x7472_6976;
/// Version 2: virtio 1.0 and later.
pub const VERSION: u32 = 2;
/// "LGHT", what VendorID reads as.
pub const VENDOR: u32 = 0x5448_474c;

/// Where the device's configuration space starts.
pub const CONFIG_OFFSET: u64 = 0x100;
/// Where the driver notifies a queue: the address of the ioeventfds, datamatch is the queue's index.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;
/// Bytes of address space that one transport takes.
pub const MMIO_SIZE: u64 = 0x1000;

/// Which half of a 64-bit queue address a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// The parts of a queue that have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueArea {
    /// Descriptor table.
    Desc,
    /// Available ring.
    Driver,
    /// Used ring.
    Device,
}

/// The 32-bit registers below the configuration space, named as in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueAddress(QueueArea, Half),
    SharedMemoryLength,
    SharedMemoryBase,
    ConfigGeneration,
}

impl Register {
    /// The register at `offset`, if there is one.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueNumMax,
            0x038 => Self::QueueNum,
            0x044 => Self::QueueReady,
            QUEUE_NOTIFY_OFFSET => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueAddress(QueueArea::Desc, Half::Low),
            0x084 => Self::QueueAddress(QueueArea::Desc, Half::High),
            0x090 => Self::QueueAddress(QueueArea::Driver, Half::Low),
            0x094 => Self::QueueAddress(QueueArea::Driver, Half::High),
            0x0a0 => Self::QueueAddress(QueueArea::Device, Half::Low),
            0x0a4 => Self::QueueAddress(QueueArea::Device, Half::High),
            0x0b0 | 0x0b4 => Self::SharedMemoryLength,
            0x0b8 | 0x0bc => Self::SharedMemoryBase,
            0x0fc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}

impl Half {
    /// `address` with this half replaced by `value`.
    pub fn replace(self, address: u64, value: u32) -> u64 {
        match self {
            Self::Low => (address & !0xffff_ffff) | u64::from(value),
            Self::High => (address & 0xffff_ffff) | (u64::from(value) << 32),
        }
    }
}
