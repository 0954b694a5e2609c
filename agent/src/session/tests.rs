//! Sessions over a socket pair, with real processes of the host in place of a container's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_protocol::STDIN_WINDOW;
use agent_protocol::message::ProcessPlan;
use rustix::event::{PollFd, Timespec, poll};
use rustix::process::{WaitOptions, waitpid};

use super::*;
use crate::container::Container;

/// The host's end, served on a thread of its own so that both directions can block.
struct Host {
    stream: UnixStream,
    decoder: Decoder,
}

impl Host {
    fn say(&mut self, message: &HostMessage) {
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Option<AgentMessage> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).unwrap() {
                0 => return None,
                count => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// Everything up to the end: stdout, stderr, credit given, last message.
    fn hear_all(&mut self) -> (Vec<u8>, Vec<u8>, usize, AgentMessage) {
        let (mut stdout, mut stderr, mut credit) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.hear().expect("a last message") {
                AgentMessage::Stdout(bytes) => stdout.extend(bytes),
                AgentMessage::Stderr(bytes) => stderr.extend(bytes),
                AgentMessage::StdinCredit(bytes) => credit += bytes as usize,
                AgentMessage::Hello { .. } | AgentMessage::Started { .. } => {}
                last => return (stdout, stderr, credit, last),
            }
        }
    }
}

/// Runs `host` against a session until it returns.
fn with_session<T: Send + 'static>(host: impl FnOnce(&mut Host) -> T + Send + 'static) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let thread = std::thread::spawn(move || host(&mut Host { stream: theirs, decoder: Decoder::default() }));
    let mut container = Container::running();
    let mut session = Session::new(ours.into(), 0);
    while !thread.is_finished() {
        let interest = session.interest();
        let mut fds: Vec<_> =
            interest.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let tick = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        poll(&mut fds, Some(&tick)).unwrap();
        let ready = interest.answer(&mut fds.iter().map(PollFd::revents));
        if let Some(pid) = session.process.as_ref().filter(|p| p.status().is_none()).map(Process::pid)
            && let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG)
        {
            session.child_ended(pid, crate::event_loop::status_of(status));
        }
        session.serve(ready, &mut container);
    }
    thread.join().unwrap()
}

fn plan(args: &[&str]) -> ProcessPlan {
    ProcessPlan {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into(), "FRUIT=pear".into()],
        cwd: "/tmp".into(),
        user: rustix::process::getuid().as_raw().to_string(),
        additional_groups: Vec::new(),
        terminal: None,
        stdin: true,
        rlimits: Vec::new(),
        capabilities: Vec::new(),
        no_new_privs: true,
    }
}

fn exec(args: &[&str]) -> HostMessage {
    HostMessage::Exec(Box::new(plan(args)))
}

/// These tests change user and groups in the child, which only root may.
fn not_root() -> bool {
    !rustix::process::geteuid().is_root()
}

fn run(args: &'static [&'static str]) -> (Vec<u8>, Vec<u8>, usize, AgentMessage) {
    with_session(move |host| {
        host.say(&exec(args));
        host.hear_all()
    })
}

#[test]
fn the_agent_speaks_first_and_names_its_version() {
    let hello = with_session(Host::hear);
    assert!(matches!(hello, Some(AgentMessage::Hello { protocol: PROTOCOL_VERSION, .. })), "{hello:?}");
}

#[test]
fn a_foreign_version_is_answered_with_a_reason_and_the_end() {
    let (failed, end) = with_session(|host| {
        host.hear();
        host.stream.write_all(&[2, 0, 0, 0, PROTOCOL_VERSION + 1, 0]).unwrap();
        (host.hear(), host.hear())
    });
    let Some(AgentMessage::Failed { message, .. }) = failed else { panic!("{failed:?}") };
    assert!(message.contains("version"), "{message}");
    assert_eq!(end, None);
}

#[test]
fn what_cannot_run_is_told_apart() {
    if not_root() {
        return;
    }
    let kind = |message| match message {
        AgentMessage::Failed { kind, .. } => kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(run(&["no-such-program"]).3), FailureKind::NotFound);
    assert_eq!(kind(run(&["/etc"]).3), FailureKind::NotExecutable);
    assert_eq!(kind(run(&["/etc/hostname"]).3), FailureKind::NotExecutable);
}

