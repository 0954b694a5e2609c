//! Progress of a transfer, as events.

use std::sync::{Mutex, PoisonError};

use images::{Event, Progress};

use crate::transfer::Outlet;
use crate::types::Progress as Step;

/// A layer is told of again when so many more bytes of it have come.
const EVERY: u64 = 4 << 20;

/// Tells a client.
#[derive(Debug)]
pub struct Teller<'a> {
    state: Mutex<(&'a mut Outlet, u64)>,
}

impl<'a> Teller<'a> {
    /// Through `outlet`.
    pub fn new(outlet: &'a mut Outlet) -> Self {
        Self { state: Mutex::new((outlet, 0)) }
    }

    /// The outlet, for the last word.
    pub fn into_outlet(self) -> &'a mut Outlet {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Progress for Teller<'_> {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let moves = |position: u64| Some(position);
        let (step, what, position, size) = match event {
            Event::Resolving { image } => ("resolving", image.to_owned(), None, None),
            Event::Resolved { manifest, bytes, .. } => ("resolved", manifest.to_string(), None, Some(bytes)),
            Event::LayerCached { digest } => ("cached", digest.to_string(), None, None),
            Event::LayerWaiting { digest } => ("waiting", digest.to_string(), None, None),
            Event::LayerStarted { digest, size, resumed_at } => {
                ("started", digest.to_string(), moves(resumed_at), Some(size))
            }
            Event::LayerBytes { digest, position } => {
                if position.abs_diff(state.1) < EVERY {
                    return;
                }
                state.1 = position;
                ("bytes", digest.to_string(), moves(position), None)
            }
            Event::LayerDone { digest } => ("done", digest.to_string(), None, None),
            Event::Retrying { what, reason, .. } => ("retrying", format!("{what}: {reason}"), None, None),
            Event::RootfsBytes { position } => ("rootfs", String::new(), moves(position), None),
            Event::RootfsDone { size } => ("rootfs", String::new(), moves(size), Some(size)),
            Event::RootfsUnreadable { path } => ("unreadable", path.display().to_string(), None, None),
        };
        // The transfer goes on without a client: the next one finds what has come.
        let _ = state.0.event("progress", &Step { step: step.to_owned(), what, position, size });
    }
}
