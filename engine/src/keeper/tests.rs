//! Whole lives, from the agent and the VMM process, which the test plays, to the caller of `lighter run`.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use agent_protocol::frame::{self, Decoder};
use agent_protocol::message::{AgentMessage, ContainerPlan, ExitStatus, FailureKind, HostMessage};
use agent_protocol::{PROTOCOL_VERSION, STDIN_WINDOW};
use vmm::config::{VmConfig, VmEvent, VmExit};

use super::hub::Hub;
use super::life::{Life, Setup};
use super::protocol::Request;
use crate::log::LogSpec;
use crate::log::reader::Reader;
use crate::log::writer::Writer;
use crate::plan::{Plan, PlanOptions};
use crate::process::VmProcess;
use crate::session::link::Link;
use crate::session::peer::Peer;
use crate::session::signals::Signals;
use crate::session::{Caller, Leave, Manner, Outcome, SessionError, Streams};
use crate::trace::Trace;

/// The agent's side of a session.
struct Agent {
    stream: UnixStream,
    decoder: Decoder,
}

impl Agent {
    fn say(&mut self, message: AgentMessage) {
        let mut bytes = Vec::new();
        frame::encode(&message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message, `None` at the end.
    fn hear(&mut self) -> Option<HostMessage> {
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

    fn greet(&mut self) -> ContainerPlan {
        self.say(hello(PROTOCOL_VERSION));
        let Some(HostMessage::Start(plan)) = self.hear() else { panic!("no plan") };
        *plan
    }

    fn start(&mut self) {
        self.greet();
        self.say(AgentMessage::Started { pid: 7 });
    }
}

fn hello(protocol: u8) -> AgentMessage {
    AgentMessage::Hello { protocol, kernel_release: "6.12".into(), agent_start_ns: 5, now_ns: 9 }
}

/// The VMM's side: its event pipe and what ends its process.
struct Vmm {
    events: std::fs::File,
    stdin: std::process::ChildStdin,
}

impl Vmm {
    fn event(&mut self, event: &VmEvent) {
        writeln!(self.events, "{}", serde_json::to_string(event).unwrap()).unwrap();
    }

    /// The process ends, and with it the pipe.
    fn end(self) {
        drop((self.stdin, self.events));
    }
}

/// A pipe that the processes of other tests do not keep open.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// What a session gave and what it wrote.
struct Ended {
    result: Result<Outcome, SessionError>,
    stdout: Vec<u8>,
    phases: Vec<String>,
    /// What is in the container's log.
    logged: Vec<u8>,
}

/// Runs a session against `play`, which is the guest and the VMM. `input` is the caller's stdin.
fn session(input: Option<OwnedFd>, play: impl FnOnce(Agent, Vmm) + Send + 'static) -> Ended {
    let (reader, writer) = pipe();
    let reading: JoinHandle<Vec<u8>> = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(reader).read_to_end(&mut bytes).unwrap();
        bytes
    });
    let (result, phases, logged) = session_to(&writer, input, play);
    drop(writer);
    Ended { result, stdout: reading.join().unwrap(), phases, logged }
}

/// The same, with a stdout of the caller's.
fn session_to(
    stdout: &OwnedFd,
    input: Option<OwnedFd>,
    play: impl FnOnce(Agent, Vmm) + Send + 'static,
) -> (Result<Outcome, SessionError>, Vec<String>, Vec<u8>) {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("v.sock_1024");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (events, events_writer) = pipe();
    let vmm = Vmm { events: events_writer.into(), stdin: child.stdin.take().unwrap() };
    let vm = VmProcess::of_test(child, events, &base.path().join("vmm.log"));
    let guest = std::thread::spawn(move || {
        let agent = Agent { stream: UnixStream::connect(path).unwrap(), decoder: Decoder::default() };
        play(agent, vmm);
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Before there is a keeper, as `run` does it: no output comes sooner.
    let mut link: Link<Request, super::protocol::Reply> = Link::new(ours).unwrap();
    link.send(&Request::Attach { stdin: input.is_some(), size: None }).unwrap();
    let log = base.path().join("log");
    let (keeper_log, console) = (log.clone(), base.path().join("console.log"));
    let clients = UnixListener::bind(base.path().join("keeper.sock")).unwrap();
    let keeper = std::thread::spawn(move || {
        let config: VmConfig =
            serde_json::from_str(r#"{"vcpus":1,"mem_size_mib":64,"kernel":{"path":"/k"}}"#).unwrap();
        let options = PlanOptions { command: vec!["true".into()], ..PlanOptions::default() };
        let plan = Plan::new(&options, "i", &serde_json::from_str("{}").unwrap(), "id").unwrap();
        let signals = Signals::block().unwrap();
        let writer = Writer::open(&keeper_log, LogSpec::default()).unwrap();
        let mut hub = Hub::new(clients, Some(theirs), writer, true).unwrap();
        let mut trace = Trace::start();
        let setup = Setup {
            config: &config,
            agent: super::Agent::Connects(listener),
            plan: &|_| plan.finish(Default::default()),
            stop_signal: plan.stop_signal,
            stop_timeout: std::time::Duration::from_secs(10),
            orderly: false,
            console,
            signals: &signals,
            adopts: false,
            hub: &mut hub,
            trace: &mut trace,
            changed: &mut |_| (),
            ttl: None,
            health: None,
            wiring: None,
            used: &|_| None,
        };
        let result = Life::new(setup, vm).run();
        let outcome = match &result {
            Ok(outcome) => outcome.clone(),
            Err(error) => Outcome::Failed { message: error.to_string() },
        };
        hub.dismiss(&outcome).wait();
        (result, trace.report().phases.into_iter().map(|phase| phase.name).collect())
    });
    let manner = Manner { terminal: false, signals: true, owner: true, detach_keys: "".parse().unwrap() };
    let streams = Streams {
        stdin: input.as_ref().map(|fd| fd.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stdout.as_fd(),
    };
    let signals = Signals::block().unwrap();
    let mut trace = Trace::start();
    let left = Caller::new(Peer::Keeper(link), manner, streams, &signals, &mut trace, &|_| ()).run().unwrap();
    guest.join().unwrap();
    let (result, phases): (Result<Outcome, SessionError>, Vec<String>) = keeper.join().unwrap();
    let expected = match &result {
        Ok(outcome) => outcome.clone(),
        Err(error) => Outcome::Failed { message: error.to_string() },
    };
    assert_eq!(left, Leave::Ended(expected), "the caller heard of another end");
    let mut reader = Reader::new(&log);
    let logged =
        std::iter::from_fn(|| reader.next_record().unwrap()).flat_map(|record| record.bytes).collect();
    (result, phases, logged)
}

#[test]
fn output_comes_whole_and_before_the_end_and_the_phases_are_noted() {
    let ended = session(None, |mut agent, mut vmm| {
        vmm.event(&VmEvent::Started {
            process_start_ns: 0,
            built_ns: 0,
            first_run_ns: 0,
            emulated_ring0: true,
        });
        let plan = agent.greet();
        assert_eq!(plan.process.args, ["true"]);
        agent.say(AgentMessage::Started { pid: 7 });
        for byte in 0..100 {
            agent.say(AgentMessage::Stdout(vec![byte; 50_000]));
        }
        agent.say(AgentMessage::Exited(ExitStatus::Code(3)));
        assert_eq!(agent.hear(), None);
    });
    assert_eq!(ended.result.unwrap(), Outcome::Exited(ExitStatus::Code(3)));
    let expected: Vec<u8> = (0..100).flat_map(|byte| vec![byte; 50_000]).collect();
    let same = |what: &str, bytes: &[u8]| {
        let differs = expected.iter().zip(bytes).position(|(one, other)| one != other);
        assert!(
            bytes == expected,
            "{what}: {} bytes of {}, other from {differs:?}",
            bytes.len(),
            expected.len()
        );
    };
    same("stdout", &ended.stdout);
    same("log", &ended.logged);
    assert_eq!(ended.phases, ["spawn", "vmm", "kernel", "agent", "plan", "exec", "first byte"]);
}

#[test]
fn stdin_goes_as_far_as_the_agent_allows_and_its_end_follows() {
    let (reader, writer) = pipe();
    let writing = std::thread::spawn(move || {
        std::fs::File::from(writer).write_all(&vec![9; STDIN_WINDOW + 1000]).unwrap();
    });
    let ended = session(Some(reader), |mut agent, _vmm| {
        agent.start();
        let mut received = 0;
        while received < STDIN_WINDOW {
            let Some(HostMessage::Stdin(bytes)) = agent.hear() else { panic!("no stdin") };
            received += bytes.len();
        }
        assert_eq!(received, STDIN_WINDOW, "more than the window came");
        agent.say(AgentMessage::StdinCredit(1000));
        while received < STDIN_WINDOW + 1000 {
            let Some(HostMessage::Stdin(bytes)) = agent.hear() else { panic!("no stdin") };
            received += bytes.len();
        }
        agent.say(AgentMessage::StdinCredit(1));
        assert_eq!(agent.hear(), Some(HostMessage::StdinEof));
        agent.say(AgentMessage::Exited(ExitStatus::Code(0)));
    });
    writing.join().unwrap();
    assert_eq!(ended.result.unwrap(), Outcome::Exited(ExitStatus::Code(0)));
}

#[test]
fn a_process_that_was_not_started_is_told_apart() {
    let ended = session(None, |mut agent, _vmm| {
        agent.greet();
        agent.say(AgentMessage::Failed { kind: FailureKind::NotFound, message: "no\x1b[2J x".into() });
    });
    let outcome = ended.result.unwrap();
    assert_eq!(outcome.exit_code(), 127);
    assert_eq!(outcome, Outcome::NotStarted { kind: FailureKind::NotFound, message: "no?[2J x".into() });
}

#[test]
fn a_machine_that_is_lost_is_reported_after_its_output() {
    let ended = session(None, |mut agent, vmm| {
        agent.start();
        agent.say(AgentMessage::Stdout(b"last words".to_vec()));
        drop(agent);
        vmm.end();
    });
    let error = ended.result.unwrap_err();
    assert!(matches!(&error, SessionError::Lost(text) if text.contains("ended with exit code 0")), "{error}");
    assert_eq!(ended.stdout, b"last words");
}

#[test]
fn a_guest_that_powers_off_by_itself_is_said_to_have() {
    let ended = session(None, |mut agent, mut vmm| {
        agent.start();
        vmm.event(&VmEvent::Exited(VmExit::PowerOff));
        drop(agent);
        vmm.end();
    });
    let error = ended.result.unwrap_err().to_string();
    assert!(error.contains("powered off"), "{error}");
}

#[test]
fn a_machine_that_cannot_be_built_is_reported_in_its_own_words() {
    let ended = session(None, |agent, mut vmm| {
        vmm.event(&VmEvent::Failed { message: "no room for 64 MiB".into() });
        drop(agent);
    });
    assert_eq!(ended.result.unwrap_err().to_string(), "no room for 64 MiB");
}

#[test]
fn another_protocol_and_messages_out_of_turn_end_the_session() {
    let ended = session(None, |mut agent, _vmm| agent.say(hello(PROTOCOL_VERSION + 1)));
    assert!(ended.result.unwrap_err().to_string().contains("version"));
    let ended = session(None, |mut agent, _vmm| agent.say(AgentMessage::Started { pid: 1 }));
    assert!(matches!(ended.result, Err(SessionError::Protocol(_))));
    let ended = session(None, |mut agent, _vmm| agent.stream.write_all(&[0xff; 64]).unwrap());
    assert!(matches!(ended.result, Err(SessionError::Link { .. })));
}

/// As `lighter run ... yes | head -1`.
#[test]
fn a_process_whose_output_nobody_reads_is_asked_to_stop() {
    let (reader, writer) = pipe();
    drop(reader);
    let (result, _, _) = session_to(&writer, None, |mut agent, _vmm| {
        agent.start();
        agent.say(AgentMessage::Stdout(b"y\n".to_vec()));
        assert_eq!(agent.hear(), Some(HostMessage::Signal(15)));
        agent.say(AgentMessage::Exited(ExitStatus::Signal(15)));
    });
    assert_eq!(result.unwrap().exit_code(), 143);
}
