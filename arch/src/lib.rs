//! The x86-64 machine as the guest sees it at boot: memory map, page tables, boot parameters, CPUID.
//!
//! Everything here is data and functions on guest memory; nothing here knows KVM's descriptors, a device
//! model or a thread. The `vmm` crate calls it in this order:
//!
//! ```text
//! layout::ram_regions -> kernel::load -> initrd::load -> cmdline -> boot_params -> mptable -> boot state
//! ```

pub mod boot_params;
pub mod boot_state;
pub mod cmdline;
pub mod cpuid;
pub mod initrd;
pub mod kernel;
pub mod layout;
mod map_file;
pub mod mptable;
pub mod msrs;
pub mod page_tables;
