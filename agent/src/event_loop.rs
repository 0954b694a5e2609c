//! The one loop: sessions, their processes' pipes, and children that ended.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use crate::container::Container;
use crate::failure::{Context, Failure, check};
use crate::forward::Forwarder;
use crate::resolver::Resolver;
use crate::session::{Interest, Session};
use crate::{power, transport};

/// Sessions at once; more are closed at once (stops a host program that opens them without end).
const MAX_SESSIONS: usize = 64;

/// Serves sessions; ends only with the machine or on a failure of the guest's kernel.
pub fn run(listener: OwnedFd, host: OwnedFd, began_ns: u64) -> Result<(), Failure> {
    let children = child_signals()?;
    let mut container = Container::default();
    let mut sessions = vec![Session::new(host, began_ns)];
    loop {
        let ready = wait(&listener, &children, &sessions, container.helpers())?;
        if ready.children {
            reap(&children, &mut sessions, &mut container);
        }
        for (session, events) in sessions.iter_mut().zip(ready.sessions) {
            session.serve(events, &mut container);
        }
        if container.power_off_due(sessions.iter().all(Session::is_closed)) {
            container.leave();
            power::off();
        }
        sessions.retain(|session| !session.is_over());
        while let Some(stream) = transport::accept(&listener).during("accept a session")? {
            if sessions.len() < MAX_SESSIONS {
                sessions.push(Session::new(stream, began_ns));
            }
        }
    }
}

struct Ready {
    children: bool,
    /// One entry a session: what is ready of what it asked for.
    sessions: Vec<Interest<PollFlags>>,
}

/// One `poll` over everything that anybody waits for. Those who need nothing else have their turn here.
fn wait(
    listener: &OwnedFd,
    children: &OwnedFd,
    sessions: &[Session],
    (resolver, forwarder): (Option<&mut Resolver>, Option<&mut Forwarder>),
) -> Result<Ready, Failure> {
    let interests: Vec<_> = sessions.iter().map(Session::interest).collect();
    let mut fds = vec![PollFd::new(listener, PollFlags::IN), PollFd::new(children, PollFlags::IN)];
    for interest in &interests {
        fds.extend(interest.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
    }
    let mut helpers = resolver.as_ref().map(|resolver| resolver.interest()).unwrap_or_default();
    helpers.extend(forwarder.as_ref().map(|forwarder| forwarder.interest()).unwrap_or_default());
    fds.extend(helpers.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno).during("poll"),
    }
    let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
    let mut results = events.into_iter().skip(1);
    let children = results.next().is_some_and(|events| events.contains(PollFlags::IN));
    let sessions = interests.iter().map(|interest| interest.answer(&mut results)).collect();
    drop((fds, helpers));
    if let Some(resolver) = resolver {
        resolver.serve(&mut results);
    }
    if let Some(forwarder) = forwarder {
        forwarder.serve(&mut results);
    }
    Ok(Ready { children, sessions })
}

/// A descriptor that is readable when a child ended.
pub fn child_signals() -> Result<OwnedFd, Failure> {
    // SAFETY: the set is a plain bit mask, filled by the calls below before it is used; this program has one
    // thread, whose mask is the process's.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    let fd = check(fd).during("signalfd (has this kernel CONFIG_SIGNALFD?)")?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Collects every child that ended, orphans too, and tells the session whose process it was.
fn reap(children: &OwnedFd, sessions: &mut [Session], container: &mut Container) {
    // One record stands for any number of children; the loop below finds them all.
    let mut record = [0u8; 128];
    let _ = rustix::io::read(children.as_fd(), &mut record[..]);
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        container.child_ended(pid, status_of(status));
        for session in sessions.iter_mut() {
            session.child_ended(pid, status_of(status));
        }
    }
}

/// How a child ended.
pub fn status_of(status: WaitStatus) -> agent_protocol::message::ExitStatus {
    use agent_protocol::message::ExitStatus;
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => ExitStatus::Signal(u8::try_from(signal).unwrap_or(u8::MAX)),
        (code, None) => ExitStatus::Code(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)),
    }
}
