//! The x86-64 machine as the guest sees it at boot: memory map, page tables, boot parameters, CPUID.
