//! What a signal to `lighter run` does: it is handed on, and whoever insists gets the end of the machine.

use std::time::{Duration, Instant};

/// So many Ctrl-C or SIGTERM ...
const INSISTING: usize = 3;
/// ... within this time mean that the container shall end now.
const WINDOW: Duration = Duration::from_secs(5);

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand it on to the container's process.
    Forward,
    /// End the machine at once.
    Kill,
}

/// Remembers when the user last asked for the end.
#[derive(Debug, Default)]
pub struct Escalation {
    asked: Vec<Instant>,
}

impl Escalation {
    /// The signal came at `now`.
    pub fn signal(&mut self, signal: i32, now: Instant) -> Action {
        if !matches!(signal, libc::SIGINT | libc::SIGTERM) {
            return Action::Forward;
        }
        self.asked.retain(|before| now.duration_since(*before) < WINDOW);
        self.asked.push(now);
        if self.asked.len() >= INSISTING { Action::Kill } else { Action::Forward }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_kill_and_three_in_a_minute_do_not() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut quick = Escalation::default();
        let actions = [libc::SIGINT, libc::SIGTERM, libc::SIGINT].map(|signal| quick.signal(signal, at(1)));
        assert_eq!(actions, [Action::Forward, Action::Forward, Action::Kill]);
        let mut slow = Escalation::default();
        assert!((0..6).all(|n| slow.signal(libc::SIGINT, at(n * 10)) == Action::Forward));
        let mut other = Escalation::default();
        assert!((0..6).all(|_| other.signal(libc::SIGUSR1, at(1)) == Action::Forward));
    }
}
