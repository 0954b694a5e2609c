//! Trying again what may pass: a few attempts, with a pause that doubles.

use std::time::Duration;

use crate::progress::{Event, Progress};
use crate::registry::{MAX_RETRY_AFTER, RegistryError, Timing};

/// A failure that may come from a registry; any other is final.
pub(crate) trait Retryable: std::error::Error {
    /// The registry's part in it.
    fn registry(&self) -> Option<&RegistryError>;

    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
        self.registry().is_some_and(RegistryError::is_transient)
    }
}

impl Retryable for RegistryError {
    fn registry(&self) -> Option<&RegistryError> {
        Some(self)
    }
}

/// Counts attempts and waits between them.
pub(crate) struct Retries {
    timing: Timing,
    attempt: u32,
}

impl Retries {
    pub(crate) fn new(timing: Timing) -> Self {
        Self { timing, attempt: 1 }
    }

    /// Waits before the next attempt, or gives `error` back if there have been enough.
    pub(crate) fn pause<E: Retryable>(
        &mut self,
        error: E,
        what: &str,
        progress: &dyn Progress,
    ) -> Result<(), E> {
        if self.attempt >= self.timing.attempts {
            return Err(error);
        }
        let doubled = self.timing.backoff.saturating_mul(1 << (self.attempt - 1).min(6));
        let asked = error.registry().and_then(RegistryError::retry_after).unwrap_or(Duration::ZERO);
        self.attempt += 1;
        progress.event(Event::Retrying { what, reason: &error.to_string(), attempt: self.attempt });
        std::thread::sleep(doubled.max(asked).min(MAX_RETRY_AFTER));
        Ok(())
    }
}

/// Repeats `attempt` while it fails in a way that may pass.
pub(crate) fn retried<T, E: Retryable>(
    timing: Timing,
    what: &str,
    progress: &dyn Progress,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    let mut retries = Retries::new(timing);
    loop {
        match attempt() {
            Err(error) if error.is_transient() => retries.pause(error, what, progress)?,
            result => return result,
        }
    }
}
