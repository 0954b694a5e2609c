//! Making a template: a machine boots, or is a clone of one that did; its agent may mount an image's root; and there it
//! is saved.
//!
//! ```text
//! machine: lock ─► boot ─► Hello ─► hang up ─► rest ─► pause ─► snapshot ─► publish
//! image:   lock ─► clone of the machine's ─► Prepare ─► Prepared ─► hang up ─► rest ─► pause
//!               ─► snapshot, copy of the layer ─► publish
//! ```

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_protocol::message::{AgentMessage, HostMessage, ReadAhead, RootPlan};
use agent_protocol::{AGENT_PORT, HOST_PORT, PROTOCOL_VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm::config::{VmConfig, VmEvent};
use vmm::control::{Client, ClientError, Request};

use super::store::{MakerLock, layer, snapshot};
use super::{Key, Template, TemplateStore, copy_sparse};
use crate::container::Container;
use crate::keeper::boot::{Boot, console_tail};
use crate::network::Interface;
use crate::process::events::Read;
use crate::process::{Program, VmProcess};
use crate::session::SessionError;
use crate::session::link::{Link, Received};
use crate::session::signals::Signals;

/// How often a lock that somebody holds is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
/// What the guest gets to come to rest in: what it still has to do would be done again in every clone.
const REST: Duration = Duration::from_millis(500);
/// What writing the snapshot may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The user does not want to wait.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// The signal.
        signal: i32,
    },
    /// The machine did not come up, so it would not without a template either.
    #[error(transparent)]
    Machine(#[from] SessionError),
    /// The host could not keep it.
    #[error("cannot {action}")]
    Keep {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The machine could not be saved.
    #[error("cannot save the machine")]
    Save(#[from] ClientError),
}

/// What a template is made with.
pub struct Maker<'a> {
    /// A place on the host for the machine, with its writable layer in it if it has one.
    pub container: &'a Container,
    /// The VMM.
    pub program: Program<'a>,
    /// The machine. Its interface and sockets are the maker's to add.
    pub config: VmConfig,
    /// Its network interfaces, which lead nowhere.
    pub interfaces: Vec<Interface>,
    /// What the agent mounts; nothing in the template of a machine.
    pub root: Option<(RootPlan, ReadAhead)>,
    /// Ends the making.
    pub signals: &'a Signals,
}

/// Waits for whoever makes `key`; `None` if the template is there then, else the lock to make it.
pub fn lock(
    store: &TemplateStore,
    key: &Key,
    signals: &Signals,
) -> Result<Result<Template, MakerLock>, MakeError> {
    loop {
        let keep = |source| MakeError::Keep { action: "lock the making of templates", source };
        if let Some(lock) = store.try_lock(key).map_err(keep)? {
            return Ok(store.find(key).ok_or(lock));
        }
        check(signals)?;
        std::thread::sleep(LOCK_INTERVAL);
    }
}

/// An error if somebody wants to interrupt us.
fn check(signals: &Signals) -> Result<(), MakeError> {
    while let Some(signal) = signals.next() {
        if signal != libc::SIGWINCH {
            return Err(MakeError::Interrupted { signal });
        }
    }
    Ok(())
}

impl Maker<'_> {
    /// Makes the template `key`, whose lock the caller holds.
    pub fn make(mut self, store: &TemplateStore, key: &Key) -> Result<Template, MakeError> {
        let keep = |action| move |source| MakeError::Keep { action, source };
        let directory = store.begin(key).map_err(keep("make a directory for the template"))?;
        let made = self.make_in(&directory).and_then(|()| {
            let missing = || io::Error::from(io::ErrorKind::NotFound);
            store.publish(key).and_then(|made| made.ok_or_else(missing)).map_err(keep("publish the template"))
        });
        made.inspect_err(|_| {
            // The error being returned matters more.
            let _ = std::fs::remove_dir_all(&directory);
        })
    }

    fn make_in(&mut self, directory: &Path) -> Result<(), MakeError> {
        let keep = |action| move |source| MakeError::Keep { action, source };
        let mut vm = self.bring_up()?;
        self.rest()?;
        let mut control = Client::connect(&self.container.control(), SAVE_TIMEOUT)?;
        control.ask(&Request::Pause)?;
        control.ask(&Request::snapshot(snapshot(directory)))?;
        if self.root.as_ref().is_some_and(|(root, _)| root.writable_device.is_some()) {
            copy_sparse(&self.container.disk(), &layer(directory))
                .map_err(keep("copy the writable layer"))?;
        }
        vm.kill();
        Ok(())
    }

    /// Starts the machine, up to its agent's having done what is wanted of it.
    pub fn bring_up(&mut self) -> Result<VmProcess, MakeError> {
        let keep = |action| move |source| MakeError::Keep { action, source };
        let socket = PathBuf::from(format!("{}_{HOST_PORT}", self.container.vsock().display()));
        let listener = UnixListener::bind(&socket).map_err(keep("listen for the agent"))?;
        let _ = std::fs::remove_file(self.container.control());
        self.config.control = Some(self.container.control());
        self.config.net = self.interfaces.iter().map(Interface::config).collect();
        let log = self.container.vmm_log();
        let mut vm = VmProcess::spawn(&self.program, &self.config, &self.interfaces, None, &log)
            .map_err(|error| keep("start the VMM")(io::Error::other(error)))?;
        self.container.record_vmm(vm.id()).map_err(|error| keep("note the VMM")(io::Error::other(error)))?;
        self.prepare(&mut vm, &listener)?;
        Ok(vm)
    }

    /// Waits until the agent is there and has mounted the root, and hangs up.
    fn prepare(&self, vm: &mut VmProcess, listener: &UnixListener) -> Result<(), MakeError> {
        let mut boot = Boot::new(&self.config, Instant::now());
        let console = self.container.console_log();
        let host = |source| SessionError::Host { action: "wait for the agent", source };
        let mut link: Option<Link> = None;
        loop {
            let ready =
                wait(self.signals, vm, link.as_ref().map_or(listener.as_fd(), |link| link.as_fd()), &boot);
            let ready = ready.map_err(|errno| host(errno.into()))?;
            check(self.signals)?;
            if ready.vm {
                match vm.events().read() {
                    Read::Events(events) => {
                        for event in events {
                            boot.event(&event, Instant::now());
                            match event {
                                VmEvent::Failed { message } => return Err(SessionError::Vm(message).into()),
                                VmEvent::Started { .. } if self.config.restore.is_some() => {
                                    let mut dialled =
                                        Link::dial(&self.container.vsock(), AGENT_PORT).map_err(host)?;
                                    dialled.flush().map_err(|source| SessionError::Link {
                                        source,
                                        console: String::new(),
                                    })?;
                                    link = Some(dialled);
                                }
                                _ => {}
                            }
                        }
                    }
                    Read::End if boot.exit().is_some() => {
                        return Err(SessionError::Boot(boot.diagnosis(false, &console)).into());
                    }
                    Read::End => {
                        let end = vm.reap();
                        let text = format!("{end}, before its guest was up{}", console_tail(&console));
                        return Err(SessionError::Boot(text).into());
                    }
                }
            }
            if ready.agent {
                boot.progress(Instant::now());
                match &mut link {
                    None => {
                        link =
                            Some(listener.accept().and_then(|(stream, _)| Link::new(stream)).map_err(host)?)
                    }
                    Some(link) => {
                        if self.converse(link, &console)? {
                            return Ok(());
                        }
                    }
                }
            }
            if Instant::now() >= boot.deadline() {
                return Err(SessionError::Boot(boot.diagnosis(true, &console)).into());
            }
        }
    }

    /// Handles what the agent said; true when the root is there.
    fn converse(&self, link: &mut Link, console: &Path) -> Result<bool, MakeError> {
        let broken = |source| SessionError::Link { source, console: console_tail(console) };
        let messages = match link.flush().and_then(|()| link.receive()).map_err(broken)? {
            Received::Messages(messages) => messages,
            Received::End => return Err(SessionError::Protocol("hung up".into()).into()),
        };
        for message in messages {
            match message {
                AgentMessage::Hello { protocol, .. } if protocol == PROTOCOL_VERSION => match &self.root {
                    Some((root, read_ahead)) => {
                        let (root, read_ahead) = (root.clone(), read_ahead.clone());
                        link.send(&HostMessage::Prepare { root, read_ahead }).map_err(broken)?;
                    }
                    None => return Ok(true),
                },
                AgentMessage::Prepared => return Ok(true),
                AgentMessage::Failed { message, .. } => {
                    let text = format!(
                        "could not prepare the machine: {}",
                        crate::text::printable(message.as_bytes())
                    );
                    return Err(SessionError::Protocol(text).into());
                }
                _ => return Err(SessionError::Protocol("said what it must not say now".into()).into()),
            }
        }
        Ok(false)
    }

    /// Lets the guest come to rest.
    fn rest(&self) -> Result<(), MakeError> {
        let end = Instant::now() + REST;
        while Instant::now() < end {
            check(self.signals)?;
            std::thread::sleep(LOCK_INTERVAL);
        }
        Ok(())
    }
}

/// Who is ready.
struct Ready {
    vm: bool,
    agent: bool,
}

/// Waits for the VMM, the agent or a signal, until the guest's deadline.
fn wait(
    signals: &Signals,
    vm: &VmProcess,
    agent: std::os::fd::BorrowedFd<'_>,
    boot: &Boot,
) -> Result<Ready, Errno> {
    let mut fds = [
        PollFd::new(signals, PollFlags::IN),
        PollFd::from_borrowed_fd(vm.events_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(agent, PollFlags::IN),
    ];
    let left = boot.deadline().saturating_duration_since(Instant::now());
    match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let [_, vm, agent] = fds.map(|fd| !fd.revents().is_empty());
    Ok(Ready { vm, agent })
}
