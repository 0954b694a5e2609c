//! One token bucket. Knows no clock: the time is told.

use std::time::{Duration, Instant};

use super::BucketConfig;

const NANOS_PER_MILLI: i128 = 1_000_000;

/// Tokens come back steadily, `size` of them in a refill time, up to `size`. There may be more (a burst) or fewer than
/// none (a debt).
///
/// A token has as many parts as a refill time has nanoseconds, so that in each of these `size` parts come back and
/// nothing is ever rounded.
#[derive(Debug)]
pub struct TokenBucket {
    size: i128,
    parts_per_token: i128,
    parts: i128,
    /// Up to when what came back is in `parts`.
    counted_at: Instant,
}

impl TokenBucket {
    /// A full bucket, or `None` where the configuration means that there is no limit.
    pub fn new(config: &BucketConfig, now: Instant) -> Option<Self> {
        let size = i128::from(config.size);
        let parts_per_token = i128::from(config.refill_time_ms).saturating_mul(NANOS_PER_MILLI);
        let tokens = size.saturating_add(i128::from(config.one_time_burst));
        (size > 0 && parts_per_token > 0).then_some(Self {
            size,
            parts_per_token,
            parts: tokens.saturating_mul(parts_per_token),
            counted_at: now,
        })
    }

    /// How long there is no token; nothing if there is one at `now`.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        let missing = self.parts_per_token.saturating_sub(self.parts);
        if missing <= 0 {
            return Duration::ZERO;
        }
        let up = missing.saturating_add(self.size.saturating_sub(1));
        let nanos = up.checked_div(self.size).unwrap_or(i128::MAX);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes `tokens`, also those that are not there.
    pub fn take(&mut self, tokens: u64) {
        self.parts = self.parts.saturating_sub(i128::from(tokens).saturating_mul(self.parts_per_token));
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.counted_at).as_nanos();
        self.counted_at = self.counted_at.max(now);
        let came = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(self.size);
        // A burst that is left is kept; it does not come back.
        let full = self.size.saturating_mul(self.parts_per_token).max(self.parts);
        self.parts = self.parts.saturating_add(came).min(full);
    }
}
