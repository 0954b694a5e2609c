//! Frames of a guest at the filter of `--egress-allow` in user mode.

use engine::network::wire::{Filter, Verdict, refusal};

/// The filter's whole rules: one network of each IP version.
const RULES: [&str; 2] = ["192.0.2.0/24", "2001:db8::/32"];

/// Judges one frame. What passes is for those networks, or between neighbours, wherever its headers say that it ends.
pub fn run(bytes: &[u8]) {
    let filter = Filter::new(RULES.map(|rule| rule.parse().unwrap()).into());
    let verdict = filter.leaving(bytes);
    let (kind, at) = (bytes.get(12..14), |at: usize, wanted: &[u8]| {
        bytes.get(at..).is_some_and(|address| address.starts_with(wanted))
    });
    match verdict {
        Verdict::Pass => assert!(match kind {
            Some([8, 0]) => at(30, &[192, 0, 2]),
            // Or neighbour discovery.
            Some([0x86, 0xdd]) => at(38, &[0x20, 1, 0x0d, 0xb8]) || (at(20, &[58]) && bytes[54] >= 133),
            kind => kind == Some(&[8, 6]),
        }),
        Verdict::Deny(denial) => {
            assert!(denial.port.is_none() || matches!(denial.protocol, 6 | 17));
            // What the guest hears is for the guest, and short.
            if let Some(answer) = refusal(bytes) {
                assert!(answer[..6] == bytes[6..12] && answer.len() <= 14 + 1280);
            }
        }
        Verdict::Drop => {}
    }
}
