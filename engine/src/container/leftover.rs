//! A VMM process that outlived its owner: found by process ID *and* start time, so that a reused ID is never hit.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a killed VMM may take to vanish.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes `pid` and its start time to `path`.
pub fn record(path: &Path, pid: u32) -> io::Result<()> {
    let start = start_time(pid).ok_or(io::ErrorKind::NotFound)?;
    std::fs::write(path, format!("{pid} {start}\n"))
}

/// Kills the process that `path` records, if it still is that one, and waits for its end.
pub fn kill(path: &Path) {
    let Some((pid, start)) = read(path) else { return };
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // Asked only now: the descriptor holds on to the process, whoever it is.
    if start_time(pid) != Some(start) || !is_vmm(pid) {
        return;
    }
    if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
        let timeout = Timespec::try_from(DEATH_TIMEOUT).ok();
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref());
    }
}

fn read(path: &Path) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Field 22 of `/proc/PID/stat`: ticks since the host booted.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything, so count from its end.
    let after_name = stat.get(stat.rfind(')')? + 1..)?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn is_vmm(pid: u32) -> bool {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    matches!(cmdline.split(|byte| *byte == 0).nth(1), Some(b"vmm" | b"warden"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper(name: &str) -> std::process::Child {
        // `sh -c SCRIPT vmm` has "-c" as its first argument, `sh vmm` has "vmm".
        let dir = std::env::temp_dir();
        Command::new("sh").arg(name).current_dir(dir).stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn only_the_recorded_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("vmm");
        std::fs::write(&script, "sleep 1000 & wait").unwrap();
        let pid_file = dir.path().join("vmm.pid");
        let mut innocent = sleeper("-s");
        record(&pid_file, innocent.id()).unwrap();
        kill(&pid_file);
        assert!(innocent.try_wait().unwrap().is_none(), "a process that is no VMM was killed");

        std::fs::write(&pid_file, format!("{} 1\n", innocent.id())).unwrap();
        kill(&pid_file);
        assert!(innocent.try_wait().unwrap().is_none(), "a reused process ID was killed");
        drop(innocent.stdin.take());
        innocent.wait().unwrap();
    }

    #[test]
    fn a_recorded_vmm_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmm"), "read line").unwrap();
        let mut vmm =
            Command::new("sh").arg("vmm").current_dir(dir.path()).stdin(Stdio::piped()).spawn().unwrap();
        let pid_file = dir.path().join("vmm.pid");
        // The parent goes on before the kernel has laid out the new program's arguments.
        while !is_vmm(vmm.id()) {
            assert!(vmm.try_wait().unwrap().is_none(), "the process ended by itself");
            std::thread::yield_now();
        }
        record(&pid_file, vmm.id()).unwrap();
        kill(&pid_file);
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(vmm.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn nonsense_in_the_file_kills_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("vmm.pid");
        for text in ["", "1", "0 0", "-1 5", "1 0\n", "99999999999 1"] {
            std::fs::write(&pid_file, text).unwrap();
            kill(&pid_file);
        }
        kill(&dir.path().join("missing"));
    }
}
