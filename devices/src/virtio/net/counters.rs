//! What the device counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Frames since the device was made. Relaxed: each number stands for itself.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames that the guest received.
    pub rx_frames: AtomicU64,
    /// Frames of the host that the guest's buffers could never hold, or that were none.
    pub rx_dropped: AtomicU64,
    /// Frames that the host took from the guest.
    pub tx_frames: AtomicU64,
    /// Frames of the guest that the host refused: interface down, wrong header, no memory.
    pub tx_dropped: AtomicU64,
}

impl Counters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
