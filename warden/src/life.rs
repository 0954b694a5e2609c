//! The warden's process: namespaces, then one loop over sessions, their processes' streams and children that ended.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use agent::clock;
use agent::event_loop::{child_signals, status_of};
use agent::failure::{Context as _, Failure, check};
use agent::resolver::Resolver;
use agent::session::{Interest, Session};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use vmm::config::VmEvent;

use crate::bare::Bare;
use crate::contained::{self, Contained};
use crate::questions::Keeper;
use crate::wards::{Kind, Wards};
use crate::{Isolation, WardenConfig, control, idmap, root};

/// Sessions at once; more are closed at once (stops a host program that opens them without end).
const MAX_SESSIONS: usize = 64;
/// Longest request to be connected to a port.
const MAX_CONNECT: usize = 32;
/// What a caller may take to say it: callers are lighter's own, and write at once.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The hidden verb's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Args {
    /// Descriptor with the [`WardenConfig`] as JSON.
    pub config_fd: i32,
    /// Descriptor for [`VmEvent`]s, one JSON object a line.
    pub event_fd: i32,
    /// Process ID of the keeper, with which the warden ends.
    pub parent: u32,
}

/// Runs the warden to its end and gives its exit code. The process must have one thread.
pub fn run(args: &Args) -> i32 {
    let began_ns = vmm::clock::monotonic_ns();
    let mut events = match idmap::inherited(args.event_fd) {
        Ok(pipe) => File::from(pipe),
        Err(failure) => {
            eprintln!("lighter: {}", failure.message);
            return 125;
        }
    };
    match guard(args, &mut events, began_ns) {
        Ok(code) => code,
        Err(failure) => {
            tell(&mut events, &VmEvent::Failed { message: failure.message });
            125
        }
    }
}

fn tell(events: &mut File, event: &VmEvent) {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    // A keeper that is gone has taken the warden with it.
    let _ = events.write_all(&line);
}

fn guard(args: &Args, events: &mut File, began_ns: u64) -> Result<i32, Failure> {
    die_with_parent()?;
    if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get().unsigned_abs())
        != Some(args.parent)
    {
        return Err(Failure::agent("the keeper is gone"));
    }
    let mut text = Vec::new();
    File::from(idmap::inherited(args.config_fd)?).read_to_end(&mut text).during("read its configuration")?;
    let config: WardenConfig =
        serde_json::from_slice(&text).map_err(|error| Failure::agent(error.to_string()))?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::agent(format!(
            "--isolation {} needs root: run lighter as root, or use --isolation vm, which needs only /dev/kvm",
            config.isolation.name()
        )));
    }
    // Sockets first: their directory may be hidden later.
    let bind = |path: &std::path::Path| {
        let listener = UnixListener::bind(path).during(&format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true).during("listen")?;
        Ok(listener)
    };
    let sockets = (bind(&config.vsock)?, bind(&config.control)?);
    let contained = config.isolation == Isolation::Container;
    let namespaces = if contained { UnshareFlags::NEWNS | UnshareFlags::NEWPID } else { UnshareFlags::NEWNS };
    // SAFETY: this process has one thread and holds nothing that belongs to a namespace.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.during("make namespaces")?;
    if !contained {
        return serve(&config, sockets, events, began_ns);
    }
    // The init of a PID namespace: with it the kernel ends every process of the container.
    // SAFETY: this process has one thread, so the child may do all that a process may.
    let pid = check(unsafe { libc::fork() }).during("fork")?;
    if pid == 0 {
        let code = die_with_parent().and_then(|()| serve(&config, sockets, events, began_ns));
        let code = code.unwrap_or_else(|failure| {
            tell(events, &VmEvent::Failed { message: failure.message });
            125
        });
        // SAFETY: _exit takes no pointers; nothing of the parent's is to be run at the child's end.
        unsafe { libc::_exit(code) }
    }
    drop(sockets);
    let status = Pid::from_raw(pid).and_then(|pid| {
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty())).ok().flatten()
    });
    Ok(status.and_then(|(_, status)| status.exit_status()).unwrap_or(125))
}

fn die_with_parent() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).during("ask to end with the keeper")
}

