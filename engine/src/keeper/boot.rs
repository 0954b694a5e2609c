//! Watching a guest come up: which drivers answered, how long nothing happened, and what that means.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm::config::{VmConfig, VmEvent, VmExit};

/// A guest that shows no progress for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where the host emulates guest ring 0: a boot takes a thousand times longer there.
const PATIENCE_EMULATED: Duration = Duration::from_secs(300);
/// Lines of the guest's console that an error shows.
const CONSOLE_LINES: usize = 12;
/// Bytes of the console log that are looked at for them.
const CONSOLE_BYTES: u64 = 16 << 10;

/// How far the guest is.
#[derive(Debug)]
pub struct Boot {
    /// Devices whose driver has not yet answered, with the driver's name.
    waiting: Vec<(String, &'static str)>,
    /// It goes on from a template, in which all drivers are up.
    cloned: bool,
    emulated: bool,
    last_progress: Instant,
    exit: Option<VmExit>,
}

impl Boot {
    /// Nothing has happened yet.
    pub fn new(config: &VmConfig, now: Instant) -> Self {
        let disks = config.disks.iter().zip(b'a'..=b'z').map(|(_, letter)| {
            let name = format!("vd{}", char::from(letter));
            (name, "virtio-blk")
        });
        let net = (0..config.net.len()).map(|number| (format!("eth{number}"), "virtio-net"));
        let vsock = config.vsock.iter().map(|_| ("vsock".to_owned(), "virtio-vsock"));
        Self {
            waiting: disks.chain(net).chain(vsock).collect(),
            cloned: config.restore.is_some(),
            emulated: false,
            last_progress: now,
            exit: None,
        }
    }

    /// The VMM reported something.
    pub fn event(&mut self, event: &VmEvent, now: Instant) {
        self.last_progress = now;
        match event {
            VmEvent::Started { emulated_ring0, .. } => self.emulated = *emulated_ring0,
            VmEvent::DriverReady { device } => self.waiting.retain(|(name, _)| name != device),
            VmEvent::Exited(exit) => self.exit = Some(exit.clone()),
            VmEvent::Failed { .. } => {}
        }
    }

    /// The agent made itself heard.
    pub fn progress(&mut self, now: Instant) {
        self.last_progress = now;
    }

    /// When the guest counts as stuck.
    pub fn deadline(&self) -> Instant {
        self.last_progress + self.patience()
    }

    fn patience(&self) -> Duration {
        if self.emulated { PATIENCE_EMULATED } else { PATIENCE }
    }

    /// Why the VM ended, if it said so.
    pub fn exit(&self) -> Option<&VmExit> {
        self.exit.as_ref()
    }

    /// What a guest that ended or got stuck before its agent answered most likely lacks, and what it said.
    pub fn diagnosis(&self, stuck: bool, console: &Path) -> String {
        let mut text = match (&self.exit, stuck) {
            (Some(exit), _) => format!("the guest ended before its agent answered: {}", describe(exit)),
            (None, true) => {
                format!("the guest showed no progress for {} s and was ended", self.patience().as_secs())
            }
            (None, false) => "the virtual machine ended before the agent in the guest answered".to_owned(),
        };
        if self.emulated && matches!(self.exit, Some(VmExit::GuestFault { .. })) {
            text.push_str(
                "\nKVM emulates guest kernels on this host, which few kernels but lighter's own survive; on hardware \
                 this one may work",
            );
        }
        if self.cloned {
            text.push_str(
                "\nit is a clone of its image's template: --cold boots instead, `lighter system prune` removes templates",
            );
            return text + &console_tail(console);
        }
        let mut drivers: Vec<&str> = self.waiting.iter().map(|(_, driver)| *driver).collect();
        drivers.dedup();
        if drivers.is_empty() {
            text.push_str(
                "\nall its drivers came up; the kernel may lack EROFS, ext4, overlayfs or vsock sockets: see \
                 docs/kernel.md",
            );
        } else {
            let devices: Vec<&str> = self.waiting.iter().map(|(device, _)| device.as_str()).collect();
            let _ = write!(
                text,
                "\nno driver came up for {}: this kernel lacks {} (built in, over virtio-mmio), or did not get that \
                 far: see docs/kernel.md",
                devices.join(", "),
                drivers.join(", ")
            );
        }
        text + &console_tail(console)
    }
}

/// The last lines of the guest's console, as the end of a message.
pub fn console_tail(console: &Path) -> String {
    let lines = crate::text::last_lines(console, CONSOLE_LINES, CONSOLE_BYTES);
    match lines.trim_end() {
        "" => "\nthe guest's console is empty".to_owned(),
        lines => format!("\nthe guest's console ends with:\n{lines}"),
    }
}

/// In words.
pub fn describe(exit: &VmExit) -> String {
    match exit {
        VmExit::PowerOff => "it powered off".to_owned(),
        VmExit::Reset => "it asked for a reset (a reboot or a kernel panic)".to_owned(),
        VmExit::GuestFault { what } => format!("it did what it cannot go on from: {what}"),
        VmExit::Stopped => "it was stopped from outside".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        serde_json::from_str(
            r#"{"vcpus":1,"mem_size_mib":64,"kernel":{"path":"/k"},
                "disks":[{"path":"/a","read_only":true},{"path":"/b","read_only":true}],
                "vsock":{"guest_cid":3,"uds_path":"/v"}}"#,
        )
        .unwrap()
    }

    fn ready(device: &str) -> VmEvent {
        VmEvent::DriverReady { device: device.into() }
    }

    #[test]
    fn a_driver_that_never_came_up_is_named() {
        let now = Instant::now();
        let mut boot = Boot::new(&config(), now);
        boot.event(&ready("vda"), now);
        boot.event(&ready("vdb"), now);
        boot.event(&VmEvent::Exited(VmExit::Reset), now);
        let text = boot.diagnosis(false, Path::new("/no/console"));
        assert!(text.contains("virtio-vsock") && !text.contains("virtio-blk"), "{text}");
        assert!(
            text.contains("reset") && text.contains("docs/kernel.md") && text.contains("is empty"),
            "{text}"
        );
        boot.event(&ready("vsock"), now);
        assert!(boot.diagnosis(false, Path::new("/no/console")).contains("EROFS"));
    }

    #[test]
    fn the_deadline_moves_with_progress_and_is_longer_where_ring_0_is_emulated() {
        let now = Instant::now();
        let later = now + Duration::from_secs(50);
        let mut boot = Boot::new(&config(), now);
        assert_eq!(boot.deadline(), now + PATIENCE);
        boot.event(&ready("vda"), later);
        assert_eq!(boot.deadline(), later + PATIENCE);
        let started =
            VmEvent::Started { process_start_ns: 0, built_ns: 0, first_run_ns: 0, emulated_ring0: true };
        boot.event(&started, later);
        assert_eq!(boot.deadline(), later + PATIENCE_EMULATED);
        assert!(boot.diagnosis(true, Path::new("/no/console")).contains("300 s"));
    }

    #[test]
    fn the_console_is_shown_without_control_characters() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "early\nKernel panic\x1b[0m - not syncing\n").unwrap();
        let text = console_tail(file.path());
        assert!(text.contains("    Kernel panic?[0m - not syncing"), "{text}");
    }
}
