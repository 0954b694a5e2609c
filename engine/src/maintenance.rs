//! The files of a container that does not run: its disks in a machine of their own, in which nothing of the container
//! runs, for as long as somebody works on them. A container that is no VM has a warden for them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent_protocol::AGENT_PORT;
use agent_protocol::message::{HostMessage, ReadAhead};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::config::VmEvent;

use crate::container::Container;
use crate::container::record::Record;
use crate::dirs::Dirs;
use crate::error::RunError;
use crate::isolation::{self, Isolation};
use crate::network;
use crate::process::VmProcess;
use crate::process::events::Read;
use crate::run::machine::Machine;
use crate::run::warm::{Level, Warmer};
use crate::session::SessionError;
use crate::session::link::Link;
use crate::session::signals::Signals;
use crate::template::{Maker, Template};

/// What the guest gets to unmount the disks in.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a warden may take to mount the files.
const WARDEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A machine or a warden with a container's disks; the container cannot be started meanwhile.
pub struct Maintenance {
    vm: VmProcess,
    container: Container,
    _template: Option<Template>,
    _interfaces: Vec<network::Interface>,
}

impl Maintenance {
    /// Brings up the machine of `record`, which does not run.
    pub fn open(dirs: &Dirs, record: &Record, notice: &dyn Fn(&str)) -> Result<Self, RunError> {
        let host = |action| move |source| RunError::Host { action, source };
        let container = Container::open(dirs, &record.spec.id)?;
        if record.spec.isolation != Isolation::Vm {
            return Self::by_warden(record, container);
        }
        let signals = Signals::block().map_err(host("watch signals"))?;
        let machine = Machine::of(&record.spec, dirs, container.data())?;
        let plan = &record.spec.plan;
        let warmer = Warmer { dirs, machine: &machine, plan, signals: &signals, notice };
        let template = match record.spec.machine.cold {
            true => None,
            false => warmer.template(Level::Machine)?,
        };
        machine.make_layer(&container, plan, None)?;
        let interfaces = network::detached(&container.id, machine.interfaces)?;
        let config = machine.config(&container, plan, None, template.as_ref());
        let mut maker = Maker {
            container: &container,
            program: machine.vmm(),
            config,
            interfaces,
            root: Some((plan.root(), ReadAhead::default())),
            signals: &signals,
        };
        let vm = maker.bring_up()?;
        let interfaces = maker.interfaces;
        Ok(Self { vm, container, _template: template, _interfaces: interfaces })
    }

    /// Brings up a warden that starts nothing.
    fn by_warden(record: &Record, container: Container) -> Result<Self, RunError> {
        isolation::check_host(record.spec.isolation)?;
        for socket in [container.vsock(), container.control()] {
            // Left by the life before.
            let _ = std::fs::remove_file(socket);
        }
        let config = isolation::warden_config(&record.spec, &container, None, Vec::new());
        let mut vm = VmProcess::spawn_warden(&config, None, &container.vmm_log())?;
        container.record_vmm(vm.id())?;
        let failed = |why: String| RunError::Session(SessionError::Vm(why));
        let end = Instant::now() + WARDEN_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed("the files could not be mounted in time".to_owned()));
            }
            let _ = poll(
                &mut [PollFd::from_borrowed_fd(vm.events_fd(), PollFlags::IN)],
                Timespec::try_from(left).ok().as_ref(),
            );
            let events = match vm.events().read() {
                Read::Events(events) => events,
                Read::End => return Err(failed(format!("{}, before the files were mounted", vm.reap()))),
            };
            for event in events {
                match event {
                    VmEvent::Failed { message } => return Err(failed(message)),
                    VmEvent::Started { .. } => {
                        return Ok(Self { vm, container, _template: None, _interfaces: Vec::new() });
                    }
                    _ => {}
                }
            }
        }
    }

    /// The socket of its vsock device.
    pub fn vsock(&self) -> PathBuf {
        self.container.vsock()
    }

    /// Leaves the disks in order. Without it they are as after a power cut.
    pub fn close(mut self) {
        let Ok(mut link) = Link::<HostMessage>::dial(&self.container.vsock(), AGENT_PORT) else { return };
        if link.send(&HostMessage::PowerOff).is_err() {
            return;
        }
        let end = Instant::now() + CLOSE_TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::OUT, link.is_waiting());
            let events = PollFd::from_borrowed_fd(self.vm.events_fd(), PollFlags::IN);
            let _ = poll(&mut [events, PollFd::new(&link, flags)], Timespec::try_from(left).ok().as_ref());
            let _ = link.flush();
            if matches!(self.vm.events().read(), Read::End) {
                return;
            }
        }
    }
}