fn serve(
    config: &WardenConfig,
    (sessions, requests): (UnixListener, UnixListener),
    events: &mut File,
    began_ns: u64,
) -> Result<i32, Failure> {
    let children = child_signals()?;
    // Whatever leaves its parent in the container comes to us.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).during("take orphans")?;
    let keeper = Keeper::of(&config.vsock)?;
    if let Some(network) = config.network {
        contained::enter_network(network)?;
    }
    root::make(config)?;
    // A change of identity, as mounting may need, has taken it back (prctl(2)).
    die_with_parent()?;
    let kind: Box<dyn Kind> = match config.isolation {
        Isolation::Container => Box::new(Contained::prepare(config, keeper)?),
        _ => Box::new(Bare::enter(config)?),
    };
    let now = vmm::clock::monotonic_ns();
    let started = VmEvent::Started {
        process_start_ns: began_ns,
        built_ns: now,
        first_run_ns: now,
        emulated_ring0: false,
    };
    tell(events, &started);
    let pipe = events.as_fd().try_clone_to_owned().during("keep the event pipe")?;
    let mut warden = Warden {
        children,
        listener: sessions,
        requests,
        events: pipe,
        sessions: Vec::new(),
        id: config.id.clone(),
    };
    warden.run(Wards::new(&config.id, kind))
}

struct Warden {
    children: OwnedFd,
    listener: UnixListener,
    requests: UnixListener,
    /// Nobody reads it any more once the keeper is gone or has given us up.
    events: OwnedFd,
    sessions: Vec<Session>,
    id: String,
}

impl Warden {
    fn run(&mut self, mut wards: Wards) -> Result<i32, Failure> {
        let began_ns = clock::boottime_ns();
        let mut called = false;
        loop {
            let ready = self.wait(wards.resolver())?;
            if ready.children {
                self.reap();
            }
            for (session, events) in self.sessions.iter_mut().zip(ready.sessions) {
                session.serve(events, &mut wards);
            }
            if ready.requests {
                control::serve(&self.requests, &self.id);
            }
            if ready.is_alone || wards.is_over(called && self.sessions.iter().all(Session::is_closed)) {
                wards.leave();
                return Ok(0);
            }
            self.sessions.retain(|session| !session.is_over());
            while let Ok((stream, _)) = self.listener.accept() {
                called = true;
                if let (true, Ok(stream)) = (self.sessions.len() < MAX_SESSIONS, connect(stream)) {
                    self.sessions.push(Session::new(stream, began_ns));
                }
            }
        }
    }

    /// One `poll` over everything that anybody waits for. Who answers questions for names has its turn here.
    fn wait(&self, resolver: Option<&mut Resolver>) -> Result<Ready, Failure> {
        let interests: Vec<_> = self.sessions.iter().map(Session::interest).collect();
        let fixed = [self.children.as_fd(), self.requests.as_fd(), self.listener.as_fd()];
        let mut fds: Vec<_> =
            fixed.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&self.events, PollFlags::empty()));
        for interest in &interests {
            fds.extend(interest.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let helper = resolver.as_ref().map(|resolver| resolver.interest()).unwrap_or_default();
        fds.extend(helper.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).during("poll"),
        }
        let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
        let mut results = events.into_iter();
        let mut is_ready = || results.next().is_some_and(|events| events.contains(PollFlags::IN));
        let (children, requests) = (is_ready(), is_ready());
        is_ready();
        let is_alone = results.next().is_some_and(|events| events.contains(PollFlags::ERR));
        let sessions = interests.iter().map(|interest| interest.answer(&mut results)).collect();
        drop((fds, helper));
        if let Some(resolver) = resolver {
            resolver.serve(&mut results);
        }
        Ok(Ready { children, requests, is_alone, sessions })
    }

    /// Collects every child that ended, orphans too, and tells the session whose process it was.
    fn reap(&mut self) {
        let mut record = [0u8; 128];
        let _ = rustix::io::read(self.children.as_fd(), &mut record[..]);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            for session in &mut self.sessions {
                session.child_ended(pid, status_of(status));
            }
        }
    }
}

struct Ready {
    children: bool,
    requests: bool,
    is_alone: bool,
    sessions: Vec<Interest<PollFlags>>,
}

/// Answers a caller as a VMM's vsock device does: `CONNECT PORT`, `OK PORT`.
fn connect(stream: UnixStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let mut line = Vec::new();
    let mut byte = [0u8];
    while line.len() < MAX_CONNECT && byte != *b"\n" {
        (&stream).read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let wanted = format!("CONNECT {}\n", agent_protocol::AGENT_PORT);
    if line != wanted.as_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    (&stream).write_all(b"OK 1024\n")?;
    stream.set_read_timeout(None)?;
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_asks_for_the_agents_port_or_is_sent_away() {
        let ask = |text: &[u8]| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(text).unwrap();
            connect(theirs)
        };
        assert!(ask(b"CONNECT 1024\n").is_ok());
        assert!(ask(b"CONNECT 22\n").is_err() && ask(&[b'x'; 100]).is_err());
    }
}
