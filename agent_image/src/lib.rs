//! The agent, ready to be put on a guest's disk as `/init`.

/// A static ELF program for x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

#[cfg(test)]
mod tests {
    use super::AGENT;

    /// Size limit of the agent: every page of it may be read at a guest's boot.
    const LIMIT: usize = 1280 << 10;
    const PT_INTERP: u32 = 3;

    #[test]
    fn the_agent_is_a_small_static_program() {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        assert!(AGENT.len() <= LIMIT, "{} bytes", AGENT.len());
        let half = |at: usize| usize::from(u16::from_le_bytes([AGENT[at], AGENT[at + 1]]));
        let (entry_size, count) = (half(54), half(56));
        let table = u64::from_le_bytes(AGENT[32..40].try_into().unwrap()) as usize;
        for index in 0..count {
            let at = table + index * entry_size;
            let kind = u32::from_le_bytes(AGENT[at..at + 4].try_into().unwrap());
            assert_ne!(kind, PT_INTERP, "the agent asks for a dynamic loader");
        }
    }
}
