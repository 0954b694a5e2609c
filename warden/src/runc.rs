//! The OCI runtime: runc, by its command line.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use agent::failure::{Context as _, Failure};
use agent_protocol::message::FailureKind;
use rustix::process::Pid;

use crate::names::BUNDLE;

/// Bytes of the runtime's messages that are looked at.
const MAX_LOG: u64 = 64 << 10;

/// Where runc is, if it is installed: `LIGHTER_RUNC`, or in PATH.
pub fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("LIGHTER_RUNC") {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("runc"))
        .find(|file| file.is_file())
}

/// The runtime of one container.
#[derive(Debug)]
pub struct Runc {
    program: PathBuf,
    id: String,
}

/// The process's ends of its standard streams.
pub enum Streams {
    /// Pipes.
    Pipes([OwnedFd; 3]),
    /// A terminal, whose master comes through a socket.
    Terminal,
}

impl Runc {
    /// For the container `id`.
    pub fn find(id: &str) -> Result<Self, Failure> {
        let missing = "--isolation container needs the OCI runtime runc, which is not in PATH: install it (Debian: \
                       apt install runc), or use --isolation vm";
        Ok(Self { program: program().ok_or_else(|| Failure::agent(missing))?, id: id.to_owned() })
    }

    /// Makes the container; its first process waits for [`Self::start`]. Gives that one and its terminal's master.
    pub fn create(&self, streams: Streams) -> Result<(Pid, Option<OwnedFd>), Failure> {
        self.launch(&["create", "--bundle", BUNDLE], streams)
    }

    /// Lets the first process go on.
    pub fn start(&self) -> Result<(), Failure> {
        self.run(Command::new(&self.program), &["start"], None)
    }

    /// Starts one more process, which the file `process` describes.
    pub fn exec(&self, process: &str, streams: Streams) -> Result<(Pid, Option<OwnedFd>), Failure> {
        self.launch(&["exec", "--detach", "--process", process], streams)
    }

    /// Removes what is left of the container.
    pub fn delete(&self) {
        let _ = self.run(Command::new(&self.program), &["delete", "--force"], None);
    }

    fn launch(&self, verb: &[&str], streams: Streams) -> Result<(Pid, Option<OwnedFd>), Failure> {
        let (pid_file, socket) = (format!("{BUNDLE}/pid"), format!("{BUNDLE}/console"));
        let mut arguments = [verb, &["--pid-file", &pid_file]].concat();
        let mut command = Command::new(&self.program);
        let listener = match streams {
            Streams::Pipes([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                None
            }
            Streams::Terminal => {
                let _ = fs::remove_file(&socket);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                arguments.extend(["--console-socket", &socket]);
                Some(UnixListener::bind(&socket).during("listen for the terminal")?)
            }
        };
        self.run(command, &arguments, Some(&pid_file))?;
        let master = listener.map(|listener| receive(&listener)).transpose()?;
        let pid = fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        let pid = pid.and_then(Pid::from_raw).ok_or_else(|| Failure::agent("runc named no process"))?;
        Ok((pid, master))
    }

    /// Runs runc to its end. Its messages come through its log: its standard streams may be the container's.
    fn run(&self, mut command: Command, arguments: &[&str], pid_file: Option<&str>) -> Result<(), Failure> {
        let log = format!("{BUNDLE}/log");
        for file in [Some(log.as_str()), pid_file].into_iter().flatten() {
            let _ = fs::remove_file(file);
        }
        if pid_file.is_none() {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let state = format!("{BUNDLE}/state");
        let global = ["--root", &state, "--log", &log, "--log-format", "json"];
        // SAFETY: between fork and exec the child only calls sigprocmask, which is safe there.
        unsafe { command.pre_exec(no_signals_blocked) };
        let status = command.args(global).args(arguments).arg(&self.id).status();
        match status.during(&format!("run {}", self.program.display()))?.success() {
            true => Ok(()),
            false => Err(explain(&read_log(&log))),
        }
    }
}

/// The runtime hands its mask on to the container, and ours blocks SIGCHLD.
fn no_signals_blocked() -> std::io::Result<()> {
    // SAFETY: the set is a plain bit mask, filled before use.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    Ok(())
}

/// The last error of a log of JSON lines.
fn read_log(path: &str) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_LOG).read_to_string(&mut text);
    }
    let message = |line: &str| -> Option<String> {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
    };
    text.lines().filter_map(message).next_back().unwrap_or_else(|| "it did not say why".to_owned())
}

/// Which exit code a message of runc means, as Docker takes it.
fn explain(message: &str) -> Failure {
    let of_program = message.contains("exec: ") || message.contains("exec /");
    let kind = match () {
        () if of_program && (message.contains("not found in $PATH") || message.contains("no such file")) => {
            FailureKind::NotFound
        }
        () if of_program => FailureKind::NotExecutable,
        () => FailureKind::Agent,
    };
    Failure { kind, message: format!("runc: {message}") }
}

/// The terminal's master, as runc sends it: one descriptor with a message (runc's docs/terminals.md).
fn receive(listener: &UnixListener) -> Result<OwnedFd, Failure> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().during("take the terminal")?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 256];
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .during("take the terminal")?;
    let mut rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    rights.next().ok_or_else(|| Failure::agent("runc sent no terminal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_the_exit_codes_of_docker() {
        let kind = |text: &str| explain(text).kind;
        assert_eq!(kind(r#"exec: "nope": executable file not found in $PATH"#), FailureKind::NotFound);
        assert_eq!(kind(r#"exec: "/etc": permission denied"#), FailureKind::NotExecutable);
        assert_eq!(kind(r#"exec: "/x": stat /x: no such file or directory"#), FailureKind::NotFound);
        assert_eq!(kind("error mounting proc: no such file or directory"), FailureKind::Agent);
    }

    #[test]
    fn the_last_error_of_a_log_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "{\"level\":\"error\",\"msg\":\"one\"}\nnonsense\n{\"level\":\"error\",\"msg\":\"two\"}\n",
        )
        .unwrap();
        assert_eq!(read_log(file.path().to_str().unwrap()), "two");
        assert!(read_log("/no/such/log").contains("did not say"));
    }
}
