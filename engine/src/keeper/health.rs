//! `--health-cmd`: a command that runs in the container again and again, and what its exit codes say.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{AgentMessage, ExitStatus, HostMessage, ProcessPlan};

use crate::container::spec::HealthSpec;
use crate::container::state::Health;
use crate::session::link::{Link, Received};

/// Runs the tests of one container.
#[derive(Debug)]
pub struct Checker {
    spec: HealthSpec,
    process: ProcessPlan,
    vsock: PathBuf,
    began: Option<Instant>,
    next: Instant,
    running: Option<Running>,
    result: Option<bool>,
    failures: u32,
    health: Health,
}

/// A test that runs.
#[derive(Debug)]
struct Running {
    link: Link,
    deadline: Instant,
}

impl Checker {
    /// Tests as `spec` says, in processes like `process`, through the vsock device's socket.
    pub fn new(spec: &HealthSpec, process: &ProcessPlan, vsock: PathBuf) -> Self {
        let process =
            ProcessPlan { args: spec.command.clone(), terminal: None, stdin: false, ..process.clone() };
        Self {
            spec: spec.clone(),
            process,
            vsock,
            began: None,
            next: Instant::now(),
            running: None,
            result: None,
            failures: 0,
            health: Health::Starting,
        }
    }

    /// The container's process runs since `now`.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.next = now + Duration::from_millis(self.spec.interval_ms);
    }

    /// What to poll for reading.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(|running| running.link.as_fd())
    }

    /// When [`Checker::tick`] is due.
    pub fn deadline(&self) -> Instant {
        self.running.as_ref().map_or(self.next, |running| running.deadline)
    }

    /// The agent said something.
    pub fn on_ready(&mut self) {
        let Some(running) = &mut self.running else { return };
        let messages = match running.link.flush().and_then(|()| running.link.receive()) {
            Ok(Received::Messages(messages)) => messages,
            Ok(Received::End) | Err(_) => return self.end(false),
        };
        for message in messages {
            match message {
                AgentMessage::Exited(status) => return self.end(status == ExitStatus::Code(0)),
                AgentMessage::Failed { .. } => return self.end(false),
                _ => {}
            }
        }
    }

    /// Does what is due; gives the health if it has changed.
    pub fn tick(&mut self, now: Instant) -> Option<Health> {
        let began = self.began?;
        if self.running.as_ref().is_some_and(|running| now >= running.deadline) {
            if let Some(running) = &mut self.running {
                // It may take the signal or not: this test is over.
                let _ = running.link.send(&HostMessage::Signal(libc::SIGKILL));
            }
            self.end(false);
        }
        let before = self.health;
        if let Some(healthy) = self.result.take() {
            self.next = now + Duration::from_millis(self.spec.interval_ms);
            self.judge(healthy, now < began + Duration::from_millis(self.spec.start_period_ms));
        }
        if self.running.is_none() && now >= self.next {
            self.start(now);
        }
        (self.health != before).then_some(self.health)
    }

    fn judge(&mut self, healthy: bool, starting: bool) {
        if healthy {
            (self.failures, self.health) = (0, Health::Healthy);
        } else if !starting || self.health != Health::Starting {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.spec.retries.max(1) {
                self.health = Health::Unhealthy;
            }
        }
    }

    fn start(&mut self, now: Instant) {
        let started = Link::dial(&self.vsock, AGENT_PORT).ok().and_then(|mut link| {
            link.send(&HostMessage::Exec(Box::new(self.process.clone()))).ok()?;
            Some(Running { link, deadline: now + Duration::from_millis(self.spec.timeout_ms) })
        });
        match started {
            Some(running) => self.running = Some(running),
            None => self.result = Some(false),
        }
    }

    fn end(&mut self, healthy: bool) {
        self.running = None;
        self.result = Some(healthy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checker(retries: u32, start_period_ms: u64) -> Checker {
        let spec = HealthSpec {
            command: vec!["true".into()],
            interval_ms: 1000,
            timeout_ms: 1000,
            start_period_ms,
            retries,
        };
        let id = crate::container::id::ContainerId::random();
        let plan = crate::container::spec::tests::example(&id).plan;
        Checker::new(&spec, plan.process(), "/nonexistent".into())
    }

    #[test]
    fn so_many_failures_in_a_row_make_it_unhealthy_and_one_success_heals_it() {
        let mut checker = checker(2, 0);
        let results = [false, true, false, false, true].map(|healthy| {
            checker.judge(healthy, false);
            checker.health
        });
        use Health::{Healthy, Starting, Unhealthy};
        assert_eq!(results, [Starting, Healthy, Healthy, Unhealthy, Healthy]);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count() {
        let mut checker = checker(1, 5000);
        checker.judge(false, true);
        assert_eq!(checker.health, Health::Starting);
        checker.judge(false, false);
        assert_eq!(checker.health, Health::Unhealthy);
    }

    #[test]
    fn a_test_that_cannot_be_started_is_a_failure() {
        let mut checker = checker(1, 0);
        let start = Instant::now();
        assert_eq!(checker.tick(start), None, "nothing runs before the process does");
        checker.begin(start);
        let later = start + Duration::from_secs(2);
        assert_eq!(checker.tick(later), None);
        assert_eq!(checker.tick(later), Some(Health::Unhealthy));
    }
}