#[test]
fn environment_directory_limits_and_privileges_are_the_plans() {
    if not_root() {
        return;
    }
    let script = "pwd; echo $FRUIT; umask; ulimit -n; grep -E '^(NoNewPrivs|CapEff|CapBnd|SigIgn|SigBlk):' /proc/self/status";
    let (stdout, stderr, _, last) = with_session(move |host| {
        let mut plan = plan(&["sh", "-c", script]);
        plan.rlimits.push(("RLIMIT_NOFILE".into(), 77, 78));
        plan.capabilities = vec!["CAP_CHOWN".into(), "CAP_NET_RAW".into()];
        host.say(&HostMessage::Exec(Box::new(plan)));
        host.hear_all()
    });
    let stdout = String::from_utf8(stdout).unwrap();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[..4], ["/tmp", "pear", "0022", "77"], "{stdout}{}", String::from_utf8_lossy(&stderr));
    for expected in [
        "CapEff:\t0000000000002001",
        "CapBnd:\t0000000000002001",
        "NoNewPrivs:\t1",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(lines.contains(&expected), "{expected} in {stdout}");
    }
    // The Rust runtime ignores SIGPIPE; its children must not.
    let ignored = lines.iter().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 1 << (libc::SIGPIPE - 1), 0, "{stdout}");
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Code(0)));
}

#[test]
fn both_streams_arrive_whole_and_in_order_however_slow_the_reader() {
    if not_root() {
        return;
    }
    let script = "i=0; while [ $i -lt 40 ]; do seq $((i*2000)) $((i*2000+1999)); echo e$i >&2; i=$((i+1)); done; exit 9";
    let (stdout, stderr, last) = with_session(move |host| {
        host.say(&exec(&["sh", "-c", script]));
        std::thread::sleep(Duration::from_millis(300));
        let (stdout, stderr, _, last) = host.hear_all();
        (stdout, stderr, last)
    });
    let expected: String = (0..80_000).map(|n| format!("{n}\n")).collect();
    assert!(stdout == expected.as_bytes(), "{} bytes of {}", stdout.len(), expected.len());
    assert_eq!(stderr, (0..40).map(|n| format!("e{n}\n")).collect::<String>().as_bytes());
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Code(9)));
}

#[test]
fn stdin_goes_through_its_window_and_every_byte_is_credited() {
    if not_root() {
        return;
    }
    let sent: Vec<u8> = (0..STDIN_WINDOW).map(|n| ((n * 31) >> 3) as u8).collect();
    let copy = sent.clone();
    let (stdout, _, credit, last) = with_session(move |host| {
        host.say(&exec(&["cat"]));
        for part in copy.chunks(10_000) {
            host.say(&HostMessage::Stdin(part.to_vec()));
        }
        host.say(&HostMessage::StdinEof);
        host.hear_all()
    });
    assert!(stdout == sent);
    assert_eq!(credit, sent.len());
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Code(0)));
}

#[test]
fn a_host_that_overruns_the_window_is_cut_off() {
    if not_root() {
        return;
    }
    let (.., last) = with_session(|host| {
        host.say(&exec(&["sleep", "5"]));
        let mut bytes = Vec::new();
        for _ in 0..8 {
            frame::encode(&HostMessage::Stdin(vec![0; STDIN_WINDOW / 4]), &mut bytes).unwrap();
        }
        // The session may be closed before all of it was sent: that is the point.
        let _ = host.stream.write_all(&bytes);
        host.hear_all()
    });
    assert!(matches!(last, AgentMessage::Failed { kind: FailureKind::Agent, .. }), "{last:?}");
}

#[test]
fn signals_reach_the_process_and_its_end_by_one_is_told() {
    if not_root() {
        return;
    }
    let (stdout, _, _, last) = with_session(|host| {
        host.say(&exec(&["sh", "-c", "trap 'echo caught' USR1; echo ready; while sleep 0.05; do :; done"]));
        while !matches!(host.hear(), Some(AgentMessage::Stdout(bytes)) if bytes == b"ready\n") {}
        host.say(&HostMessage::Signal(libc::SIGUSR1));
        std::thread::sleep(Duration::from_millis(200));
        host.say(&HostMessage::Signal(libc::SIGKILL));
        host.hear_all()
    });
    assert_eq!(stdout, b"caught\n");
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Signal(9)));
}

#[test]
fn an_orphan_that_holds_the_pipes_does_not_hold_the_end() {
    if not_root() {
        return;
    }
    let (stdout, _, _, last) = run(&["sh", "-c", "echo now; sleep 3 & exit 4"]);
    assert_eq!(stdout, b"now\n");
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Code(4)));
}

#[test]
fn a_terminal_has_a_size_and_echoes() {
    if not_root() {
        return;
    }
    let (stdout, _, _, last) = with_session(|host| {
        let mut plan =
            plan(&["sh", "-c", "stty size; read line; echo got $line; tty > /dev/null && echo tty"]);
        plan.terminal = Some(agent_protocol::message::TerminalSize { rows: 33, columns: 99 });
        host.say(&HostMessage::Exec(Box::new(plan)));
        host.say(&HostMessage::Stdin(b"typed\n".to_vec()));
        host.hear_all()
    });
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(stdout.contains("33 99") && stdout.contains("got typed") && stdout.contains("tty"), "{stdout:?}");
    assert_eq!(last, AgentMessage::Exited(ExitStatus::Code(0)));
}
