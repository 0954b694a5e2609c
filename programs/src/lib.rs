//! The static programs that lighter carries inside itself: one runs in the guest, one around it.

/// An ELF program for x86-64 Linux that needs no file beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Differs where the content does.
    pub id: &'static str,
    /// The file.
    pub content: &'static [u8],
}

/// The agent, ready to be put on a guest's disk as `/init`.
pub const AGENT: Program = Program {
    id: include_str!(concat!(env!("OUT_DIR"), "/agent.id")),
    content: include_bytes!(concat!(env!("OUT_DIR"), "/agent")),
};

/// The VMM of containers, one process of it for each.
///
/// A program of its own because every VM pays for what it is made of: without a dynamic loader, without the rest of
/// lighter and without an API it starts sooner and takes less memory.
pub const MACHINE: Program = Program {
    id: include_str!(concat!(env!("OUT_DIR"), "/lighter-machine.id")),
    content: include_bytes!(concat!(env!("OUT_DIR"), "/lighter-machine")),
};

/// The VMM in place of Firecracker, with its API and command line.
pub const VMM: Program = Program {
    id: include_str!(concat!(env!("OUT_DIR"), "/lighter-vmm.id")),
    content: include_bytes!(concat!(env!("OUT_DIR"), "/lighter-vmm")),
};

/// What starts the latter confined, in place of Firecracker's jailer.
pub const JAILER: Program = Program {
    id: include_str!(concat!(env!("OUT_DIR"), "/lighter-jailer.id")),
    content: include_bytes!(concat!(env!("OUT_DIR"), "/lighter-jailer")),
};

/// What `lighter compare` runs inside: benchmarks, and attempts on the isolation.
pub const PROBE: Program = Program {
    id: include_str!(concat!(env!("OUT_DIR"), "/probe.id")),
    content: include_bytes!(concat!(env!("OUT_DIR"), "/probe")),
};

#[cfg(test)]
mod tests {
    use super::*;

    const PT_INTERP: u32 = 3;

    #[test]
    fn the_agent_is_a_small_static_program() {
        // Every page of it may be read at a guest's boot.
        assert_small_and_static(AGENT, 1344 << 10);
    }

    #[test]
    fn the_vmms_are_small_static_programs() {
        // Every page of it may be in the memory of each VM's process.
        assert_small_and_static(MACHINE, 2304 << 10);
        // With the API's virtio-mem, CPU templates and limits that no container has.
        assert_small_and_static(VMM, 2752 << 10);
    }

    #[test]
    fn the_jailer_is_a_small_static_program() {
        assert_small_and_static(JAILER, 1280 << 10);
    }

    #[test]
    fn the_probe_is_a_small_static_program() {
        assert_small_and_static(PROBE, 1536 << 10);
    }

    fn assert_small_and_static(program: Program, limit: usize) {
        let program = program.content;
        assert_eq!(&program[..4], b"\x7fELF");
        assert!(program.len() <= limit, "{} bytes", program.len());
        let half = |at: usize| usize::from(u16::from_le_bytes([program[at], program[at + 1]]));
        let (entry_size, count) = (half(54), half(56));
        let table = u64::from_le_bytes(program[32..40].try_into().unwrap()) as usize;
        for index in 0..count {
            let at = table + index * entry_size;
            let kind = u32::from_le_bytes(program[at..at + 4].try_into().unwrap());
            assert_ne!(kind, PT_INTERP, "it asks for a dynamic loader");
        }
    }
}
