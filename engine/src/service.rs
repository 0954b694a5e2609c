//! A process that serves many callers at once, each on a thread of its own (`lighter serve`), instead of one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static SERVING: AtomicBool = AtomicBool::new(false);
static SPAWNING: Mutex<()> = Mutex::new(());

/// From now on signals are the main thread's alone: nothing else in this process blocks or reads them.
pub fn enter() {
    SERVING.store(true, Ordering::Relaxed);
}

/// Whether [`enter`] was called.
pub(crate) fn is_serving() -> bool {
    SERVING.load(Ordering::Relaxed)
}

/// Held while descriptors are inheritable for one child, so that no other one gets them.
pub(crate) fn spawning() -> MutexGuard<'static, ()> {
    SPAWNING.lock().unwrap_or_else(PoisonError::into_inner)
}
